"""The published configs under configs/, against the published facts in tests/golden/."""

import gzip
import json
import lzma

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from torch.overrides import TorchFunctionMode

import mask_former  # noqa: F401  (registers the parts of the models)
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.validation import validate
from tests.helpers.paths import GOLDEN
from tests.helpers.paths import ROOT as REPOSITORY
from tests.helpers.published_results import RESULTS

CONFIGS = REPOSITORY / "configs"
SPEC = REPOSITORY.parent / "shared" / "spec"
ABSENT = object()


def read_json(path):
    decompress = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    return json.loads(decompress(path.read_bytes()))


def below_mask2former(values):
    return {f"mask2former/{path}": value for path, value in values.items()}


FACTS = read_json(GOLDEN / "published_configs.json.gz")
MASKFORMER = FACTS["configs"]  # path -> the keys that differ from the defaults
STATE_DICTS = read_json(GOLDEN / "published_state_dicts.json.gz")  # path -> name -> shape

MASK2FORMER_FACTS = read_json(GOLDEN / "mask2former_configs.json.gz")
MASK2FORMER = below_mask2former(MASK2FORMER_FACTS["configs"])
_dicts = read_json(GOLDEN / "mask2former_state_dicts.json.xz")
STATE_DICTS |= below_mask2former(
    {path: _dicts["dicts"][index] for path, index in _dicts["configs"].items()}
)
PUBLISHED = {**MASKFORMER, **MASK2FORMER}

MASK2FORMER_CHOICES = {
    "MODEL.MASK_FORMER.MASK_TERM": "cross_entropy",
    "MODEL.MASK_FORMER.POINT_PADDING": "zeros",
    "MODEL.MASK_FORMER.POINT_TARGETS": "bilinear",
    "MODEL.MASK_FORMER.TEST.SEGMENT_WITHIN_MASK": True,
    "SOLVER.AMP.DTYPE": "float16",
}
"""Values of our own keys for what the published Mask2Former always does."""

FOLDERS = sorted({"common", *(path.split("/")[0] for path in PUBLISHED)})
FAMILY = sorted(file for folder in FOLDERS for file in (CONFIGS / folder).rglob("*.yaml"))

every_published_config = pytest.mark.parametrize("path", PUBLISHED)


def flatten(node, prefix=""):
    """Flatten nested dicts to {"A.B": value}; tuples become lists."""
    values = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = list(value) if isinstance(value, tuple) else value
    return values


def differences(found, expected):
    """Return the entries in which two flat dicts differ, as {key: (found, expected)}."""
    return {
        key: (found.get(key, ABSENT), expected.get(key, ABSENT))
        for key in found.keys() | expected.keys()
        if found.get(key, ABSENT) != expected.get(key, ABSENT)
    }


def resolve(path):
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(CONFIGS / path))
    return cfg


class LinspaceOnCpu(TorchFunctionMode):
    """A mode that keeps ``linspace`` off the meta device, because Swin reads its values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def bases_of(file):
    """Return the files that a config names as its bases."""
    bases = yaml.safe_load(file.read_text(encoding="utf-8")).get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    return [(file.parent / base).resolve() for base in bases]


def published_and_their_bases():
    files, left = set(), [CONFIGS / path for path in PUBLISHED]
    while left:
        file = left.pop()
        files.add(file)
        left += [base for base in bases_of(file) if base not in files]
    return files


def name_below_configs(file):
    return str(file.relative_to(CONFIGS))


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        ("published_configs.json.gz", "configs.json"),
        ("published_results.json.gz", "published_results.json"),
        ("published_state_dicts.json.gz", "state_dicts.json.gz"),
        ("mask2former_configs.json.gz", "mask2former/configs.json"),
        ("mask2former_results.json.gz", "mask2former/published_results.json"),
        ("mask2former_state_dicts.json.xz", "mask2former/state_dicts.json.gz"),
    ],
)
def test_the_copied_facts_equal_the_published_ones(copy, original):
    if not SPEC.is_dir():
        pytest.skip(f"{SPEC} does not exist; the copies in tests/golden are not compared")
    assert read_json(GOLDEN / copy) == read_json(SPEC / original)


def test_all_published_configs_exist_and_every_other_file_is_a_base_of_one():
    assert (len(MASKFORMER), len(MASK2FORMER)) == (30, 47)
    assert PUBLISHED.keys() == RESULTS.keys() == STATE_DICTS.keys()
    published = {CONFIGS / path for path in PUBLISHED}
    assert published - set(FAMILY) == set()
    assert set(FAMILY) == published_and_their_bases()
    assert all(file.name.startswith("Base-") for file in set(FAMILY) - published)


def test_mask_former_keys_have_the_published_defaults_and_detectron2s_are_unchanged():
    detectron2 = get_cfg()
    add_deeplab_config(detectron2)
    expected = {**flatten(detectron2), **FACTS["defaults_added_to_detectron2"]}
    found = flatten(get_mask_former_cfg())
    assert differences({key: found.get(key, ABSENT) for key in expected}, expected) == {}


@every_published_config
def test_every_key_resolves_to_the_published_value(path):
    expected = flatten(get_mask_former_cfg())
    if path in MASK2FORMER:
        expected |= MASK2FORMER_FACTS["defaults_added"] | MASK2FORMER_CHOICES
    assert differences(flatten(resolve(path)), {**expected, **PUBLISHED[path]}) == {}


@every_published_config
def test_every_published_config_is_valid(path):
    cfg = resolve(path)
    validate(cfg)


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=name_below_configs)
def test_every_yaml_file_holds_plain_values(file):
    def is_plain(value):
        if isinstance(value, list):
            return all(is_plain(item) for item in value)
        return value is None or type(value) in (bool, int, float, str)

    values = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert [key for key, value in values.items() if not is_plain(value)] == []
    # YAML 1.1 reads 6e-05 as text and 6.0e-05 as a number
    numbers = [key for key, value in values.items() if isinstance(value, str) and is_number(value)]
    assert numbers == []


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("file", FAMILY, ids=name_below_configs)
def test_no_file_repeats_values_of_its_bases(file):
    inherited = {}
    for base in bases_of(file):
        inherited.update(flatten(get_cfg().load_yaml_with_base(str(base))))
    own = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert [key for key, value in own.items() if inherited.get(key, ABSENT) == value] == []


@every_published_config
def test_each_config_starts_with_paper_score_hardware_and_command(path):
    text = (CONFIGS / path).read_text(encoding="utf-8")
    lines = text.splitlines()
    head = "\n".join(lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    row = RESULTS[path]
    if path in MASK2FORMER:
        paper = "Masked-attention Mask Transformer for Universal Image Segmentation"
        identifier, metrics = "2112.01527", ("PQ", "AP", "AP50", "Boundary AP", "mIoU")
        gpus = 16 if "swin_large" in path else 8
        hardware = f"{gpus} V100 GPUs"
    else:
        paper = "Per-Pixel Classification is Not All You Need for Semantic Segmentation"
        identifier, metrics = "2107.06278", (("PQ",) if "PQ" in row else ("mIoU",))
        gpus = 8
        hardware = (
            f"{row['train mem (MB)']} MB of GPU memory in training; "
            "the published table does not name the GPU"
        )
    scores = [f"{metric} {row[metric]}" for metric in metrics if metric in row]
    if "mIoU (ms+flip)" in row:
        scores.append(f"multi-scale and flip {row['mIoU (ms+flip)']}")
    cfg = resolve(path)
    for line in (
        f"# Paper: {paper}, arXiv {identifier}",
        f"# Published score: {', '.join(scores)}",
        f"# Hardware: {hardware}",
        f"# Cost: {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images",
        f"# Command: python tools/train_net.py --config-file configs/{path} --num-gpus {gpus}",
    ):
        assert line in head.splitlines()
    assert f"# Weights: {cfg.MODEL.WEIGHTS.rpartition('/')[-1]}" in head


@every_published_config
def test_each_model_has_the_published_parameter_and_buffer_names_and_shapes(path):
    cfg = resolve(path)
    cfg.MODEL.DEVICE = "meta"  # names and shapes without memory: all in seconds
    with torch.device("meta"), LinspaceOnCpu():
        model = build_model(cfg)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert differences(found, STATE_DICTS[path]) == {}


def test_a_model_can_be_built_without_its_dataset_being_registered():
    cfg = resolve("ade20k-150/maskformer_R50_bs16_160k.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("nobody_registered_this",)
    try:
        assert build_model(cfg).device.type == "cpu"
    finally:
        MetadataCatalog.pop("nobody_registered_this", None)
