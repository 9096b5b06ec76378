"""The reference implementation gives the same results as ours, so that timings are comparable."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone import swin
from profiling.reference import build_reference_model
from profiling.workload import Workload, force_confident, random_batch

from mask_former.config.loading import load_cfg
from mask_former.structures import layer_predictions
from tests.helpers.tiny_model import write_tiny_model

EVERYTHING = {"PANOPTIC_ON": True, "INSTANCE_ON": True, "OVERLAP_THRESHOLD": 0.3}
TARGETS = Workload(size=(64, 80), output_size=(50, 90), images=2, targets=3)


@pytest.fixture
def build(tmp_path):
    """Return a function that builds our model and the reference model with the same weights."""

    def build(*opts, **test):
        config, weights = write_tiny_model(tmp_path, **test)
        cfg = load_cfg(str(config), list(opts))
        ours, plain = build_model(cfg), build_reference_model(cfg)
        ours.load_state_dict(torch.load(weights)["model"], strict=False)  # DEC_LAYERS may be larger
        plain.load_state_dict(ours.state_dict())
        return ours, plain

    return build


def results(model, *, segments=None):
    model.eval()
    if segments:
        model.sem_seg_head.register_forward_hook(
            lambda *call: force_confident(call[-1]["pred_logits"], segments)
        )
    with torch.no_grad():
        return model(random_batch(TARGETS, 4))


@pytest.mark.parametrize("before", [False, True], ids=["resized after", "resized before"])
def test_semantic_results_are_equal(build, before):
    ours, plain = build(SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=before)
    for found, expected in zip(results(plain), results(ours), strict=True):
        assert found["sem_seg"].shape == (4, 50, 90)
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("segments", [None, 5], ids=["as it is", "confident queries"])
def test_panoptic_and_instance_results_are_equal(build, segments):
    ours, plain = build(**EVERYTHING)
    found, expected = results(plain, segments=segments), results(ours, segments=segments)
    for one, other in zip(found, expected, strict=True):
        ids, info = one["panoptic_seg"]
        assert (ids == other["panoptic_seg"][0]).float().mean() > 0.999  # rounding of ties
        assert [tuple(segment.values())[:3] for segment in info] == [
            tuple(segment.values())[:3] for segment in other["panoptic_seg"][1]
        ]
        assert segments is None or len(info) > 1
        one, other = one["instances"], other["instances"]
        assert len(one) == len(other) > 0
        assert one.pred_classes.tolist() == other.pred_classes.tolist()
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
        assert (one.pred_masks == other.pred_masks).float().mean() > 0.999


def test_losses_and_gradients_are_equal(build):
    gradients = []
    losses = []
    for model in build("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.DROPOUT", "0.0"):
        model.backbone.eval()  # no dropped paths
        values = model(random_batch(TARGETS, 4))
        sum(values.values()).backward()
        losses.append({name: value.item() for name, value in values.items()})
        gradients.append(model.sem_seg_head.predictor.query_embed.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert set(losses[0]) == {f"loss_{n}{s}" for n in ("ce", "mask", "dice") for s in ("", "_0")}
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_matches_are_equal(build):
    ours, plain = build()
    torch.manual_seed(0)
    found = {"pred_logits": 10 * torch.randn(2, 6, 5), "pred_masks": 3 * torch.randn(2, 6, 16, 20)}
    targets = [
        {"labels": torch.tensor([3, 0, 1]), "masks": torch.rand(3, 64, 80) > 0.5} for _ in range(2)
    ]
    matches = (model.criterion.matcher(found, targets) for model in (plain, ours))
    for match, expected in zip(*matches, strict=True):
        assert [one.tolist() for one in match] == [one.tolist() for one in expected]


def test_the_reference_predicts_with_every_layer_in_inference(build):
    ours, plain = (model.eval() for model in build("MODEL.MASK_FORMER.DEC_LAYERS", "2"))
    with torch.no_grad():
        layers = [
            len(layer_predictions(m.network(torch.zeros(1, 3, 64, 64)))) for m in (ours, plain)
        ]
    assert layers == [1, 2]
    assert not any(module.training for module in plain.sem_seg_head.predictor.children())


def test_the_swin_of_the_reference_is_detectron2s(build):
    ours, plain = build()
    for kind in (swin.WindowAttention, swin.SwinTransformerBlock, swin.BasicLayer):
        assert kind in {type(module) for module in plain.backbone.modules()}
        assert kind not in {type(module) for module in ours.backbone.modules()}


def test_losses_that_the_reference_lacks_are_refused(build):
    with pytest.raises(ValueError, match=r"TRAIN_NUM_POINTS is 64.*set it to 0"):
        build("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64")
    with pytest.raises(ValueError, match=r"MASK_IGNORE is True.*set it to False"):
        build("MODEL.MASK_FORMER.MASK_IGNORE", "True")
    with pytest.raises(ValueError, match=r"MASK_TERM is cross_entropy.*set it to focal"):
        build("MODEL.MASK_FORMER.MASK_TERM", "cross_entropy")
