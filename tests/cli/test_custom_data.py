"""A custom dataset as arguments: the resulting table and keys, and each wrong combination."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.cli.custom_data import CustomData, add_custom_data_arguments, use_custom_data
from mask_former.config.loading import load_cfg
from mask_former.config.validation import validate
from mask_former.data.datasets.catalog import read_table
from tests.helpers.own_data import write_instances, write_panoptic, write_semantic_folder
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("restored_catalogs")

CONFIGS = ROOT / "configs" / "custom"


@dataclass(frozen=True)
class Command:
    """The relevant arguments of a command."""

    data: CustomData
    config_file: str
    opts: Sequence[str]

    def use(self, *, evaluation: bool = False) -> list[str]:
        return use_custom_data(self.data, self.config_file, self.opts, evaluation=evaluation)

    def cfg(self) -> CfgNode:
        """The config after :meth:`use`."""
        return load_cfg(self.config_file, self.use())


def parse(folder: Path, words: str, *opts: str, config: str = "semantic") -> Command:
    """Parse ``words``, in which `@` stands for the folder; the output folder is its `out`."""
    parser = argparse.ArgumentParser()
    add_custom_data_arguments(parser)
    data = CustomData(**vars(parser.parse_args(words.replace("@", str(folder)).split())))
    output = ["OUTPUT_DIR", str(folder / "out"), "MODEL.DEVICE", "cpu"]
    return Command(data, str(CONFIGS / f"maskformer_{config}.yaml"), [*output, *opts])


@pytest.fixture
def semantic(tmp_path: Path) -> Path:
    write_semantic_folder(tmp_path, (0, 255))
    (tmp_path / "classes.txt").write_text("0: ground\n255: dog\n")
    return tmp_path


TRAIN = "--train-images @/i --train-labels @/l --classes @/classes.txt"
VAL = "--val-images @/i --val-labels @/l"


def test_without_such_arguments_a_config_with_datasets_is_unchanged(tmp_path: Path) -> None:
    command = parse(tmp_path, "", "DATASETS.TRAIN", "('shapes_panoptic_train',)")
    assert command.use() == command.opts and not (tmp_path / "out").exists()


def test_a_missing_training_dataset_is_an_error_except_in_evaluation(tmp_path: Path) -> None:
    command = parse(tmp_path, "")
    with pytest.raises(ValueError, match=r"maskformer_semantic\.yaml: DATASETS\.TRAIN is empty"):
        command.use()
    assert command.use(evaluation=True) == command.opts


def test_label_maps_become_a_table_in_the_output_folder_and_keys_of_the_config(
    semantic: Path,
) -> None:
    cfg = parse(semantic, f"{TRAIN} {VAL} --name pets").cfg()
    path = semantic / "out" / "pets_table.json"
    assert list(read_table(path).datasets) == ["pets_train", "pets_val"]
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("pets_train",), ("pets_val",))
    assert (str(path),) == cfg.DATASETS.TABLES
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    assert MetadataCatalog.get("pets_train").stuff_classes == ["ground", "dog"]
    assert MetadataCatalog.get("pets_val").evaluator_type == "sem_seg"


def test_the_table_alone_registers_the_data_in_another_process(semantic: Path) -> None:
    command = parse(semantic, TRAIN)
    opts = command.use()
    DatasetCatalog.remove("custom_train")
    MetadataCatalog.remove("custom_train")
    load_cfg(command.config_file, opts)
    assert len(DatasetCatalog.get("custom_train")) == 2


def test_without_validation_data_nothing_is_evaluated(semantic: Path) -> None:
    assert parse(semantic, TRAIN).cfg().DATASETS.TEST == ()


def test_keys_on_the_command_line_take_precedence(semantic: Path) -> None:
    command = parse(semantic, TRAIN, "INPUT.DATASET_MAPPER_NAME", "detr_panoptic")
    assert command.cfg().INPUT.DATASET_MAPPER_NAME == "detr_panoptic"


def test_instance_and_panoptic_data_determine_mapper_and_results(tmp_path: Path) -> None:
    write_instances(tmp_path / "n")
    words = "--train-images @/n/i --train-json @/n/x.json --name inst"
    cfg = parse(tmp_path, words, config="instance").cfg()
    assert cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_instance"
    assert cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2

    write_panoptic(tmp_path / "p")
    one = "-images @/p/i --{0}-json @/p/x.json --{0}-panoptic @/p/p "
    words = f"--train{one.format('train')} --val{one.format('val')}"
    cfg = parse(tmp_path, words).cfg()  # on the semantic config
    assert cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_panoptic"
    assert cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON and cfg.DATASETS.TEST == ("custom_val",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train-images @/i", "--train-labels is missing: training needs label maps"),
        (VAL, "--train-labels is missing"),
        ("--train-labels @/l --classes @/classes.txt", "--train-images is missing"),
        ("--train-images @/i --train-labels @/l", "--classes is missing"),
        (f"{TRAIN} --val-images @/i", "--val-labels is missing: evaluation needs --val-images and"),
        (f"{TRAIN} --train-json @/x.json", "--train-json does not fit"),
        (f"{TRAIN} --val-json @/x.json", "--val-json does not fit"),
        (f"{TRAIN} --train-panoptic @/i", "--train-panoptic does not fit"),
        ("--train-images @/i --train-json @/x --classes @/classes.txt", "--classes does not fit"),
        ("--train-images @/i --train-json @/x --ignore-label 0", "--ignore-label does not fit"),
        (
            "--train-images @/i --train-json @/x --train-panoptic @/i --val-images @/i "
            "--val-json @/x",
            "--val-panoptic is missing",
        ),
        (f"{TRAIN} --name a/b", "--name 'a/b': expected letters"),
        (f"{TRAIN} --ignore-label 255", "`ignore_label` is 255, the pixel value of a class"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_named(
    semantic: Path, words: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse(semantic, words).use()
    assert not (semantic / "out").exists()


def test_a_missing_folder_is_named(semantic: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        parse(semantic, TRAIN.replace("@/l", "@/nowhere")).use()


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
@pytest.mark.parametrize("model", ["maskformer", "mask2former"])
def test_each_custom_config_is_valid_and_starts_with_its_command(model: str, task: str) -> None:
    path = CONFIGS / f"{model}_{task}.yaml"
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu"])
    validate(cfg)
    assert f"mask_former_{task}" == cfg.INPUT.DATASET_MAPPER_NAME
    on = [t for t in ("SEMANTIC", "PANOPTIC", "INSTANCE") if cfg.MODEL.MASK_FORMER.TEST[f"{t}_ON"]]
    assert on == [task.upper()]
    head = path.read_text().split("_BASE_")[0]
    assert f"tools/train_net.py --config-file configs/custom/{model}_{task}.yaml" in head


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_the_custom_configs_of_mask2former_change_the_model_alone(task: str) -> None:
    names = (f"maskformer_{task}.yaml", f"mask2former_{task}.yaml")
    cfgs = [load_cfg(str(CONFIGS / name), ["MODEL.DEVICE", "cpu"]) for name in names]
    folders = {cfg.OUTPUT_DIR for cfg in cfgs}
    for cfg in cfgs:
        cfg.defrost()
        del cfg.MODEL["MASK_FORMER"], cfg.MODEL["SEM_SEG_HEAD"], cfg["OUTPUT_DIR"]
    assert cfgs[0] == cfgs[1] and cfgs[0].INPUT.MIN_MASK_AREA == 1
    assert folders == {f"output/custom_{task}", f"output/custom_mask2former_{task}"}
