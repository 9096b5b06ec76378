"""Semantic evaluation: detectron2's numbers and files in a fraction of its time."""

from __future__ import annotations

from functools import partial
from typing import Any

import detectron2.evaluation as d2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from torch import Tensor

from mask_former.data.formats.readers import read_class_map
from mask_former.data.formats.rle import encode_label_map
from mask_former.ops import best_class

from .panoptic_quality import pair_counts

__all__ = ["SemSegEvaluator", "class_map"]


class SemSegEvaluator(d2.SemSegEvaluator):
    """detectron2's mIoU, fwIoU, mACC, pACC, and IoU and accuracy of each class.

    Label maps stay 8 or 16 bit. Sums and files are detectron2's, and so is its boundary IoU, which
    it computes in 8 bit: from 16 classes on, that overflows.
    """

    def __init__(
        self, dataset_name: str, distributed: bool = True, output_dir: str | None = None
    ) -> None:
        """
        Args:
            dataset_name: its dicts have ``file_name`` and ``sem_seg_file_name``, its metadata
                ``stuff_classes``, ``ignore_label`` and, where label maps hold other values than
                class ids, ``label_map``.
            distributed: whether the ranks' counts are gathered.
            output_dir: where ``sem_seg_predictions.json`` and ``sem_seg_evaluation.pth`` go; None
                writes neither.
        """
        read = partial(read_class_map, label_map=MetadataCatalog.get(dataset_name).get("label_map"))
        super().__init__(dataset_name, distributed, output_dir, sem_seg_loading_fn=read)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count images.

        Args:
            inputs: one dict an image, with ``file_name``.
            outputs: one dict an image, with ``sem_seg``: scores K×H×W.

        Raises:
            FileNotFoundError, ValueError: a label map is missing or damaged, of another size than
                the prediction, or has a label that is neither a class nor the ignore label.
        """
        for example, output in zip(inputs, outputs, strict=True):
            file_name = example["file_name"]
            label_file = self.input_file_to_gt_file[file_name]
            truth, prediction = self._truth(label_file), class_map(output["sem_seg"])
            if prediction.shape != truth.shape:
                raise ValueError(
                    f"{file_name}: the prediction is {prediction.shape} (H, W), its label map "
                    f"{label_file} is {truth.shape}; they must be of one size."
                )
            self._conf_matrix += pair_counts(prediction, truth, self._conf_matrix.shape)
            if self._compute_boundary_iou:
                self._b_conf_matrix += self._boundary_counts(prediction, truth)
            if self._output_dir is not None:
                self._predictions += self.encode_json_sem_seg(prediction, file_name)

    def _boundary_counts(self, prediction: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
        row, column = (self._mask_to_boundary(m.astype(np.uint8)) for m in (prediction, truth))
        pairs = (self._num_classes + 1) * row + column  # 8 bit, as in detectron2
        shape = self._b_conf_matrix.shape
        return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

    def _truth(self, file_name: str) -> NDArray[Any]:
        """A label map, H×W: 0 … K-1, and K for the ignore label."""
        labels, known = self.sem_seg_loading_fn(file_name), self._num_classes
        table = np.arange(np.iinfo(labels.dtype).max + 1)
        table[known:] = known + 1
        if self._ignore_label < len(table):
            table[self._ignore_label] = known
        truth = table.astype(np.min_scalar_type(known + 1)).take(labels)
        if truth.max(initial=0) > known:
            wrong = np.unique(labels[truth > known])
            raise ValueError(
                f"{file_name} has the labels {wrong[:10].tolist()}; expected 0 … {known - 1}, and "
                f"{self._ignore_label} where a pixel has no class."
            )
        return truth

    def encode_json_sem_seg(
        self, sem_seg: NDArray[Any], input_file_name: str
    ) -> list[dict[str, Any]]:
        """One dict a class of the H×W map `sem_seg`, ascending, its mask in COCO's RLE."""
        own = self._contiguous_id_to_dataset_id
        return [
            {
                "file_name": input_file_name,
                "category_id": label if own is None else own[label],
                "segmentation": mask,
            }
            for label, mask in encode_label_map(sem_seg).items()
        ]


def class_map(scores: Tensor) -> NDArray[Any]:
    """Return the best class of each pixel in the smallest unsigned type that holds K-1.

    Args:
        scores: K×H×W, on any device.
    """
    return best_class(scores)[0].cpu().numpy().astype(np.min_scalar_type(len(scores) - 1))
