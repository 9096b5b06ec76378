"""Graphs for export compute the model's network and do not modify the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame

from mask_former.export import graphs_of
from mask_former.export.graphs import _StaticSameConv
from mask_former.export.verification import Parity, compare, measure, reference
from tests.helpers import tiny_networks


def image(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 255


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_equals_timms_if_the_stride_divides_the_sides(kernel, stride, dilation):
    torch.manual_seed(0)
    conv = Conv2dSame(3, 4, kernel, stride=stride, dilation=dilation)
    x = torch.rand(1, 3, 16, 24)
    expected = conv(x)
    assert torch.equal(_StaticSameConv(conv)(x), expected)


def test_a_model_keeps_its_layers_and_its_gradients():
    model = tiny_networks.tiny_network("timm")
    kinds = [type(module) for module in model.modules()]
    graphs_of(model)
    assert [type(module) for module in model.modules()] == kinds
    assert Conv2dSame in kinds and all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("head", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_a_per_pixel_baseline_has_only_the_graph_class_map(head):
    opts = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", head]
    opts += ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 4]
    model = tiny_networks.tiny_network("resnet", opts)
    graphs = graphs_of(model)
    assert list(graphs) == ["class_map"]
    x = image(1, 3, 64, 96)
    with torch.no_grad():
        expected = model([{"image": x[0], "height": 64, "width": 96}])[0]["sem_seg"].argmax(0)
        assert torch.equal(graphs["class_map"](x)[0], expected)
    assert compare(reference(model, "class_map"), lambda x: (graphs["class_map"](x),), x).holds


def test_the_error_for_another_architecture_names_it():
    with pytest.raises(ValueError, match=r"MODEL.META_ARCHITECTURE is 'Linear'"):
        graphs_of(torch.nn.Linear(1, 1))


def test_deviations_of_a_graph_are_detected():
    x = image(1, 3, 4, 4)
    assert compare(lambda x: (x,), lambda x: (x + 5e-4,), x).holds
    assert not compare(lambda x: (x,), lambda x: (x * 1.01,), x).holds
    ids = (x > 128).long()
    other = ids.clone()
    other[0, 0, 0, 0] ^= 1
    parity = compare(lambda x: (ids,), lambda x: (other,), x)
    assert parity.difference == pytest.approx(1 / 48) and not parity.holds
    assert not Parity((1,), float("nan")).holds
    with pytest.raises(ValueError, match="the graph"):
        compare(lambda x: (x,), lambda x: (F.pad(x, (0, 1)),), x)


def test_timings_are_interleaved_and_ignore_the_first_round():
    calls: list[str] = []
    timing = measure(
        lambda x: calls.append("eager") or (x,),
        lambda x: calls.append("exported") or (x,),
        image(1),
        rounds=2,
        after_round=lambda: calls.append("|"),
    )
    assert calls == ["eager", "exported", "|"] * 3
    assert min(timing) >= 0
