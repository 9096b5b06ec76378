"""Hugging Face's MaskFormer with this package's weights and its own post-processing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from mask_former.huggingface import (
    to_huggingface_config,
    to_huggingface_names,
    to_huggingface_processor,
)

from .benchmarked_models import BenchmarkedModel
from .stopwatch import Stopwatch
from .workload import Workload, force_confident

__all__ = ["BenchmarkedTransformersModel"]


class BenchmarkedTransformersModel(BenchmarkedModel):
    """``MaskFormerForInstanceSegmentation`` and the post-processing of its image processor.

    Args:
        name: See :class:`BenchmarkedModel`.
        cfg: See :class:`BenchmarkedModel`.
        workload: See :class:`BenchmarkedModel`.
        weights: Weights of this package's model of ``cfg``, which are converted.

    Raises:
        ImportError: if transformers is not installed.
        ValueError: if its MaskFormer cannot represent the model.
    """

    def __init__(
        self, name: str, cfg: CfgNode, workload: Workload, weights: Mapping[str, Tensor]
    ) -> None:
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                "--peer transformers needs the package transformers: pip install transformers"
            ) from error
        classes = [str(index) for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
        config = transformers.MaskFormerConfig.from_dict(to_huggingface_config(cfg, classes))
        # Not load_state_dict: parameter names in files differ from those of the modules.
        transformers.logging.disable_progress_bar()
        loaded: Any = _timed(transformers.MaskFormerForInstanceSegmentation).from_pretrained(
            None,
            config=config,
            state_dict=to_huggingface_names(weights),
            output_loading_info=True,
        )
        model, report = loaded
        wrong = {key: names for key, names in report.items() if names}
        if wrong:
            raise ValueError(f"transformers' MaskFormer did not load all weights: {wrong}")
        super().__init__(name, cfg, workload, model.to(cfg.MODEL.DEVICE))
        model.watch = self.watch
        self.processor = transformers.MaskFormerImageProcessor(**to_huggingface_processor(cfg))
        mean, std = torch.tensor([cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD], device=self.device)
        self._mean, self._std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def prepare(self, training: bool) -> None:
        super().prepare(training)
        deep = training and self.cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION
        self.model.config.use_auxiliary_loss = deep
        instances = [example["instances"].to(self.device) for example in self.batch * training]
        self._labels = [one.gt_classes for one in instances]
        self._masks = [one.gt_masks.float() for one in instances]  # as their processor returns them

    def _pixel_values(self) -> Tensor:
        images = [(one["image"].to(self.device) - self._mean) / self._std for one in self.batch]
        # Not their processor, which would resize: all models get the same pixels.
        return ImageList.from_tensors(images, self.processor.size_divisor).tensor

    def _infer(self) -> None:
        watch = self.watch
        watch.start()
        pixel_values = self._pixel_values()
        watch.lap("input")
        outputs = self._outputs(pixel_values)
        watch.lap("network")
        test = self.cfg.MODEL.MASK_FORMER.TEST
        sizes = [self.workload.output_size or self.workload.size] * self.workload.images
        if test.SEMANTIC_ON:
            self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            watch.lap("semantic")
        if test.PANOPTIC_ON:
            self.processor.post_process_panoptic_segmentation(
                outputs,
                threshold=test.OBJECT_MASK_THRESHOLD,
                overlap_mask_area_threshold=test.OVERLAP_THRESHOLD,
                target_sizes=sizes,
            )
            watch.lap("panoptic")
        if test.INSTANCE_ON:
            self.processor.post_process_instance_segmentation(outputs, target_sizes=sizes)
            watch.lap("instance")

    def _outputs(self, pixel_values: Tensor) -> Any:
        with self.autocast():
            outputs = self.model(pixel_values)
        if self.workload.segments is not None:
            force_confident(outputs.class_queries_logits, self.workload.segments)
        return outputs

    def _loss(self) -> Tensor:
        pixel_values = self._pixel_values()
        self.watch.lap("input")
        with self.autocast():
            return self.model(
                pixel_values,
                mask_labels=self._masks,
                class_labels=self._labels,
                output_hidden_states=True,  # their auxiliary losses need them
            ).loss

    def network_alone(self) -> dict[str, float]:
        if self.training:  # their forward pass returns no outputs without hidden states
            return {}
        pixel_values, watch = self._pixel_values(), Stopwatch(self.device)
        with torch.no_grad():
            watch.start()
            self._outputs(pixel_values)
            watch.lap("network")
        return watch.read()

    def predict(self) -> tuple[Tensor, Tensor]:
        self.model.eval()
        with torch.no_grad(), self.autocast():
            outputs = self.model(self._pixel_values())
        logits, masks = outputs.class_queries_logits, outputs.masks_queries_logits
        return logits.float().cpu(), masks.float().cpu()


def _timed(model_type: Any) -> Any:
    """Derive a class whose network and criterion are laps of its ``watch``."""

    class Timed(model_type):
        watch: Stopwatch

        def get_logits(self, *args: Any, **kwargs: Any) -> Any:
            logits = super().get_logits(*args, **kwargs)
            self.watch.lap("network")
            return logits

        def get_loss_dict(self, *args: Any, **kwargs: Any) -> Any:
            losses = super().get_loss_dict(*args, **kwargs)
            self.watch.lap("criterion")
            return losses

    return Timed
