"""The contract of pixel decoders."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from mask_former.structures import PixelFeatures

__all__ = ["PixelDecoder"]


class PixelDecoder(nn.Module):
    """Base class: computes per-pixel embeddings at stride 4 from backbone maps."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the output maps, by field of ``PixelFeatures``.

        ``mask_features`` is always present, ``encoder_features`` if there is an encoder, and
        ``multi_scale`` if there are several maps for the transformer decoder, of equal channels.
        """
        raise NotImplementedError

    def forward_features(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Compute the maps.

        Args:
            features: backbone maps B×C_i×h_i×w_i by name.
        """
        raise NotImplementedError
