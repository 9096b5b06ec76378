"""An exported Mask2Former gives the model's logits and results, at other sizes than the example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn.functional import interpolate

from mask_former.export import FORMATS, compare, graphs_of
from mask_former.export.formats import Runner, export_program, onnx_file, program_file
from mask_former.export.graphs import Logits
from mask_former.export.verification import reference
from mask_former.structures import layer_predictions
from tests.helpers.tiny_networks import MASK2FORMER, tiny_network

EXAMPLE = (2, 96, 128)
OTHERS = [(1, 64, 160), (3, 128, 64)]
TOLERANCE = 1e-4
"""The logits are between -15 and 15."""


@pytest.fixture(scope="module")
def model() -> Any:
    """A Mask2Former with confident queries, whose layers attend to three levels."""
    opts = [*MASK2FORMER, "MODEL.MASK_FORMER.DEC_LAYERS", 4]
    model = tiny_network("resnet", [*opts, "MODEL.MASK_FORMER.TEST.SEGMENT_WITHIN_MASK", True])
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        for layer in (predictor.class_embed, predictor.mask_embed.layers[-1]):
            layer.weight.mul_(10)
        for name, weight in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                weight.normal_(std=0.2)  # they start at 0, which ignores the query
    return model


def images(batch: int, height: int, width: int) -> Tensor:
    noise = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(batch))
    return 255 * interpolate(noise, (height, width), mode="bilinear")


@pytest.fixture(scope="module")
def program(model: Any) -> ExportedProgram:
    """The one export of this file, which takes most of its time."""
    return export_program(graphs_of(model)["mask_former"], images(*EXAMPLE), True)


def read(format_name: str, content: bytes, folder: Path) -> Runner:
    path = folder / f"graph{FORMATS[format_name].suffix}"
    path.write_bytes(content)
    return FORMATS[format_name].read(path)


def check_logits(model: Any, exported: Runner) -> None:
    for shape in OTHERS:
        parity = compare(reference(model, "mask_former"), exported, images(*shape))
        assert parity.difference < TOLERANCE, shape


def test_a_programs_logits_equal_the_models_at_any_size_and_batch(
    model: Any, program: ExportedProgram
) -> None:
    check_logits(model, program.module())


@pytest.mark.slow
def test_logits_of_a_programs_files_equal_the_models(
    model: Any, program: ExportedProgram, tmp_path: Path
) -> None:
    check_logits(model, read("torch-export", program_file(program), tmp_path))
    pytest.importorskip("onnxruntime")
    check_logits(model, read("onnx", onnx_file(program, Logits.outputs), tmp_path))


def test_logits_of_torchscript_equal_the_models(model: Any, tmp_path: Path) -> None:
    graph = graphs_of(model)["mask_former"]
    content = FORMATS["torchscript"].encode(graph, images(*EXAMPLE), True)
    check_logits(model, read("torchscript", content, tmp_path))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def differing(found: Tensor, expected: Tensor) -> float:
    return float((found != expected).float().mean())


@torch.no_grad()
def test_logits_give_the_models_semantic_panoptic_and_instance_results(
    model: Any, program: ExportedProgram
) -> None:
    image = images(2, 70, 150)[0]  # three segments of two classes, and void
    padded = model.pixel_mean.expand(3, 96, 160).clone()
    padded[:, :70, :150] = image
    (eager,) = model.predict([{"image": image}])
    classes, masks = (output[0] for output in program.module()(padded[None]))
    exported = replace(eager, mask_cls=classes, mask_pred=masks)
    close(exported.semantic_scores(), eager.semantic_scores())
    (found, segments), (expected, expected_segments) = (
        logits.panoptic(thing_ids=[0, 1], object_mask_threshold=0.1, overlap_threshold=0.1)
        for logits in (exported, eager)
    )
    classes, expected_classes = (
        [segment["category_id"] for segment in parts] for parts in (segments, expected_segments)
    )
    assert classes == expected_classes and len(classes) > 1
    assert differing(found, expected) < 1e-3
    found, expected = (logits.instances(topk=5) for logits in (exported, eager))
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    close(found.scores, expected.scores)
    assert differing(found.pred_masks, expected.pred_masks) < 1e-3


@torch.no_grad()
def test_a_graph_and_its_reference_predict_once_not_after_each_layer(model: Any) -> None:
    counts: list[int] = []
    hook = model.sem_seg_head.register_forward_hook(
        lambda head, arguments, outputs: counts.append(len(layer_predictions(outputs)))
    )
    graph = graphs_of(model)["mask_former"]  # its copy of the head has the hook, too
    image = images(1, 64, 64)
    graph(image)
    reference(model, "mask_former")(image)
    hook.remove()
    assert counts == [1, 1]
