"""MODEL_ZOO.md agrees with the files that it describes."""

from __future__ import annotations

import gzip
import json
import re

import pytest
import yaml

from mask_former.checkpoint.inference_data import classes_of, inference_settings
from mask_former.config.loading import cfg_from_settings, load_cfg
from mask_former.utils.weight_files import read_extras
from tests.helpers.paths import ROOT

ZOO = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
PUBLISHED = json.loads(
    gzip.decompress((ROOT / "tests/golden/published_results.json.gz").read_bytes())
)
MODELS = sorted(path.stem for path in (ROOT / "model_zoo").glob("*.safetensors"))


def row_of(config: str) -> str:
    """Return the only table row with a link to this config."""
    (row,) = [line for line in ZOO.splitlines() if line.startswith("|") and f"({config})" in line]
    return row


@pytest.mark.parametrize("result", PUBLISHED, ids=lambda r: r["Name"]["links"][0])
def test_every_published_model_has_one_row_with_its_scores_and_links(result):
    row = row_of(result["Name"]["links"][0])
    numbers = [result[key] for key in ("train mem (MB)", "mIoU", "PQ", "lr sched") if key in result]
    assert all(f"| {number} " in row for number in numbers)
    assert all(f"({link})" in row for link in result["download"]["links"])


def test_every_link_to_a_file_has_a_target():
    links = re.findall(r"\]\(((?!http)[^)#]+)", ZOO)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", MODELS)
def test_every_model_that_comes_with_the_code_has_a_config_a_card_a_row_and_is_small(name):
    assert (ROOT / "model_zoo" / f"{name}.yaml").is_file()
    assert (ROOT / "model_zoo" / f"{name}.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    assert row_of(f"model_zoo/{name}.yaml")
    assert (ROOT / "model_zoo" / f"{name}.safetensors").stat().st_size <= 12e6


@pytest.mark.parametrize("name", MODELS)
def test_every_model_that_comes_with_the_code_carries_the_settings_of_its_config(name):
    cfg = load_cfg(str(ROOT / "model_zoo" / f"{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    carried = read_extras(ROOT / "model_zoo" / f"{name}.safetensors")["inference"]
    assert carried["classes"] == classes_of(cfg).to_data()
    # keys that are newer than the file have their defaults
    settings = cfg_from_settings(yaml.safe_load(carried["config"]), [], name)
    assert inference_settings(settings) == inference_settings(cfg)
