"""MODEL_ZOO.md agrees with the files that it describes."""

from __future__ import annotations

import re

import pytest
import yaml

from mask_former.checkpoint.inference_data import classes_of, inference_settings
from mask_former.config.loading import cfg_from_settings, load_cfg
from mask_former.utils.weight_files import read_extras
from tests.helpers.paths import ROOT
from tests.helpers.published_results import RESULTS, WEIGHTS_LICENCE

ZOO = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
MODELS = sorted(path.stem for path in (ROOT / "model_zoo").glob("*.safetensors"))


def row_of(config: str) -> str:
    """Return the only table row with a link to this config."""
    (row,) = [line for line in ZOO.splitlines() if line.startswith("|") and f"({config})" in line]
    return row


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_row(config: str) -> dict[str, str]:
    """Return the cells of the row of a config, by column."""
    row, lines = row_of(config), ZOO.splitlines()
    above = lines[: lines.index(row)]
    header = next(line for line in reversed(above) if line.startswith("| config |"))
    return dict(zip(cells_of(header), cells_of(row), strict=True))


def published_cells(path: str) -> dict[str, str]:
    """Return the published scores and settings of a config, by column."""
    row = dict(RESULTS[path])
    name = row["Name"]["text"]
    for key in ("Name", "section", "dataset", "model id", "download"):
        del row[key]
    if "epochs" in row:
        row["lr sched"] = f"{row.pop('epochs')} epochs"
    if "iterations" in row:
        row["lr sched"] = row.pop("iterations")
    return {**row, "config": f"[{name}](configs/{path})"}


@pytest.mark.parametrize("path", RESULTS)
def test_every_published_model_has_one_row_with_its_scores_and_links(path: str) -> None:
    found = table_row(f"configs/{path}")
    weights = found.pop("weights")
    assert {column: text for column, text in found.items() if text} == published_cells(path)
    assert all(f"({link})" in weights for link in RESULTS[path]["download"]["links"])


def test_the_licence_of_the_published_weights_is_stated_for_each_model_family() -> None:
    sections = re.split(r"^## ", ZOO, flags=re.MULTILINE)[1:]
    *published, eomt = [text for text in sections if text.startswith("The published")]
    assert len(published) == 2 and all(
        f"**The weights are {WEIGHTS_LICENCE}**" in text for text in published
    )
    assert "names no other licence for the weights" in eomt and "DINOv3" in eomt


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
