"""The contract of pixel decoders."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from mask_former.structures import PixelFeatures

__all__ = ["PixelDecoder"]


class PixelDecoder(nn.Module):
    """Turns the maps of a backbone into per-pixel embeddings at stride 4 (paper, section 3.3)."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the maps by their name in ``PixelFeatures``.

        ``mask_features`` always; ``encoder_features`` with an encoder; ``multi_scale`` if there are
        several maps for the transformer decoder, which share one number of channels.
        """
        raise NotImplementedError

    def forward_features(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Compute the maps.

        Args:
            features: B×C_i×h_i×w_i by name, the maps of the backbone.
        """
        raise NotImplementedError
