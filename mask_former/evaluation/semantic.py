"""Semantic evaluation with detectron2's metrics and files, but faster."""

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import partial
from typing import Any

import detectron2.evaluation as d2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from mask_former.data.formats.readers import read_class_map
from mask_former.data.formats.rle import encode_label_map
from mask_former.ops import best_class

from .panoptic_quality import pair_counts

__all__ = ["SemSegEvaluator", "class_map"]


class SemSegEvaluator(d2.SemSegEvaluator):
    """detectron2's mIoU, fwIoU, mACC, pACC, and IoU and accuracy of each class.

    Label maps stay in 8 or 16 bits, which is faster. Metrics and files equal detectron2's, even
    the boundary IoU, whose 8-bit arithmetic overflows for 16 or more classes.
    """

    def __init__(
        self, dataset_name: str, distributed: bool = True, output_dir: str | None = None
    ) -> None:
        """Load the list of label maps.

        Args:
            dataset_name: A registered dataset. Its dicts have ``file_name`` and
                ``sem_seg_file_name``; its metadata has ``stuff_classes``, ``ignore_label`` and, if
                label maps hold other values than class ids, ``label_map``.
            distributed: Gather the counts of all ranks.
            output_dir: Folder for ``sem_seg_predictions.json`` and ``sem_seg_evaluation.pth``; None
                writes no files.
        """
        read = partial(read_class_map, label_map=MetadataCatalog.get(dataset_name).get("label_map"))
        super().__init__(dataset_name, distributed, output_dir, sem_seg_loading_fn=read)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of images.

        Args:
            inputs: One dict for each image, with ``file_name``.
            outputs: One dict for each image, with ``sem_seg``: class scores K×H×W.

        Raises:
            FileNotFoundError, ValueError: If a label map is missing or damaged, differs in size
                from the prediction, or has a label that is neither a class nor the ignore label.
        """
        for example, output in zip(inputs, outputs, strict=True):
            file_name = example["file_name"]
            label_file = self.input_file_to_gt_file[file_name]
            labels, prediction = self._read_labels(label_file), class_map(output["sem_seg"])
            if prediction.shape != labels.shape:
                raise ValueError(
                    f"{file_name}: the prediction is {prediction.shape} (H, W), its label map "
                    f"{label_file} is {labels.shape}; they must have the same size."
                )
            self._conf_matrix += pair_counts(prediction, labels, self._conf_matrix.shape)
            if self._compute_boundary_iou:
                self._b_conf_matrix += self._boundary_counts(prediction, labels)
            if self._output_dir is not None:
                self._predictions += self.encode_json_sem_seg(prediction, file_name)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Gather the counts of all ranks, compute the metrics, and log those of each class.

        Returns:
            ``sem_seg``: metrics in percent. None on all ranks except the first.
        """
        self._logger = logging.Logger("unused")  # detectron2 logs the whole dict in one line
        results: OrderedDict[str, dict[str, float]] | None = super().evaluate()
        if results is not None:
            metrics = results["sem_seg"]
            rows = [[n, metrics[f"IoU-{n}"], metrics[f"ACC-{n}"]] for n in self._class_names]
            rows.append(["mean", metrics["mIoU"], metrics["mACC"]])
            table = tabulate(rows, ["class", "IoU", "accuracy"], tablefmt="pipe", floatfmt=".2f")
            logging.getLogger(__name__).info(f"Semantic evaluation:\n{table}")
        return results

    def _boundary_counts(self, prediction: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        row, column = (self._mask_to_boundary(m.astype(np.uint8)) for m in (prediction, labels))
        pairs = (self._num_classes + 1) * row + column  # overflows in 8 bits, as in detectron2
        shape = self._b_conf_matrix.shape
        return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

    def _read_labels(self, file_name: str) -> NDArray[Any]:
        """Read a label map, H×W: 0 … K-1, and K for the ignore label."""
        values, k = self.sem_seg_loading_fn(file_name), self._num_classes
        table = np.arange(np.iinfo(values.dtype).max + 1)
        table[k:] = k + 1  # neither a class nor the ignore label
        if self._ignore_label < len(table):
            table[self._ignore_label] = k
        labels = table.astype(np.min_scalar_type(k + 1)).take(values)
        if labels.max(initial=0) > k:
            wrong = np.unique(values[labels > k])
            raise ValueError(
                f"{file_name} has the labels {wrong[:10].tolist()}; expected 0 … {k - 1}, and "
                f"{self._ignore_label} for pixels without a class."
            )
        return labels

    def encode_json_sem_seg(
        self, sem_seg: NDArray[Any], input_file_name: str
    ) -> list[dict[str, Any]]:
        """Encode a class map (H×W) as one dict for each class, with its mask in COCO's RLE."""
        dataset_ids = self._contiguous_id_to_dataset_id
        return [
            {
                "file_name": input_file_name,
                "category_id": label if dataset_ids is None else dataset_ids[label],
                "segmentation": mask,
            }
            for label, mask in encode_label_map(sem_seg).items()
        ]


def class_map(scores: Tensor) -> NDArray[Any]:
    """Return the best class of each pixel, H×W, in the smallest unsigned type that holds K-1.

    Args:
        scores: Class scores, K×H×W, on any device.
    """
    return best_class(scores)[0].cpu().numpy().astype(np.min_scalar_type(len(scores) - 1))
