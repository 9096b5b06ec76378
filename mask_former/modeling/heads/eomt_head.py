"""The head of EoMT: the last blocks of a ViT, which process queries and patches together.

There is neither a pixel decoder nor a transformer decoder (arXiv 2503.19108).
:class:`~mask_former.modeling.backbone.eomt_vit.EoMTViT` is the front of the ViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.structures import Outputs, ParameterRows, PixelFeatures, Prediction, Size

from ..backbone.eomt_vit import KEY, TokenSpec
from ..backbone.timm_vit import create_vit
from ..deep_supervision import DeeplySupervised
from .eomt_annealing import Annealing

__all__ = ["EoMTHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class EoMTHead(DeeplySupervised):
    """The last n blocks of a ViT, its final norm, the queries, and the layers that predict.

    Tokens are in the order queries, prefix tokens, patches: N = Q + P + G.
    """

    attn_mask_probs: Tensor

    @configurable
    def __init__(
        self,
        *,
        vit: str,
        num_blocks: int,
        tokens: TokenSpec,
        num_classes: int,
        num_queries: int,
        annealing: Annealing,
        masked_attention: bool = True,
        deep_supervision: bool = True,
    ) -> None:
        """Create the layers with random weights.

        Args:
            vit: timm's name of the ViT.
            num_blocks: n, the number of blocks.
            tokens: the backbone's output.
            num_classes: K, without "no object".
            num_queries: Q.
            annealing: the schedule by which the masks of the attention are lifted.
            masked_attention: queries attend only to the patches of their own mask.
            deep_supervision: also predict before each block in training.

        Raises:
            ImportError: if timm is not installed.
            ValueError: if timm has no such ViT.
        """
        super().__init__()
        assert tokens.channels and tokens.height and tokens.width and tokens.stride
        width = tokens.channels
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        self.masked_attention = masked_attention
        self.annealing = annealing
        self.grid: Size = (tokens.height, tokens.width)
        self.num_before_patches = num_queries + tokens.num_prefix
        tail = create_vit(vit, KEY, depth=num_blocks)
        self.blocks, self.norm = tail.blocks, tail.norm
        for block in self.blocks:  # Eva's attention does not rotate these tokens
            block.attn.num_prefix_tokens = self.num_before_patches
        self.q = nn.Embedding(num_queries, width)
        self.class_head = nn.Linear(width, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, width),
        )  # fmt: skip
        doublings = max(1, tokens.stride.bit_length() - 3)  # from the patches to a quarter
        self.upscale = nn.Sequential(*(_Upscale(width) for _ in range(doublings)))
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))
        self._shares = (1.0,) * num_blocks
        self._is_masked = (True,) * num_blocks

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        """Read the arguments of the constructor from a config.

        Raises:
            ValueError: if the backbone has no tokens, or if the annealing does not fit.
        """
        node, tokens = cfg.MODEL.EOMT, input_shape.get("tokens")
        if not isinstance(tokens, TokenSpec):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NAME is '{cls.__name__}', which continues a ViT, but the "
                f"backbone {cfg.MODEL.BACKBONE.NAME!r} has no tokens: set MODEL.BACKBONE.NAME to "
                "'build_eomt_vit_backbone'."
            )
        return {
            "vit": node.VIT,
            "num_blocks": node.NUM_BLOCKS,
            "tokens": tokens,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
            "annealing": Annealing.from_config(cfg),
            "masked_attention": node.MASKED_ATTENTION,
            "deep_supervision": node.MASKED_ATTENTION and cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION,
        }

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Predict a set of masks from ``tokens``, B×(P+G)×C, and ``rope``, if there is one."""
        (*earlier, last), _ = self._run(features, all_blocks=self.predicts_all)
        return cast(Outputs, {**last, "aux_outputs": earlier if self.predicts_all else []})

    def inner_outputs(self, features: dict[str, Tensor]) -> tuple[PixelFeatures, list[Prediction]]:
        """Return the pixel embeddings of the last prediction, and all predictions."""
        predictions, tokens = self._run(features, all_blocks=True)
        return PixelFeatures(self._pixel_embeddings(tokens)), predictions

    def _run(
        self, features: dict[str, Tensor], *, all_blocks: bool
    ) -> tuple[list[Prediction], Tensor]:
        """Run the blocks; predict before those that need masks, or before all, and at the end.

        Returns:
            The predictions, and the tokens of the last one, normalised: B×N×C.
        """
        tokens, rope = features["tokens"], features.get("rope")
        options = {} if rope is None else {"rope": rope}
        queries = self.q.weight.expand(len(tokens), -1, -1)
        x = torch.cat((queries, tokens), dim=1)
        predictions = []
        for index, block in enumerate(self.blocks):
            is_masked = self.masked_attention and self._is_masked[index]
            if all_blocks or is_masked:
                predictions.append(self._predict(self.norm(x)))
            mask = self._allowed(predictions[-1]["pred_masks"], index) if is_masked else None
            x = block(x, attn_mask=mask, **options)
        x = self.norm(x)
        return [*predictions, self._predict(x)], x

    def _predict(self, x: Tensor) -> Prediction:
        """Predict from tokens B×N×C, which the ViT's final norm has normalised."""
        queries = x[:, : self.q.num_embeddings]
        kernels, pixels = self.mask_head(queries), self._pixel_embeddings(x)
        masks = torch.einsum("bqc,bchw->bqhw", kernels, pixels)
        return {"pred_logits": self.class_head(queries), "pred_masks": masks, "queries": queries}

    def _pixel_embeddings(self, x: Tensor) -> Tensor:
        """Upscale the patches of normalised tokens: B×C×H/4×W/4."""
        patches = x[:, self.num_before_patches :].transpose(1, 2)
        return self.upscale(patches.unflatten(2, self.grid))

    @torch.no_grad()
    def _allowed(self, masks: Tensor, index: int) -> Tensor:
        """Compute which token may attend to which in a block: B×1×N×N, bool.

        A query may not attend to patches outside its mask. Everything else is allowed, so there is
        no row without an allowed token. The masks of some queries are lifted at random.

        Args:
            masks: B×Q×H/4×W/4, the mask logits before the block.
            index: the block's index among the last n.
        """
        inside = F.interpolate(masks, self.grid, mode="bilinear", align_corners=False) > 0
        batch, queries = inside.shape[:2]
        # drawn on the device and without a branch on the probability, which would wait for a GPU
        lifted = torch.rand(batch, queries, device=masks.device) > self.attn_mask_probs[index]
        size = self.num_before_patches + self.grid[0] * self.grid[1]
        allowed = torch.ones(batch, 1, size, size, dtype=torch.bool, device=masks.device)
        allowed[:, 0, :queries, self.num_before_patches :] = inside.flatten(2) | lifted[..., None]
        return allowed

    def set_progress(self, step: int, max_steps: int) -> None:
        """Set the share of masks that remain after ``step`` of ``max_steps`` optimizer steps."""
        self.set_shares(self.annealing.remaining(step, max_steps, len(self.blocks)))

    def set_shares(self, shares: Sequence[float]) -> None:
        """Set the share of queries whose masks remain, in [0, 1], for each block."""
        if tuple(shares) == self._shares:
            return  # a copy to a GPU in each step would be wasted
        with torch.no_grad():
            self.attn_mask_probs.copy_(torch.tensor(shares))
        self._remember(shares)

    def _remember(self, shares: Sequence[float]) -> None:
        """Keep on the CPU which blocks need masks; in a compiled graph, only that is a constant."""
        self._shares = tuple(shares)
        self._is_masked = tuple(share > 0 for share in shares)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._remember(self.attn_mask_probs.tolist())

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class or query."""
        return ParameterRows({"class_head.weight": 1, "class_head.bias": 1}, ("q.weight",))

    def blocks_above(self, parameter: str) -> int | None:
        """Count the ViT's blocks after the one with a parameter; None: it is not of the ViT."""
        part, _, rest = parameter.partition(".")
        if part == "norm":
            return 0
        return len(self.blocks) - 1 - int(rest.split(".")[0]) if part == "blocks" else None


class _Upscale(nn.Module):
    """Double the height and width of B×C×h×w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(
            channels, channels, kernel_size=3, padding=1, groups=channels, bias=False
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)  # over the channels of each pixel

    def forward(self, x: Tensor) -> Tensor:
        """Upscale the map."""
        x = self.conv2(F.gelu(self.conv1(x)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
