"""Training stops at losses that are not finite, before they reach the weights."""

from __future__ import annotations

import pytest
import torch

from mask_former.engine.nonfinite import check_losses, load_batch
from mask_former.losses import NonFiniteError
from tests.helpers import planting as p

pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_layer(value):
    losses = {"loss_ce": 1.0, "loss_ce_0": 2.0, "loss_ce_1": 1e30, "loss_sem_seg": 3.0}
    check_losses(losses)
    for name, where in (
        ("loss_ce_1", " (decoder layer 2 of 3)"),
        ("loss_ce", " (decoder layer 3 of 3)"),
        ("loss_sem_seg", ""),
    ):
        with pytest.raises(NonFiniteError) as caught:
            check_losses({**losses, name: value})
        assert str(caught.value) == f"The loss is not finite: {name}{where} is {value}."


def test_a_nonfinite_loss_keeps_the_weights_and_saves_the_batch(tmp_path):
    batch = [p.example(0, file_name="a.png"), p.example(0, file_name="b.png")]
    batch[0]["height"], batch[0]["image_id"] = 64, "a"
    loop = p.train_loop(tmp_path, batch)
    p.make_nan(loop.model.sem_seg_head.predictor.class_embed)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"(?s)iteration 0.*Images: a.png, b.png"):
        loop.run_step()
    for name, value in loop.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    kept = load_batch(tmp_path / "nonfinite_batch.pth")
    assert [example.keys() for example in kept] == [example.keys() for example in batch]
    for found, expected in zip(kept, batch, strict=True):
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["instances"].gt_masks, expected["instances"].gt_masks)
        assert found["instances"].image_size == expected["instances"].image_size
        assert found["file_name"] == expected["file_name"]
    assert kept[0]["height"] == 64 and kept[0]["image_id"] == "a"
    assert loop.model(kept).keys() == loop.model(batch).keys()


def test_losses_are_read_from_a_gpu_once_a_step(tmp_path, monkeypatch):
    reads = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: reads.append(self.shape) or cpu(self))
    loop = p.train(tmp_path, [p.example()])
    # The matcher's costs (with the labels), and the three losses.
    assert reads == [torch.Size([2 + 6 * 2]), torch.Size([3])]
    assert loop.model.training
