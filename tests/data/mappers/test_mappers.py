"""From dataset dicts to training examples: tests of all three mappers, then of each one.

Every segment of the scene has its own flat colour, a corner of the RGB cube. Resizing mixes colours
only at borders, and never into another corner. Therefore every pixel of the augmented image with a
segment's colour must be in that segment's mask.
"""

import copy
import random
from itertools import product

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from PIL import Image

from mask_former.data.mappers import InferenceMapper
from mask_former.registries import DATASET_MAPPER_REGISTRY

HEIGHT, WIDTH, IGNORE = 40, 60, 255
COLORS = np.array(list(product((0, 255), repeat=3)), dtype=np.uint8)
# Class of each segment; 0 is void, class 2 has two segments and class 4 only a crowd.
CLASSES = [None, 0, 2, 2, 4, 1]
CROWD = 4
SEGMENT_IDS = [0, 7, 300, 65536, 16777215, 9]
SIDE = 64  # side that the padding mappers pad to

SEMANTIC, PANOPTIC, DETR = "mask_former_semantic", "mask_former_panoptic", "detr_panoptic"
each_mapper = pytest.mark.parametrize("name", [SEMANTIC, PANOPTIC, DETR])
each_panoptic = pytest.mark.parametrize("name", [PANOPTIC, DETR])
each_padding = pytest.mark.parametrize("name", [SEMANTIC, PANOPTIC])


def scene_segments():
    segments = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    segments[:, 6:] = 1
    segments[22:, 10:40] = 2
    segments[4:18, 12:30] = 3
    segments[5:25, 44:56] = 4
    segments[28:38, 42:58] = 5
    return segments


def save(path, array):
    Image.fromarray(np.asarray(array)).save(path)
    return str(path)


def label_map():
    of_segment = np.array([IGNORE, *CLASSES[1:]], dtype=np.uint8)
    return of_segment[scene_segments()]


def id_image():
    ids = np.array(SEGMENT_IDS)[scene_segments()]
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


@pytest.fixture
def scene(tmp_path):
    return {
        "file_name": save(tmp_path / "image.png", COLORS[scene_segments()]),
        "image_id": "image",
        "sem_seg_file_name": save(tmp_path / "labels.png", label_map()),
        "pan_seg_file_name": save(tmp_path / "ids.png", id_image()),
        "segments_info": [
            {"id": SEGMENT_IDS[s], "category_id": CLASSES[s], "iscrowd": int(s == CROWD)}
            for s in range(1, 6)
        ],
    }


@pytest.fixture(scope="module", autouse=True)
def metadata():
    for dataset, ignore_label in (("mapper_scene", IGNORE), ("mapper_scene_16", 65535)):
        MetadataCatalog.get(dataset).set(ignore_label=ignore_label)
    yield
    for dataset in ("mapper_scene", "mapper_scene_16"):
        MetadataCatalog.remove(dataset)


def make_cfg(**settings):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.INPUT.update(
        FORMAT="RGB",
        COLOR_AUG_SSD=False,
        SIZE_DIVISIBILITY=SIDE,
        MIN_MASK_AREA=0,
        PAD_VALUE=128,
        MAX_TRIES=1,
        MIN_SIZE_TRAIN=(30, 50, 70),
        MAX_SIZE_TRAIN=110,
    )
    cfg.INPUT.CROP.update(
        ENABLED=True,
        TYPE="absolute",
        SIZE=[32, 48],
        SINGLE_CATEGORY_MAX_AREA=0.9,
        CLASS_UNIFORM=0.0,
    )
    cfg.DATASETS.TRAIN = ("mapper_scene",)
    cfg.TEST.RESIZE = ""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.MODEL.MASK_FORMER = CfgNode({"MASK_IGNORE": False})
    for key, value in settings.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def plain(**settings):
    """Return a config without augmentation."""
    fixed = {"INPUT__MIN_SIZE_TRAIN": (HEIGHT,), "INPUT__RANDOM_FLIP": "none"}
    return make_cfg(**fixed, INPUT__CROP__ENABLED=False, **settings)


def make(name, cfg=None):
    return DATASET_MAPPER_REGISTRY.get(name)(cfg or make_cfg(), is_train=True)


def run(mapper, scene, seed=0):
    np.random.seed(seed)
    random.seed(seed)
    return mapper(scene)


def expected_targets(name, segments, keep_empty=True):
    """Return classes and masks of a map of segment numbers, by loops over segments."""
    if name == SEMANTIC:
        classes = sorted({CLASSES[s] for s in np.unique(segments) if s > 0})
        members = [[s for s in range(1, 6) if CLASSES[s] == c] for c in classes]
    else:
        numbers = [s for s in range(1, 6) if s != CROWD]
        numbers = [s for s in numbers if keep_empty or (segments == s).any()]
        classes, members = [CLASSES[s] for s in numbers], [[s] for s in numbers]
    masks = [sum((segments == s for s in group), np.zeros_like(segments)) > 0 for group in members]
    return classes, np.array(masks)


# ---- all mappers ---------------------------------------------------------------------------------


@each_mapper
def test_an_unaugmented_example_is_the_scene(name, scene):
    example = run(make(name, plain(INPUT__SIZE_DIVISIBILITY=-1)), scene)
    image, instances = example["image"], example["instances"]
    assert image.dtype == torch.uint8
    assert (image.numpy().transpose(1, 2, 0) == COLORS[scene_segments()]).all()
    classes, masks = expected_targets(name, scene_segments())
    assert instances.image_size == (HEIGHT, WIDTH)
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_masks.dtype == torch.bool
    assert instances.gt_classes.tolist() == classes
    assert (instances.gt_masks.numpy() == masks).all()
    if name != DETR:
        assert example["sem_seg"].dtype == torch.int64
        assert (example["sem_seg"].numpy() == label_map()).all()


@each_mapper
def test_an_example_holds_the_dicts_entries_except_annotations(name, scene):
    scene["extra"] = {"deep": [1]}
    scene["annotations"] = []
    before = copy.deepcopy(scene)
    example = run(make(name), scene)
    made = {"image", "instances", "height", "width"} | ({"sem_seg"} if name != DETR else set())
    assert set(example) == made | {"file_name", "image_id", "extra"}
    assert (example["height"], example["width"]) == (HEIGHT, WIDTH)
    example["extra"]["deep"].append(2)
    assert scene == before


@each_mapper
@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
@pytest.mark.parametrize("seed", range(8))
def test_masks_and_labels_are_transformed_like_the_image(name, flip, seed, scene):
    example = run(make(name, make_cfg(INPUT__RANDOM_FLIP=flip)), scene, seed)
    image, instances = example["image"].permute(1, 2, 0).numpy(), example["instances"]
    pure = np.full(image.shape[:2], -1)  # the segment whose exact colour a pixel has
    for segment in range(6):
        pure[(image == COLORS[segment]).all(-1)] = segment
    assert (pure >= 0).mean() > 0.2
    classes, masks = expected_targets(name, pure)
    by_class = dict(enumerate(zip(classes, masks, strict=True)))
    assert instances.gt_classes.tolist()[: len(by_class)] == classes
    for n, (_, mask) in by_class.items():
        found = instances.gt_masks[n].numpy()
        assert (found[pure >= 0] == mask[pure >= 0]).all()
    if name != DETR:
        labels = np.array([IGNORE, *CLASSES[1:]])[pure]
        assert (example["sem_seg"].numpy()[pure >= 0] == labels[pure >= 0]).all()


@each_mapper
def test_an_example_is_reproducible_with_a_seed(name, scene):
    mapper = make(name, make_cfg(INPUT__COLOR_AUG_SSD=True))
    shapes = set()
    for seed in range(6):
        one, two = run(mapper, scene, seed), run(mapper, scene, seed)
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["instances"].gt_masks, two["instances"].gt_masks)
        shapes.add(one["image"].numpy().tobytes())
    assert len(shapes) > 3


@each_mapper
def test_colour_jitter_changes_the_image_but_no_mask(name, scene):
    unchanged = run(make(name, plain(INPUT__SIZE_DIVISIBILITY=-1)), scene)
    jittered = [
        run(make(name, plain(INPUT__SIZE_DIVISIBILITY=-1, INPUT__COLOR_AUG_SSD=True)), scene, seed)
        for seed in range(6)
    ]
    for example in jittered:
        assert torch.equal(example["instances"].gt_masks, unchanged["instances"].gt_masks)
    is_changed = [not torch.equal(example["image"], unchanged["image"]) for example in jittered]
    assert any(is_changed) == (name != DETR)  # DETR's augmentation has no jitter


@each_mapper
def test_channels_have_the_configured_order(name, scene):
    rgb = run(make(name, make_cfg(INPUT__FORMAT="RGB")), scene, seed=3)["image"]
    bgr = run(make(name, make_cfg(INPUT__FORMAT="BGR")), scene, seed=3)["image"]
    assert torch.equal(rgb, bgr.flip(0))
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'L', expected 'RGB' or 'BGR'"):
        make(name, make_cfg(INPUT__FORMAT="L"))


@each_mapper
def test_masks_below_the_minimum_area_are_dropped(name, scene):
    everything = run(make(name, plain()), scene)["instances"]
    areas = everything.gt_masks.sum((1, 2))
    least = int(areas.sort().values[1])
    large = run(make(name, plain(INPUT__MIN_MASK_AREA=least)), scene)["instances"]
    assert len(large) == len(everything) - 1
    assert torch.equal(large.gt_classes, everything.gt_classes[areas >= least])
    assert torch.equal(large.gt_masks, everything.gt_masks[areas >= least])
    with pytest.raises(ValueError, match=r"INPUT\.MIN_MASK_AREA is -1"):
        make(name, make_cfg(INPUT__MIN_MASK_AREA=-1))


@each_mapper
def test_masks_emptied_by_a_crop_stay_targets_unless_a_minimum_area_is_set(name, scene):
    tight = {"INPUT__CROP__SIZE": [8, 8], "INPUT__MIN_SIZE_TRAIN": (40,)}
    emptied = 0
    for seed in range(20):
        found = run(make(name, make_cfg(**tight)), scene, seed)["instances"]
        kept = run(make(name, make_cfg(**tight, INPUT__MIN_MASK_AREA=1)), scene, seed)["instances"]
        is_full = found.gt_masks.flatten(1).any(1)
        emptied += int((~is_full).sum())
        assert torch.equal(kept.gt_classes, found.gt_classes[is_full])
        if name != SEMANTIC:
            assert len(found) == 4
    # of a label map, only the classes that are present become targets
    assert (emptied == 0) == (name == SEMANTIC)


@each_mapper
@pytest.mark.parametrize("seed", range(4))
def test_with_mask_ignore_the_pixels_that_belong_to_a_target_are_valid(name, seed, scene):
    assert "valid" not in run(make(name), scene)
    settings = {"MODEL__MASK_FORMER__MASK_IGNORE": True}
    example = run(make(name, make_cfg(**settings)), scene, seed)
    masks = example["instances"].gt_masks
    assert example["valid"].dtype == torch.bool
    assert torch.equal(example["valid"], masks.any(0))
    assert name == DETR or not example["valid"].all()  # padding is invalid
    without_small = make_cfg(**settings, INPUT__MIN_MASK_AREA=int(masks.sum((1, 2)).max()))
    fewer = run(make(name, without_small), scene, seed)
    assert len(fewer["instances"]) < len(masks)
    assert torch.equal(fewer["valid"], example["valid"])  # dropped small targets stay valid


@each_mapper
def test_an_image_without_labels_has_no_target(name, scene, tmp_path):
    scene["sem_seg_file_name"] = save(tmp_path / "l.png", np.full((HEIGHT, WIDTH), IGNORE, "uint8"))
    scene["pan_seg_file_name"] = save(tmp_path / "p.png", np.zeros((HEIGHT, WIDTH, 3), "uint8"))
    scene["segments_info"] = []
    example = run(make(name), scene)
    size = example["image"].shape[1:]
    assert example["instances"].gt_masks.shape == (0, *size)
    assert example["instances"].gt_classes.shape == (0,)


@each_mapper
def test_mappers_for_training_refuse_testing_and_name_the_inference_mapper(name):
    with pytest.raises(ValueError, match=r"use mask_former\.data\.mappers\.InferenceMapper\(cfg\)"):
        DATASET_MAPPER_REGISTRY.get(name)(make_cfg(), is_train=False)


@each_mapper
def test_the_error_for_a_missing_or_unreadable_image_names_it(name, scene, tmp_path):
    scene["file_name"] = str(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png, the 'file_name'.*DETECTRON2_DATASETS"):
        run(make(name), scene)
    (tmp_path / "text.png").write_text("no image")
    scene["file_name"] = str(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"text\.png, the 'file_name'.*cannot be read as an image"):
        run(make(name), scene)


@each_mapper
def test_the_error_for_a_damaged_annotation_names_it(name, scene, tmp_path):
    key = "sem_seg_file_name" if name == SEMANTIC else "pan_seg_file_name"
    noise = np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    whole = save(tmp_path / "whole.png", noise[..., 0] if name == SEMANTIC else noise)
    with open(whole, "rb") as file:
        content = file.read()
    half = tmp_path / "half.png"
    half.write_bytes(content[: len(content) // 2])
    scene[key] = str(half)
    with pytest.raises(ValueError, match=rf"half\.png, the '{key}'.*cannot be read"):
        run(make(name), scene)


@each_mapper
def test_the_error_for_different_sizes_names_both_files(name, scene, tmp_path):
    key = "sem_seg_file_name" if name == SEMANTIC else "pan_seg_file_name"
    with Image.open(scene[key]) as annotation:
        scene[key] = save(tmp_path / "large.png", np.asarray(annotation).repeat(2, 0))
    with pytest.raises(ValueError, match=r"image\.png is 60×40 .*large\.png is 60×80"):
        run(make(name), scene)


@each_mapper
def test_a_dict_with_another_size_than_the_image_is_an_error(name, scene):
    scene |= {"height": HEIGHT, "width": WIDTH + 1}
    with pytest.raises(ValueError, match=r"image\.png, got \(60, 40\), expect \(61, 40\)"):
        run(make(name), scene)


@each_mapper
def test_the_error_for_a_dict_of_another_task_names_the_mapper_that_fits(name, scene):
    removed = "sem_seg_file_name" if name == SEMANTIC else "segments_info"
    fitting = "mask_former_panoptic or detr_panoptic" if name == SEMANTIC else SEMANTIC
    del scene[removed]
    message = rf"Mapper needs .*'{removed}'\] is missing.*DATASET_MAPPER_NAME.* to {fitting}"
    with pytest.raises(KeyError, match=message):
        run(make(name), scene)
    scene = {"file_name": scene["file_name"], "annotations": []}
    with pytest.raises(KeyError, match=r"Set INPUT.DATASET_MAPPER_NAME to mask_former_instance"):
        run(make(name), scene)
    del scene["annotations"]
    with pytest.raises(KeyError, match=r"No mapper for mask targets fits"):
        run(make(name), scene)


# ---- padding -------------------------------------------------------------------------------------


@each_padding
@pytest.mark.parametrize(
    "dataset, ignore_label", [("mapper_scene", 255), ("mapper_scene_16", 65535)]
)
def test_padding_is_grey_unlabelled_and_at_the_right_and_bottom(
    name, dataset, ignore_label, scene, tmp_path
):
    labels = np.where(label_map() == IGNORE, 0, label_map())
    scene["sem_seg_file_name"] = save(tmp_path / "full.png", labels)
    example = run(make(name, plain(DATASETS__TRAIN=(dataset,))), scene)
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[:HEIGHT, :WIDTH] = True
    assert example["instances"].image_size == (SIDE, SIDE)
    image = example["image"].numpy()
    assert image.shape == (3, SIDE, SIDE) and (image[:, ~inside] == 128).all()
    assert (image[:, :HEIGHT, :WIDTH].transpose(1, 2, 0) == COLORS[scene_segments()]).all()
    sem_seg = example["sem_seg"].numpy()
    assert (sem_seg[~inside] == ignore_label).all()
    assert (sem_seg[:HEIGHT, :WIDTH] == labels).all()
    masks = example["instances"].gt_masks.numpy()
    assert masks.shape[1:] == (SIDE, SIDE) and not masks[:, ~inside].any()


@each_padding
@pytest.mark.parametrize("off", [0, -1])
def test_without_a_size_divisibility_nothing_is_padded(name, off, scene):
    example = run(make(name, plain(INPUT__SIZE_DIVISIBILITY=off)), scene)
    assert example["image"].shape == (3, HEIGHT, WIDTH)


@each_padding
def test_an_image_larger_than_the_padding_is_an_error_with_the_fix(name, scene):
    message = (
        r"image\.png: after augmentation it is 60×40 .*INPUT.SIZE_DIVISIBILITY.* is 59\. "
        r"Set INPUT.CROP.ENABLED to True .*at most 59.*to 60 or more"
    )
    with pytest.raises(ValueError, match=message):
        run(make(name, plain(INPUT__SIZE_DIVISIBILITY=59)), scene)


@each_padding
def test_the_crop_avoids_windows_of_one_class(name, scene, tmp_path):
    halves = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    halves[:, WIDTH // 2 :] = 1
    scene["segments_info"] = [{"id": i + 1, "category_id": i} for i in range(2)]
    ids = np.stack([halves + 1, halves * 0, halves * 0], -1)
    scene["pan_seg_file_name"] = save(tmp_path / "p.png", ids)
    if name == SEMANTIC:
        scene["sem_seg_file_name"] = save(tmp_path / "l.png", halves)
    else:
        del scene["sem_seg_file_name"]  # the limit must hold for the map made from the segments
    settings = {"INPUT__CROP__SIZE": [24, 24], "INPUT__MIN_SIZE_TRAIN": (40,)}
    least = {}
    for limit in (0.8, 1.0):
        cfg = make_cfg(**settings, INPUT__CROP__SINGLE_CATEGORY_MAX_AREA=limit)
        examples = [run(make(name, cfg), scene, seed)["sem_seg"] for seed in range(20)]
        least[limit] = min(min((e == 0).sum(), (e == 1).sum()) for e in examples)
    assert least[1.0] == 0 and least[0.8] > 0.2 * 24 * 24


@each_padding
def test_the_metadata_must_have_one_ignore_label_of_16_bits(name):
    with pytest.raises(ValueError, match=r"ignore_label is {'nobodys_dataset': None}.*Set it"):
        make(name, make_cfg(DATASETS__TRAIN=("nobodys_dataset",)))
    with pytest.raises(ValueError, match=r"'mapper_scene': 255, 'mapper_scene_16': 65535"):
        make(name, make_cfg(DATASETS__TRAIN=("mapper_scene", "mapper_scene_16")))
    with pytest.raises(ValueError, match=r"ignore label is -1, expected .*0\.\.65535"):
        DATASET_MAPPER_REGISTRY.get(name)(augmentations=[], image_format="RGB", ignore_label=-1)


# ---- label maps ----------------------------------------------------------------------------------


def as_palette(labels, path):
    image = Image.fromarray(labels)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


LABEL_FILES = {
    "8 bit": ("l.png", lambda labels, path: save(path, labels)),
    "palette": ("p.png", as_palette),
    "16 bit PNG": ("w.png", lambda labels, path: save(path, labels.astype(np.uint16))),
    "16 bit TIFF": ("w.tif", lambda labels, path: save(path, labels.astype(np.uint16))),
    "32 bit TIFF": ("i.tif", lambda labels, path: save(path, labels.astype(np.int32))),
}


@pytest.mark.parametrize("kind", LABEL_FILES)
@pytest.mark.parametrize("seed", range(3))
def test_label_maps_of_every_file_type_give_the_same_example(kind, seed, scene, tmp_path):
    suffix, write = LABEL_FILES[kind]
    expected = run(make(SEMANTIC), scene, seed)
    write(label_map(), tmp_path / suffix)
    found = run(make(SEMANTIC), scene | {"sem_seg_file_name": str(tmp_path / suffix)}, seed)
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert torch.equal(found["instances"].gt_classes, expected["instances"].gt_classes)
    assert torch.equal(found["instances"].gt_masks, expected["instances"].gt_masks)


@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
@pytest.mark.parametrize("seed", range(4))
def test_16_bit_labels_and_ignore_label_survive_augmentation(flip, seed, scene, tmp_path):
    large = np.array([65535, 300, 846, 846, 300, 5], dtype=np.uint16)
    scene["sem_seg_file_name"] = save(tmp_path / "w.tif", large[scene_segments()])
    cfg = make_cfg(
        DATASETS__TRAIN=("mapper_scene_16",),
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=847,
        INPUT__RANDOM_FLIP=flip,
    )
    example = run(make(SEMANTIC, cfg), scene, seed)
    sem_seg, instances = example["sem_seg"], example["instances"]
    assert set(sem_seg.unique().tolist()) <= {5, 300, 846, 65535}
    assert (sem_seg == 65535).any() and (sem_seg == 846).any()
    present = [c for c in sem_seg.unique().tolist() if c != 65535]
    assert instances.gt_classes.tolist() == present
    for label, mask in zip(present, instances.gt_masks, strict=True):
        assert torch.equal(mask, sem_seg == label)


def test_a_black_and_white_png_holds_the_classes_0_and_1(scene, tmp_path):
    labels = scene_segments() > 1
    scene["sem_seg_file_name"] = save(tmp_path / "bw.png", labels)
    example = run(make(SEMANTIC, plain(INPUT__SIZE_DIVISIBILITY=0)), scene)
    assert example["instances"].gt_classes.tolist() == [0, 1]
    assert (example["instances"].gt_masks[1].numpy() == labels).all()


def test_colours_instead_of_labels_are_an_error(scene):
    scene["sem_seg_file_name"] = scene["file_name"]
    with pytest.raises(ValueError, match=r"image\.png has 3 channels, expected one.*Convert its"):
        run(make(SEMANTIC), scene)


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.full((HEIGHT, WIDTH), 0.5, np.float32), r"float32 values from 0\.5 to 0\.5"),
        (np.full((HEIGHT, WIDTH), 70000, np.int32), r"int32 values from 70000 to 70000"),
        (np.full((HEIGHT, WIDTH), -1, np.int32), r"int32 values from -1 to -1"),
    ],
)
def test_values_other_than_class_ids_are_an_error(labels, message, scene, tmp_path):
    scene["sem_seg_file_name"] = save(tmp_path / "odd.tif", labels)
    with pytest.raises(ValueError, match=rf"odd\.tif holds {message}, expected .*0\.\.65535"):
        run(make(SEMANTIC), scene)


@each_padding
def test_the_error_for_labels_outside_the_classes_names_them_and_the_range(name, scene, tmp_path):
    wrong = np.where(label_map() == 4, 5, label_map())
    wrong[0, :12] = np.arange(100, 112)
    scene["sem_seg_file_name"] = save(tmp_path / "wrong.png", wrong)
    message = (
        r"wrong\.png: found the class ids \[5, 100, .*106\] and 5 more, expected 0\.\.4 "
        r".*NUM_CLASSES is 5.*ignore label.* is 255.*start at 1"
    )
    with pytest.raises(ValueError, match=message):
        run(make(name), scene)


def test_label_maps_need_an_ignore_label(scene):
    mapper = DATASET_MAPPER_REGISTRY.get(SEMANTIC)(
        augmentations=[], image_format="RGB", ignore_label=None
    )
    with pytest.raises(ValueError, match="needs an ignore_label, found None"):
        run(mapper, scene)


def test_labels_are_not_checked_where_the_number_of_classes_is_unknown(scene, tmp_path):
    scene["sem_seg_file_name"] = save(tmp_path / "l.png", np.full((HEIGHT, WIDTH), 77, np.uint8))
    mapper = DATASET_MAPPER_REGISTRY.get(SEMANTIC)(
        augmentations=[], image_format="RGB", ignore_label=IGNORE
    )
    assert run(mapper, scene)["instances"].gt_classes.tolist() == [77]


# ---- panoptic annotations ------------------------------------------------------------------------


@each_panoptic
def test_crowds_are_dropped(name, scene):
    assert run(make(name, plain()), scene)["instances"].gt_classes.tolist() == [0, 2, 2, 1]
    for info in scene["segments_info"]:
        info.pop("iscrowd")
    assert run(make(name, plain()), scene)["instances"].gt_classes.tolist() == [0, 2, 2, 4, 1]


@each_panoptic
def test_targets_come_in_the_order_of_segments_info(name, scene):
    forward = run(make(name, plain()), scene)["instances"]
    scene["segments_info"].reverse()
    reverse = run(make(name, plain()), scene)["instances"]
    assert torch.equal(reverse.gt_classes, forward.gt_classes.flip(0))
    assert torch.equal(reverse.gt_masks, forward.gt_masks.flip(0))


@each_panoptic
def test_more_than_255_segments_are_distinguished(name, scene, tmp_path):
    ids = np.arange(1, 301).reshape(15, 20).repeat(2, 0).repeat(3, 1)
    ids = np.pad(ids, ((0, HEIGHT - 30), (0, 0)))
    rgb = np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)
    scene["pan_seg_file_name"] = save(tmp_path / "many.png", rgb)
    scene["segments_info"] = [{"id": i, "category_id": i % 5} for i in range(1, 301)]
    masks = run(make(name, plain(INPUT__SIZE_DIVISIBILITY=-1)), scene)["instances"].gt_masks
    for i in range(300):
        assert (masks[i].numpy() == (ids == i + 1)).all()


def test_a_missing_label_map_is_made_from_the_segments(scene):
    mapper = make(PANOPTIC)
    expected = [run(mapper, scene, seed)["sem_seg"] for seed in range(5)]
    del scene["sem_seg_file_name"]
    found = [run(mapper, scene, seed)["sem_seg"] for seed in range(5)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    whole = run(make(PANOPTIC, plain(INPUT__SIZE_DIVISIBILITY=-1)), scene)["sem_seg"]
    assert (whole.numpy() == label_map()).all()


def test_a_given_label_map_takes_precedence_over_the_segments(scene, tmp_path):
    other = np.where(label_map() == 2, 3, label_map())
    scene["sem_seg_file_name"] = save(tmp_path / "other.png", other)
    example = run(make(PANOPTIC, plain(INPUT__SIZE_DIVISIBILITY=-1)), scene)
    assert (example["sem_seg"].numpy() == other).all()
    assert example["instances"].gt_classes.tolist() == [0, 2, 2, 1]


@each_panoptic
def test_an_id_missing_in_segments_info_is_an_error(name, scene):
    del scene["segments_info"][1]
    with pytest.raises(ValueError, match=r"ids\.png disagree: the ids \[300\] are in the PNG but"):
        run(make(name), scene)


@each_panoptic
def test_a_listed_id_without_pixels_is_an_error(name, scene):
    scene["segments_info"].append({"id": 12345, "category_id": 0})
    with pytest.raises(ValueError, match=r"ids\.png disagree: the ids \[12345\] are in 'segments_"):
        run(make(name), scene)


@each_panoptic
def test_ids_that_are_listed_twice_or_out_of_range_are_an_error(name, scene):
    for wrong in (300, 0, 2**24):
        listed = [*scene["segments_info"], {"id": wrong, "category_id": 0}]
        with pytest.raises(ValueError, match=rf"segments_info' of .*ids\.png.*\[{wrong}\]"):
            run(make(name), scene | {"segments_info": listed})


@each_panoptic
def test_a_category_outside_the_classes_is_an_error(name, scene):
    scene["segments_info"][0]["category_id"] = 5
    message = r"'segments_info' of .*ids\.png: found the class ids \[5\], expected 0\.\.4.*contig"
    with pytest.raises(ValueError, match=message):
        run(make(name), scene)


def test_detrs_mapper_neither_pads_nor_adds_a_label_map(scene):
    for seed in range(6):
        example = run(make(DETR), scene, seed)
        height, width = example["image"].shape[1:]
        assert min(height, width) in (30, 50, 70) or max(height, width) == 110
        assert example["instances"].image_size == (height, width)
        assert "sem_seg" not in example


def test_detrs_mapper_needs_no_ignore_label(scene):
    assert len(run(make(DETR, make_cfg(DATASETS__TRAIN=("nobodys_dataset",))), scene)) > 0


@pytest.mark.parametrize("num_classes", [None, 5, 300])
def test_num_classes_may_exceed_the_range_of_an_8_bit_label_map(scene, num_classes):
    mapper = make(SEMANTIC, plain(INPUT__SIZE_DIVISIBILITY=-1))
    mapper.num_classes = num_classes
    instances = run(mapper, scene)["instances"]
    classes, masks = expected_targets(SEMANTIC, scene_segments())
    assert instances.gt_classes.tolist() == classes
    assert (instances.gt_masks.numpy() == masks).all()


# ---- inference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_inference_examples_equal_detectron2s_without_annotations(scene, image_format):
    cfg = make_cfg(INPUT__FORMAT=image_format, INPUT__MIN_SIZE_TEST=50, INPUT__MAX_SIZE_TEST=70)
    before = copy.deepcopy(scene)
    expected = DatasetMapper(cfg, is_train=False)(scene | {"annotations": []})
    found = InferenceMapper(cfg)(scene | {"annotations": []})
    assert "sem_seg" in expected  # detectron2 loads it
    assert set(found) == {"file_name", "image_id", "image", "height", "width"}
    assert found["image"].shape == (3, 47, 70) and torch.equal(found["image"], expected["image"])
    for key in set(found) - {"image"}:
        assert found[key] == expected[key]
    assert scene == before


def test_inference_opens_no_annotation(scene):
    gone = scene | dict.fromkeys(("sem_seg_file_name", "pan_seg_file_name"), "/gone.png")
    assert InferenceMapper(make_cfg())(gone)["image"].shape[0] == 3
