"""A user's mistake gives one line and exit code 2; bugs and failed trainings, a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog
from detectron2.engine.train_loop import TrainerBase

from mask_former.cli import train
from mask_former.registries import LOSS_REGISTRY, lookup
from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins
from tests.helpers.tiny_model import DATASET, tiny_settings

pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a config with an empty dataset, and a plug-in next to it."""
    DatasetCatalog.register(DATASET, list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the command sets it; restored after the test
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finest_map.py").write_text(FINEST_MAP_DECODER)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    with forgetting_plugins():
        yield path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "--config-file is missing: give the YAML file of a config"),
        ("--config-file gone.yaml", "There is no config file gone.yaml"),
        ("--config-file tiny.yaml DATASETS.TRAIN ()", "tiny.yaml: DATASETS.TRAIN is empty"),
        ("--config-file tiny.yaml SEEED 1", "there is no config key SEEED; did you mean SEED"),
        ("--config-file tiny.yaml SEED", "Expected KEY VALUE pairs, got 1 words: SEED"),
        ("--config-file tiny.yaml --plugin gone.py", "The plug-in gone.py is missing"),
        ("--config-file tiny.yaml --train-images i", "--train-labels is missing: training needs"),
        ("--config-file tiny.yaml --eval-only MODEL.WEIGHTS ''", "MODEL.WEIGHTS is not set"),
        ("--config-file tiny.yaml --eval-only MODEL.WEIGHTS x.pth", "There is no checkpoint x.pth"),
        (
            "--config-file tiny.yaml --eval-only DATASETS.TEST ('unheard_of',)",
            "DATASETS.TEST has 'unheard_of', which is not registered",
        ),
        (
            "--config-file tiny.yaml DATASETS.TRAIN ('unheard_of',)",
            "DATASETS.TRAIN has 'unheard_of', which is not registered",
        ),
    ],
)
def test_a_mistake_is_an_error_of_one_line(
    config: Path, words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train.main([word.strip("'") for word in words.split()])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert line in error.splitlines()[-1] and error.splitlines()[-1].startswith("train_net: ")
    assert "Traceback" not in error and error.count("train_net") == 1


def test_a_bug_of_a_plugin_keeps_its_traceback(config: Path) -> None:
    text = FINEST_MAP_DECODER.replace("cfg.MODEL.FINEST_MAP.KERNEL", "{}['KERNEL']")
    Path("finest_map.py").write_text(text)
    words = "--config-file tiny.yaml --plugin finest_map.py --eval-only"
    with pytest.raises(KeyError, match="KERNEL"):
        train.main([*words.split(), "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FinestMapDecoder"])


@pytest.mark.parametrize("in_training", [False, True])
def test_an_error_in_a_training_keeps_its_traceback(
    config: Path, in_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(TrainerBase):
        def run_step(self) -> None:
            lookup(LOSS_REGISTRY, "unheard of", "SOME.KEY")

    def fail(*_: object, **__: object) -> None:
        Failing().train(0, 1) if in_training else Failing().run_step()

    monkeypatch.setattr(train, "evaluate", fail)
    with pytest.raises(KeyError if in_training else SystemExit):
        train.main(["--config-file", "tiny.yaml", "--eval-only"])
