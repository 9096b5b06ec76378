"""Hugging Face's MaskFormer with weights of ours, as its users run it."""

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

from .contenders import Contender
from .stopwatch import Stopwatch, lap_after
from .work import Work, be_sure

__all__ = ["TransformersContender"]


class TransformersContender(Contender):
    """``MaskFormerForInstanceSegmentation`` and the post-processing of its image processor."""

    def __init__(self, name: str, cfg: CfgNode, work: Work, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            name, cfg, work: see :class:`Contender`.
            weights: of our model of ``cfg``; they are converted.

        Raises:
            ImportError: if there is no transformers.
            ValueError: if its MaskFormer cannot hold the model.
        """
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                "--peer transformers needs the package transformers: pip install transformers"
            ) from error
        classes = [str(index) for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
        config = transformers.MaskFormerConfig.from_dict(to_huggingface_config(cfg, classes))
        # Not load_state_dict: the names in files are not those that their modules have now.
        transformers.logging.disable_progress_bar()
        loaded: Any = transformers.MaskFormerForInstanceSegmentation.from_pretrained(
            None,
            config=config,
            state_dict=to_huggingface_names(weights),
            output_loading_info=True,
        )
        model, report = loaded
        wrong = {key: names for key, names in report.items() if names}
        if wrong:
            raise ValueError(f"transformers' MaskFormer did not take all weights of ours: {wrong}")
        super().__init__(name, cfg, work, model.to(cfg.MODEL.DEVICE))
        self.processor = transformers.MaskFormerImageProcessor(**to_huggingface_processor(cfg))
        mean, std = torch.tensor([cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD], device=self.device)
        self._mean, self._std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def prepare(self, training: bool) -> None:
        super().prepare(training)
        deep = training and self.cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION
        self.model.config.use_auxiliary_loss = deep

    def _pixel_values(self) -> Tensor:
        images = [(one["image"].to(self.device) - self._mean) / self._std for one in self.batch]
        # Not their processor, which would resize: all contenders see the same pixels.
        return ImageList.from_tensors(images, self.processor.size_divisor).tensor

    def _infer(self, watch: Stopwatch) -> None:
        watch.start()
        pixel_values = self._pixel_values()
        watch.lap("input")
        outputs = self._outputs(pixel_values)
        watch.lap("network")
        test = self.cfg.MODEL.MASK_FORMER.TEST
        sizes = [self.work.output_size or self.work.size] * self.work.images
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
        if self.work.segments is not None:
            be_sure(outputs.class_queries_logits, self.work.segments)
        return outputs

    def _loss(self, watch: Stopwatch) -> Tensor:
        instances = [example["instances"].to(self.device) for example in self.batch]
        masks = [one.gt_masks.float() for one in instances]  # as their processor gives them
        watch.start()
        pixel_values = self._pixel_values()
        watch.lap("input")
        with (
            lap_after(watch, "network", self.model, "get_logits"),
            lap_after(watch, "criterion", self.model, "get_loss_dict"),
            self.autocast(),
        ):
            return self.model(
                pixel_values,
                mask_labels=masks,
                class_labels=[one.gt_classes for one in instances],
                output_hidden_states=True,  # else their auxiliary losses fail
            ).loss

    def network(self, watch: Stopwatch) -> bool:
        if self.training:  # their forward pass gives no outputs without hidden states
            return False
        pixel_values = self._pixel_values()
        with torch.no_grad():
            watch.start()
            self._outputs(pixel_values)
            watch.lap("network")
        return True

    def predict(self) -> tuple[Tensor, Tensor]:
        self.model.eval()
        with torch.no_grad(), self.autocast():
            outputs = self.model(self._pixel_values())
        logits, masks = outputs.class_queries_logits, outputs.masks_queries_logits
        return logits.float().cpu(), masks.float().cpu()
