"""The inference path from padding to resizing gives the published results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.golden_cases import build_case_model, load_case


def test_the_inference_path_gives_the_published_results(shared_dir):
    facts, arrays = load_case("inference_model", shared_dir / "golden")
    _, model = build_case_model(facts)
    model.eval()
    output = {
        "pred_logits": torch.from_numpy(arrays["pred_logits"])[None],
        "pred_masks": torch.from_numpy(arrays["pred_masks"])[None],
    }
    model.sem_seg_head.forward = lambda features: output
    height, width = facts["output_size"]
    with torch.no_grad():
        (result,) = model(
            [{"image": torch.from_numpy(arrays["image"]), "height": height, "width": width}]
        )
    ids, segments = result["panoptic_seg"]
    assert (ids.numpy() != arrays["panoptic"]).mean() <= 1e-4
    keys = ("id", "isthing", "category_id")
    assert [{key: segment[key] for key in keys} for segment in segments] == facts["segments_info"]
    semantic = result["sem_seg"][:, ::3, ::3].numpy()
    np.testing.assert_allclose(semantic, arrays["sem_every3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ade20k150_maskformer_R50", "coco_panoptic_R50"])
def test_the_figures_in_the_repository_equal_those_of_the_full_case(name, shared_dir):
    facts, arrays = load_case(name)
    full, full_arrays = load_case(name, shared_dir / "golden")
    assert facts["losses"] == full["losses"]
    flat = full_arrays["pred_logits"].reshape(-1)
    kept = arrays["pred_logits"]
    np.testing.assert_array_equal(flat[:: flat.size // len(kept)][: len(kept)], kept)
