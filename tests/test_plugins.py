"""A file outside the package can be a plug-in, and errors name it if it is needed and missing."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

import mask_former
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import load_cfg
from mask_former.registries import MissingPluginError, load_plugin, loaded_plugins, plugins
from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with forgetting_plugins():
        yield


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    file = tmp_path / "finest_map.py"
    file.write_text(FINEST_MAP_DECODER)
    return file


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_its_parts_are_registered_and_its_keys_are_in_the_config(decoder: Path) -> None:
    module = mask_former.load_plugin(decoder)
    assert SEM_SEG_HEADS_REGISTRY.get("FinestMapDecoder") is module.FinestMapDecoder
    assert get_mask_former_cfg().MODEL.FINEST_MAP.KERNEL == 3
    assert plugins()[-1] is module and loaded_plugins() == (decoder,)


def test_loading_a_file_twice_has_no_further_effect(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_plugin(str(decoder))
    monkeypatch.chdir(decoder.parent)
    assert load_plugin("finest_map.py") is module
    assert plugins().count(module) == 1


def test_a_file_that_was_imported_before_is_not_run_again(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(decoder.parent))
    module = importlib.import_module("finest_map")
    try:
        assert load_plugin(decoder) is module
    finally:
        sys.modules.pop("finest_map")


def test_objects_of_a_plugin_can_be_pickled(tmp_path: Path) -> None:
    text = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n"
    module = load_plugin(write(tmp_path / "with-dash.py", text))
    assert pickle.loads(pickle.dumps(module.A(2))) == module.A(2)


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("gone.py", FileNotFoundError, r"The plug-in \S+gone\.py is missing"),
        ("part.txt", ValueError, r"part\.txt is not a Python file: expected a file NAME\.py"),
        ("folder.py", ValueError, r"folder\.py is not a Python file"),
        ("syntax.py", ValueError, r"syntax\.py cannot be imported: line 2: SyntaxError"),
        ("raises.py", ValueError, r"raises\.py cannot be imported: line 3: KeyError: unknown"),
        ("lacks.py", ValueError, r"lacks\.py .*line 1: ModuleNotFoundError: .*'no_such_module'"),
        (
            "taken.py",
            ValueError,
            r"taken\.py .*line 2: AssertionError: .*'MaskFormerHead' was already registered",
        ),
        ("other/raises_not.py", ValueError, r"raises_not\.py and \S+ share a name.*rename one"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_reason(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "folder.py").mkdir()
    write(tmp_path / "part.txt", "")
    write(tmp_path / "syntax.py", "x = 1\nx = = 2\n")
    write(tmp_path / "raises.py", "def f():\n\n    raise KeyError('unknown')\nf()\n")
    write(tmp_path / "lacks.py", "import no_such_module\n")
    register = "SEM_SEG_HEADS_REGISTRY.register(type('MaskFormerHead', (), {}))\n"
    write(
        tmp_path / "taken.py", f"from detectron2.modeling import SEM_SEG_HEADS_REGISTRY\n{register}"
    )
    load_plugin(write(tmp_path / "raises_not.py", ""))
    write(tmp_path / "other" / "raises_not.py", "")
    with pytest.raises(error, match=message):
        load_plugin(tmp_path / name)
    assert loaded_plugins() == (tmp_path / "raises_not.py",)


@pytest.mark.parametrize(
    "setting, unexplained",
    [
        ("MODEL: {FINEST_MAP: {KERNEL: 1}}", "no config key MODEL.FINEST_MAP"),
        ("MODEL: {SEM_SEG_HEAD: {PIXEL_DECODER_NAME: FinestMapDecoder}}", "is not registered"),
    ],
)
def test_a_config_names_the_plugin_that_it_needs(
    decoder: Path, tmp_path: Path, setting: str, unexplained: str
) -> None:
    config = write(tmp_path / "x.yaml", f"# needs --plugin finest_map.py\n{setting}\n")
    with pytest.raises(MissingPluginError, match=r"x\.yaml needs the plug-in finest_map\.py") as e:
        load_cfg(config)
    message = e.value.args[0]
    assert "--plugin finest_map.py" in message
    assert "mask_former.load_plugin('finest_map.py')" in message
    assert unexplained in message
    load_plugin(decoder)
    load_cfg(config, ["MODEL.DEVICE", "cpu"])


def test_a_config_loads_without_a_plugin_that_it_names_but_does_not_use(tmp_path: Path) -> None:
    config = write(tmp_path / "x.yaml", "# needs --plugin a_loss.py\nSEED: 1\n")
    assert load_cfg(config).SEED == 1


def test_a_mistake_in_a_config_is_not_blamed_on_plugins_that_are_loaded(
    decoder: Path, tmp_path: Path
) -> None:
    load_plugin(decoder)
    config = write(tmp_path / "x.yaml", "# needs --plugin finest_map.py\nSEEED: 1\n")
    with pytest.raises(KeyError, match="there is no config key SEEED; did you mean SEED") as e:
        load_cfg(config)
    assert not isinstance(e.value, MissingPluginError)
