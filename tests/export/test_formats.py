"""Exported graphs equal the model, at other image and batch sizes than those of the example."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mask_former.export import FORMATS, compare, formats, graphs_of
from mask_former.export.verification import reference
from tests.helpers import tiny_networks
from tests.robustness.isolation import isolated
from tests.robustness.trainings import limit_files

EXAMPLE = (2, 3, 96, 128)
OTHERS = [(1, 3, 64, 160), (3, 3, 128, 64)]
TOLERANCE = 1e-3
"""The command's default. Group norms of tiny maps amplify fp32 rounding to 1e-4 even in eager."""


@functools.cache
def tiny_network(family: str, queries: int = 6) -> Any:
    # the time of an export grows with the number of layers
    shallow = ["MODEL.RESNETS.DEPTH", 18] if family == "resnet" else []
    key = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"
    return tiny_networks.tiny_network(family, [*shallow, key, queries])


@functools.cache
def graph_of(family: str) -> Any:
    return graphs_of(tiny_network(family))["mask_former"]


@pytest.fixture(autouse=True, scope="module")
def one_program_per_graph() -> Iterator[None]:
    """Share programs of torch.export among formats: exporting them takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "export_program", functools.cache(formats.export_program))
        yield


def many_classes(family: str) -> Any:
    """Return a model with confident queries, so that its maps have several classes."""
    model = copy.deepcopy(tiny_network(family, queries=12))
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        for layer in (predictor.class_embed, predictor.mask_embed.layers[-1]):
            layer.weight.mul_(20)
    return model


@functools.cache
def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(shape[0])) * 255


def write(graph: Any, format_name: str, folder: Path, dynamic: bool = True) -> Any:
    pytest.importorskip("onnxruntime" if format_name == "onnx" else "torch")
    kind = FORMATS[format_name]
    path = folder / f"graph{kind.suffix}"
    kind.write(graph, images(*EXAMPLE), path, dynamic)
    assert [file.name for file in folder.iterdir()] == [path.name]  # weights are in the same file
    return kind.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_networks.FAMILIES)
@pytest.mark.parametrize("format_name", FORMATS)
def test_logits_equal_the_models_at_any_size_and_batch(family, format_name, tmp_path):
    exported = write(graph_of(family), format_name, tmp_path)
    for shape in [EXAMPLE, *OTHERS]:
        parity = compare(reference(tiny_network(family), "mask_former"), exported, images(*shape))
        assert parity.difference < TOLERANCE, shape


@pytest.mark.parametrize("family, format_name", [("resnet", "onnx"), ("swin", "torchscript")])
def test_the_class_map_equals_the_models_semantic_result(family, format_name, tmp_path):
    model = many_classes(family)
    exported = write(graphs_of(model)["class_map"], format_name, tmp_path)
    for shape in OTHERS:
        batch = images(*shape)
        with torch.no_grad():
            results = model([{"image": image} for image in batch])
        expected = torch.stack([result["sem_seg"].argmax(0) for result in results])
        assert len(expected.unique()) > 1
        assert (exported(batch)[0] != expected).float().mean() < 1e-3


def test_a_swin_can_be_exported_if_its_windows_need_no_padding(tmp_path):
    # 3 divides the sides of all four maps, so nothing is padded.
    exported = write(graph_of("swin"), "torch-export", tmp_path)
    eager = reference(tiny_network("swin"), "mask_former")
    assert compare(eager, exported, images(1, 3, 96, 192)).difference < TOLERANCE


def test_a_static_graph_refuses_other_sizes(tmp_path):
    exported = write(graph_of("resnet"), "onnx", tmp_path, dynamic=False)
    exported(images(*EXAMPLE))
    with pytest.raises(Exception, match=r"(?i)invalid dimensions"):
        exported(images(*OTHERS[0]))


class Scaled(nn.Module):
    """A graph of a few kilobytes that is exported within seconds."""

    outputs = ("scaled",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 64, 64))

    def forward(self, image):
        return image * self.weight


def write_with_little_room(format_name, path):
    limit_files(20_000)
    FORMATS[format_name].write(Scaled().eval(), images(1, 3, 64, 64), path, False)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_full_disk_is_an_error_with_the_files_name_and_leaves_the_earlier_file(
    format_name, tmp_path
):
    pytest.importorskip("onnxruntime" if format_name == "onnx" else "torch")
    path = tmp_path / f"graph{FORMATS[format_name].suffix}"
    path.write_text("earlier")
    outcome = isolated(write_with_little_room, format_name, path)
    assert isinstance(outcome.error, OSError), outcome  # torch's own writer ends the process
    assert "File too large; nothing was changed" in str(outcome.error)
    assert str(path) in str(outcome.error) and path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
