"""Mixed-precision inference, compilation and activation checkpointing, set by the config."""

from __future__ import annotations

import warnings

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mask_former.config.validation import validate
from tests.helpers.small_backbones import resnet, swin, timm

EXAMPLE = {"image": torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255}


@pytest.fixture
def small(cfg):
    """The config of a narrow MaskFormer with semantic, panoptic and instance results."""
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.NUM_CLASSES = "MaskFormerHead", 4
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    head.CONVS_DIM = head.MASK_DIM = 32
    head.TRANSFORMER_ENC_LAYERS = 1
    node = cfg.MODEL.MASK_FORMER
    node.HIDDEN_DIM, node.NHEADS, node.DIM_FEEDFORWARD, node.DEC_LAYERS = 32, 2, 32, 2
    node.NUM_OBJECT_QUERIES = 7
    node.DROPOUT = 0.0
    node.TEST.PANOPTIC_ON = node.TEST.INSTANCE_ON = True
    return cfg


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "training"), [(resnet, True), (swin, True), (swin, False), (timm, False)]
)
def test_backbone_and_head_compile_without_a_graph_break(small, kind, training):
    kind(small)
    model = build(small).train(training)
    images = torch.randn(2, 3, 64, 96)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own warnings
        backbone, head = (
            torch.compile(module, backend="eager", fullgraph=True, dynamic=False)
            for module in (model.backbone, model.sem_seg_head)
        )
        torch.manual_seed(1)  # seeds drop path
        found = head(backbone(images))
        torch.manual_seed(1)
        expected = model.sem_seg_head(model.backbone(images))
    assert len(found["aux_outputs"]) == (1 if training else 0)
    for name in ("pred_logits", "pred_masks"):
        if not (training and kind is swin):  # drop path draws random numbers in another order
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_compile_works_in_place_and_keeps_the_parameter_names(small, monkeypatch):
    resnet(small)
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options))
    )
    small.MODEL.COMPILE = True
    model = build(small)
    assert compiled == [(m, {"dynamic": False}) for m in (model.backbone, model.sem_seg_head)]
    small.MODEL.COMPILE = False
    assert model.state_dict().keys() == build(small).state_dict().keys()


def test_activation_checkpointing_does_not_change_the_gradients(small):
    resnet(small)
    targets = {"gt_classes": torch.tensor([1, 2]), "gt_masks": torch.rand(2, 64, 96) > 0.5}
    gradients = []
    for on in (False, True):
        small.MODEL.ACTIVATION_CHECKPOINTING = on
        model = build(small).train()
        example = {**EXAMPLE, "instances": Instances((64, 96), **targets)}
        sum(model([example]).values()).backward()
        gradients.append(model.backbone.stem.conv1.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def dtypes_of(model):
    """Return a dict that receives the dtype of the head's ``pred_masks`` on each forward pass."""
    seen = {}

    def record(module, arguments, outputs):
        seen["masks"] = outputs["pred_masks"].dtype

    model.sem_seg_head.register_forward_hook(record)
    return seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_inference_runs_the_network_in_it_and_keeps_results_close(small, dtype):
    swin(small)
    plain = build(small).eval()
    small.TEST.AMP.ENABLED, small.TEST.AMP.DTYPE = True, dtype
    model = build(small)
    seen = dtypes_of(model)
    with torch.no_grad():
        expected, found = plain([EXAMPLE])[0], model.eval()([EXAMPLE])[0]
    assert seen["masks"] == getattr(torch, dtype)
    assert found["sem_seg"].dtype == torch.float32
    assert not torch.equal(found["sem_seg"], expected["sem_seg"])
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=0.05, atol=0.05)
    assert found["instances"].scores.dtype == torch.float32


def test_a_callers_autocast_affects_the_network_but_not_the_postprocessing(small):
    swin(small)
    model = build(small).eval()
    seen = dtypes_of(model)
    outputs = {}
    model.sem_seg_head.register_forward_hook(lambda *call: outputs.update(call[-1]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model([EXAMPLE])[0]["sem_seg"]
    assert seen["masks"] == torch.bfloat16 and found.dtype == torch.float32
    # The same outputs without autocast give the same result, so nothing after it was rounded.
    model.sem_seg_head.forward = lambda features: outputs
    with torch.no_grad():
        assert torch.equal(model([EXAMPLE])[0]["sem_seg"], found)


def test_an_unknown_precision_is_an_error_that_names_the_key(small):
    resnet(small)
    small.TEST.AMP.ENABLED, small.TEST.AMP.DTYPE = True, "float8"
    with pytest.raises(ValueError, match=r"TEST.AMP.DTYPE is 'float8'.*bfloat16.*float16"):
        build(small)


@pytest.mark.parametrize(
    "key", ["MODEL.COMPILE", "MODEL.ACTIVATION_CHECKPOINTING", "TEST.AMP.ENABLED"]
)
def test_keys_without_effect_on_another_architecture_are_refused(small, key):
    small.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    small.merge_from_list([key, True])
    with pytest.raises(ValueError, match=f"{key} is True.*MODEL.META_ARCHITECTURE .*'MaskFormer'"):
        validate(small)
