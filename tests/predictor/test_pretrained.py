"""The same model is loaded from every source and format of trained models."""

from __future__ import annotations

import http.server
import shutil
import threading
from functools import partial

import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog

from mask_former.checkpoint.inference_data import inference_data
from mask_former.config.loading import load_cfg
from mask_former.predictor.pretrained import find_pretrained
from mask_former.predictor.sources import packaged_models
from mask_former.predictor.trained_model import load_trained_model
from mask_former.utils.downloads import local_weights
from mask_former.utils.weight_files import read_checkpoint, write_weights
from tests.helpers.tiny_model import COLORS, DATASET, NAMES, tiny_settings, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Paths of a config, of bare weights, and of a self-contained checkpoint."""
    config, weights = write_tiny_model(tmp_path_factory.mktemp("model"), PANOPTIC_ON=True)
    complete = weights.with_name("complete.pth")
    data = inference_data(load_cfg(str(config)))
    write_weights(read_checkpoint(weights)["model"], complete, NAMES, data)
    return config, weights, complete


def check(found, tiny):
    """Check that ``found`` is the model of the fixture ``tiny``."""
    assert found.classes.names == NAMES and found.classes.thing_ids == [2, 3]
    assert [list(color) for color in found.classes.colors] == COLORS
    assert found.cfg.INPUT.MIN_SIZE_TEST == 64 and found.cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
    assert found.cfg.is_frozen() and found.cfg.MODEL.DEVICE == "cpu"
    expected = read_checkpoint(tiny[1])["model"]
    state = load_trained_model(found.cfg, found.weights).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_a_checkpoint_needs_no_config_file(tiny, tmp_path, suffix):
    content = read_checkpoint(tiny[2])
    path = tmp_path / f"x{suffix}"
    write_weights(content["model"], path, NAMES, content["inference"])
    check(find_pretrained(path, device="cpu"), tiny)
    check(find_pretrained(f"{path}", device="cpu"), tiny)


def test_the_training_datasets_need_not_be_registered(tiny, tmp_path):
    content = read_checkpoint(tiny[2])
    entry = content["inference"]
    entry["config"] = entry["config"].replace(DATASET, "known_elsewhere_train")
    write_weights(content["model"], tmp_path / "x.pth", None, entry)
    check(find_pretrained(tmp_path / "x.pth", device="cpu"), tiny)


@pytest.mark.parametrize("weights", [1, 2])
def test_a_checkpoint_with_a_config_file_is_loaded(tiny, weights):
    check(find_pretrained(tiny[weights], config_file=tiny[0], device="cpu"), tiny)


def test_a_config_file_that_names_its_weights_is_loaded(tiny):
    check(find_pretrained(tiny[0], opts=("MODEL.WEIGHTS", str(tiny[1]))), tiny)
    with pytest.raises(ValueError, match=r"tiny\.yaml has no MODEL\.WEIGHTS"):
        find_pretrained(tiny[0])


@pytest.mark.parametrize("name", ["model_final.pth", "model_0000009.pth", "anything.safetensors"])
@pytest.mark.parametrize("weights", [1, 2])
def test_a_folder_with_a_checkpoint_and_its_config_is_loaded(tiny, tmp_path, name, weights):
    if name.endswith(".pth"):
        shutil.copy(tiny[weights], tmp_path / name)
    else:
        write_weights(read_checkpoint(tiny[weights])["model"], tmp_path / name)
    shutil.copy(tiny[0], tmp_path / "config.yaml")
    check(find_pretrained(tmp_path), tiny)


def test_a_folder_with_only_a_checkpoint_is_loaded(tiny, tmp_path):
    shutil.copy(tiny[2], tmp_path)
    check(find_pretrained(tmp_path, device="cpu"), tiny)


def test_a_folder_prefers_the_final_then_the_last_then_the_best_checkpoint(tiny, tmp_path):
    shutil.copy(tiny[0], tmp_path / "config.yaml")
    for name in ("model_final.pth", "model_0000004.pth", "model_0000009.pth", "model_best.pth"):
        shutil.copy(tiny[2], tmp_path / name)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth\n")
    for name in ("model_final.pth", "model_0000009.pth", "model_best.pth"):
        weights = find_pretrained(tmp_path).cfg.MODEL.WEIGHTS
        assert weights == str(tmp_path / name)
        (tmp_path / name).unlink()
    shutil.copy(tiny[2], tmp_path / "model_0000008.pth")
    with pytest.raises(ValueError, match=r"2 checkpoints \(model_0000004\.pth, model_0000008\.pth"):
        find_pretrained(tmp_path)


def test_missing_tables_are_accepted_if_the_checkpoint_has_the_classes(tiny, tmp_path):
    settings = tiny_settings(PANOPTIC_ON=True)
    settings["DATASETS"]["TABLES"] = ["/somewhere/else/table.json"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(tiny[2], tmp_path / "model_final.pth")
    check(find_pretrained(tmp_path), tiny)  # the checkpoint has the classes
    shutil.copy(tiny[1], tmp_path / "model_final.pth")
    with pytest.raises(FileNotFoundError, match=r"DATASETS\.TABLES names /somewhere/else"):
        find_pretrained(tmp_path)


def test_a_url_is_downloaded_and_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = partial(QuietHandler, directory=str(tiny[2].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        check(find_pretrained(f"{url}/complete.pth", device="cpu"), tiny)
        check(find_pretrained(f"{url}/complete.pth?download=true", device="cpu"), tiny)
        with pytest.raises(OSError, match=r"none\.pth cannot be fetched"):
            find_pretrained(f"{url}/none.pth")
        server.shutdown()
    with pytest.raises(OSError, match=r"nowhere://x\.pth cannot be fetched"):
        find_pretrained("nowhere://x.pth")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_files_with_the_same_name_on_two_hosts_are_not_confused(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    found = []
    for name in ("a", "b"):
        write_weights({name: torch.zeros(1)}, tmp_path / name / "x.pth")
        handler = partial(QuietHandler, directory=str(tmp_path / name))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/x.pth"
            local = local_weights(url, by_user=True)
            server.shutdown()
        found += read_checkpoint(local)["model"]
    assert found == ["a", "b"]


def test_the_averaged_weights_of_a_checkpoint_are_loaded(tiny, tmp_path):
    content = torch.load(tiny[2], weights_only=True)
    averaged = {f"module.{name}": value for name, value in content["model"].items()}
    trained = {name: torch.zeros_like(value) for name, value in content["model"].items()}
    torch.save({**content, "model": trained, "ema": averaged}, tmp_path / "x.pth")
    check(find_pretrained(f"{tmp_path}/x.pth?ema=True", device="cpu"), tiny)


def test_packaged_models_are_loaded_by_name():
    assert {"camvid_semantic", "camvid_panoptic"} <= set(packaged_models())
    found = find_pretrained("camvid_semantic", device="cpu")
    assert found.classes.names[:2] == ["sky", "building"] and found.cfg.INPUT.MIN_SIZE_TEST == 432


@pytest.mark.parametrize(
    "change, message",
    [
        ("TEST: {SLIDING_WINDOW: {SIZE: 512, STRIDE: 1}}", r"STRIDE is 1 pixels.*too many windows"),
        ("TEST: {SLIDING_WINDOW: {SIZE: 1}}", r"SIZE 1, which gives too many windows"),
        ("INPUT: {MIN_SIZE_TEST: 60000}", r"INPUT\.MIN_SIZE_TEST is 60000; expected 0 … 8192"),
    ],
)
def test_a_checkpoint_that_carries_settings_without_bounds_is_refused(
    tiny, tmp_path, change, message
):
    content = torch.load(tiny[2], weights_only=True)
    settings = yaml.safe_load(content["inference"]["config"])
    settings["MODEL"]["MASK_FORMER"]["TEST"].update(PANOPTIC_ON=False, SEMANTIC_ON=True)
    for group, values in yaml.safe_load(change).items():
        settings.setdefault(group, {}).update(values)
    content["inference"]["config"] = yaml.safe_dump(settings)
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        find_pretrained(tmp_path / "x.pth", device="cpu")


@pytest.mark.parametrize("name", ["camvid", "none.pth", "no/such/folder"])
def test_a_missing_name_is_reported_with_the_models_that_exist(name):
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint or folder {name},.*camvid_sem"):
        find_pretrained(name)


def test_the_error_for_a_hub_name_contains_the_download_command():
    with pytest.raises(FileNotFoundError, match=r"hf download org/model-1\.0 --local-dir FOLDER"):
        find_pretrained("org/model-1.0")
    with pytest.raises(FileNotFoundError) as caught:
        find_pretrained("no/such/folder")
    assert "hf download" not in str(caught.value)


def test_a_folder_without_a_checkpoint_is_an_error_that_names_the_expected_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint: expected model_final\.pth"):
        find_pretrained(tmp_path)


def test_the_error_for_bare_weights_asks_for_a_config_file(tiny):
    with pytest.raises(ValueError, match=r"tiny\.pth has no config .*config_file="):
        find_pretrained(tiny[1])


def test_a_broken_entry_is_an_error_and_a_config_file_replaces_it(tiny, tmp_path, caplog):
    content = torch.load(tiny[2], weights_only=True)
    torch.save({**content, "inference": {"config": "MODEL: ["}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: its 'inference' entry.*config_file="):
        find_pretrained(tmp_path / "x.pth")
    check(find_pretrained(tmp_path / "x.pth", config_file=tiny[0]), tiny)
    assert "Only" in caplog.text and "is damaged" in caplog.text


def test_the_error_for_unknown_keys_in_a_checkpoints_config_names_the_file(tiny, tmp_path):
    content = torch.load(tiny[2], weights_only=True)
    content["inference"]["config"] += "\nNOT_OURS: {X: 1}\n"
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(KeyError, match=r"x\.pth: there is no config key NOT_OURS"):
        find_pretrained(tmp_path / "x.pth")


def test_a_checkpoint_with_code_is_refused(tmp_path):
    torch.save({"model": {}, "inference": print}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth was refused: loading it would run code"):
        find_pretrained(tmp_path / "x.pth")


def test_options_override_the_stored_config_and_are_checked(tiny):
    found = find_pretrained(tiny[2], opts=("INPUT.MIN_SIZE_TEST", 96, "MODEL.DEVICE", "cpu"))
    assert found.cfg.INPUT.MIN_SIZE_TEST == 96
    found = find_pretrained(tiny[1], config_file=tiny[0], opts=("INPUT.MIN_SIZE_TEST", 96))
    assert found.cfg.INPUT.MIN_SIZE_TEST == 96
    with pytest.raises(KeyError, match=r"no config key INPUT\.MIN_SIZE.*MIN_SIZE_TEST"):
        find_pretrained(tiny[2], opts=("INPUT.MIN_SIZE", 96))
    with pytest.raises(ValueError, match=r"OVERLAP_THRESHOLD is 3\.0"):
        find_pretrained(tiny[2], opts=("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 3.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_if_it_is_requested(tiny, caplog):
    with pytest.raises(ValueError, match="device='cuda', but torch sees 0 GPUs"):
        find_pretrained(tiny[2], device="cuda")
    assert find_pretrained(tiny[2]).cfg.MODEL.DEVICE == "cpu" and not caplog.records


def test_things_are_given_by_name_or_id(tiny):
    assert find_pretrained(tiny[2], things=["sky", 1]).classes.is_thing == [
        True,
        True,
        False,
        False,
    ]
    assert find_pretrained(tiny[2], things=[]).classes.thing_ids == []
    for wrong in ("cars", 4, -1):
        with pytest.raises(KeyError, match=rf"things: there is no class {wrong!r}; expected "):
            find_pretrained(tiny[2], things=[wrong])


def test_class_names_in_an_older_checkpoint_are_used_if_the_dataset_has_none(tiny, tmp_path):
    content = read_checkpoint(tiny[1])
    write_weights(content["model"], tmp_path / "x.safetensors", ["a", "b", "c", "d"])
    opts = ("DATASETS.TRAIN", ("unknown_x",), "DATASETS.TEST", ("unknown_y",))
    found = find_pretrained(tmp_path / "x.safetensors", config_file=tiny[0], opts=opts)
    assert found.classes.names == ["a", "b", "c", "d"]
    assert "unknown_x" in MetadataCatalog.list()  # detectron2 creates it, without any metadata
