"""Config keys that fit registered datasets, and the tables that a config names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import load_cfg
from mask_former.data import register_instances, register_semantic
from mask_former.data.datasets.config_keys import fitting_keys, use_datasets
from tests.helpers.own_data import write_instances, write_semantic_folder

pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def semantic(tmp_path: Path) -> tuple[str, str]:
    write_semantic_folder(tmp_path, (1, 2))
    for name in ("own_a", "own_b"):
        classes = ["1: ground", "2: dog", "3: cat"]
        register_semantic(name, tmp_path / "i", tmp_path / "l", classes, ignore_label=0)
    return "own_a", "own_b"


def keys_of(train: str, *test: str) -> dict[str, Any]:
    return {key.rpartition(".")[2]: v for key, v in fitting_keys([train], test).items()}


def test_keys_for_a_semantic_dataset(semantic: tuple[str, str]) -> None:
    assert keys_of(*semantic) == {
        "TRAIN": ["own_a"],
        "TEST": ["own_b"],
        "DATASET_MAPPER_NAME": "mask_former_semantic",
        "NUM_CLASSES": 3,
        "IGNORE_VALUE": 255,
        "SEMANTIC_ON": True,
    }


def test_keys_for_instances_count_things_and_for_panoptic_data_all_classes(tmp_path: Path) -> None:
    register_instances("own", *write_instances(tmp_path))
    keys = keys_of("own")
    assert (keys["TEST"], keys["NUM_CLASSES"], keys["INSTANCE_ON"]) == ([], 2, True)
    assert keys["DATASET_MAPPER_NAME"] == "mask_former_instance"
    keys = keys_of("shapes_panoptic_train")
    assert (keys["NUM_CLASSES"], keys["PANOPTIC_ON"]) == (12, True)
    assert keys["DATASET_MAPPER_NAME"] == "mask_former_panoptic"


def test_a_mapper_with_large_scale_jitter_is_replaced_by_one_with_it(
    semantic: tuple[str, str], tmp_path: Path
) -> None:
    register_instances("own", *write_instances(tmp_path))
    names = {"own_a": "mask_former_semantic_lsj", "own": "coco_instance_lsj"}
    names["shapes_panoptic_train"] = "coco_panoptic_lsj"
    cfg = get_mask_former_cfg()
    for mapper in names.values():
        for dataset, expected in names.items():
            cfg.INPUT.DATASET_MAPPER_NAME = mapper
            use_datasets(cfg, [dataset])
            assert expected == cfg.INPUT.DATASET_MAPPER_NAME


def test_use_datasets_sets_the_fitting_keys_and_no_others(semantic: tuple[str, str]) -> None:
    cfg = get_mask_former_cfg()
    before = cfg.clone()
    use_datasets(cfg, ["own_a"], ["own_b"])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.DATASETS.TEST == ("own_b",)
    use_datasets(cfg, ["own_b"])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("own_b",), ())
    assert cfg.SOLVER == before.SOLVER


def test_unknown_datasets_and_differing_classes_are_errors(semantic: tuple[str, str]) -> None:
    with pytest.raises(KeyError, match="no dataset 'own_c'"):
        fitting_keys(["own_a"], ["own_c"])
    with pytest.raises(ValueError, match=r"'own_a' and 'camvid_sem_seg_val' cannot be combined"):
        fitting_keys(["own_a"], ["camvid_sem_seg_val"])
    DatasetCatalog.register("foreign", list)
    MetadataCatalog.get("foreign").evaluator_type = "lvis"
    with pytest.raises(ValueError, match="evaluator_type 'lvis'"):
        fitting_keys(["foreign"])


# ------------------------------------------------------------------------------ DATASETS.TABLES


def write_table(folder: Path, name: str = "by_hand") -> Path:
    write_semantic_folder(folder, (0, 1))
    datasets = {name: {"kind": "sem_seg", "image_root": "i", "sem_seg_root": "l"}}
    path = folder / "table.json"
    path.write_text(json.dumps({"datasets": datasets, "categories": [{"name": n} for n in "ab"]}))
    return path


def write_config(folder: Path, table: str, **datasets: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(json.dumps({"DATASETS": {"TABLES": [table], **datasets}, "VERSION": 2}))
    return str(path)


def test_loading_a_config_registers_its_tables_with_paths_relative_to_it(tmp_path: Path) -> None:
    write_table(tmp_path)
    cfg = load_cfg(write_config(tmp_path, "table.json"))
    assert tuple(cfg.DATASETS.TABLES) == (str(tmp_path / "table.json"),)
    assert len(DatasetCatalog.get("by_hand")) == 2


def test_a_config_without_a_test_dataset_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_config(tmp_path, str(write_table(tmp_path)), TRAIN=["by_hand"])
    with caplog.at_level("INFO", logger="mask_former.data.datasets.config_keys"):
        load_cfg(path)
    assert "by_hand: 2 classes (a, b), from" in caplog.text
    assert "DATASETS.TEST is empty: nothing will be evaluated." in caplog.text


def test_a_missing_table_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    path = write_config(tmp_path, "nothing.json")
    with pytest.raises(FileNotFoundError, match=r"DATASETS.TABLES names nothing\.json"):
        load_cfg(path)
    assert load_cfg(path, ["DATASETS.TABLES", "()"]).DATASETS.TABLES == ()
