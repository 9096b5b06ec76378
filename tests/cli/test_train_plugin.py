"""A model with a user's plug-in is trained; its checkpoint and config name the plug-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import mask_former
from mask_former import MaskFormerPredictor
from mask_former.config.loading import load_cfg
from mask_former.registries import MissingPluginError
from mask_former.utils.weight_files import read_extras
from tests.helpers.own_data import write_semantic_folder
from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins
from tests.helpers.train_net_runs import (
    SCRIPT,
    SMALL_RUN,
    TINY_SWIN,
    config_path,
    environment,
    pairs,
    run,
)

SETTINGS = {
    **SMALL_RUN,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "FinestMapDecoder",
    "MODEL.FINEST_MAP.KERNEL": 1,
    **TINY_SWIN,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "INPUT.CROP.SIZE": [32, 32],
    "SOLVER.MAX_ITER": 1,
}


def test_checkpoint_and_config_are_refused_without_the_plugin_and_accepted_with_it(
    tmp_path: Path,
) -> None:
    write_semantic_folder(tmp_path, (0, 255))
    (tmp_path / "classes.txt").write_text("255: dog\n0: ground\n")
    plugin, output = tmp_path / "finest_map.py", tmp_path / "out"
    plugin.write_text(FINEST_MAP_DECODER)
    data = "--train-images i --train-labels l --classes classes.txt --plugin finest_map.py"
    words = ["--config-file", str(config_path("custom/maskformer_semantic.yaml")), *data.split()]
    settings = pairs({**SETTINGS, "OUTPUT_DIR": output})
    run([str(SCRIPT), *words, *settings], cwd=tmp_path, environment=environment(tmp_path))

    weights, config = output / "model_final.pth", output / "config.yaml"
    assert read_extras(weights)["inference"]["plugins"] == ["finest_map.py"]
    assert yaml.safe_load(config.read_text())["MODEL"]["FINEST_MAP"] == {"KERNEL": 1}
    needs = r"needs the plug-in finest_map\.py, .* --plugin finest_map\.py .*load_plugin\("
    for source in (output, weights):
        with pytest.raises(MissingPluginError, match=needs):
            MaskFormerPredictor.from_pretrained(source, device="cpu")
    plain = tmp_path / "plain.yaml"  # names no plug-in; the checkpoint does
    plain.write_text(yaml.safe_dump(yaml.safe_load(config.read_text())))
    with pytest.raises(MissingPluginError, match=rf"model_final\.pth {needs}"):
        MaskFormerPredictor.from_pretrained(weights, config_file=plain, device="cpu")
    with pytest.raises(MissingPluginError, match=needs):
        load_cfg(str(config))

    with forgetting_plugins():
        decoder = mask_former.load_plugin(plugin).FinestMapDecoder
        for source in (output, weights):
            predictor = MaskFormerPredictor.from_pretrained(source, device="cpu")
            assert isinstance(predictor.model.sem_seg_head.pixel_decoder, decoder)
            assert predictor.cfg.MODEL.FINEST_MAP.KERNEL == 1
            assert predictor.classes.names == ["dog", "ground"]
