"""The predictor returns the results of the model's forward pass."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from PIL import Image

import mask_former
from mask_former.checkpoint.inference_data import inference_data
from mask_former.config.loading import load_cfg
from mask_former.predictor import image_output
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.utils.weight_files import read_checkpoint, write_weights
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import NAMES, tiny_settings, write_tiny_model
from tests.helpers.tiny_trainer import train

KINDS = ("panoptic", "instance", "semantic")


def examples_of(page):
    """Return the predictor examples of a page, except those that need other weights."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [code for code in blocks if "redictor" in code and "config_file" not in code]


PAGES = [page for page in ("README.md", "docs/predict.md") if examples_of(page)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A self-contained checkpoint of a model with all three results."""
    folder = tmp_path_factory.mktemp("model")
    config, weights = write_tiny_model(folder, PANOPTIC_ON=True, INSTANCE_ON=True)
    path = folder / "complete.pth"
    data = inference_data(load_cfg(str(config)))
    write_weights(read_checkpoint(weights)["model"], path, NAMES, data)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")


def make_image(height=40, width=70, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def same(one, other):
    """Compare two results bit by bit."""
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.semantic, other.semantic)
        and np.array_equal(one.semantic_scores, other.semantic_scores)
        and np.array_equal(one.panoptic.ids, other.panoptic.ids)
        and one.panoptic.segments == other.panoptic.segments
        and np.array_equal(one.instances.masks, other.instances.masks)
        and np.array_equal(one.instances.scores, other.instances.scores)
    )


def change(folder, checkpoint, change_entry):
    """Write a copy of a checkpoint with its ``inference`` entry changed; return its path."""
    content = read_checkpoint(checkpoint)
    settings = yaml.safe_load(content["inference"]["config"])
    change_entry(settings)
    content["inference"]["config"] = yaml.safe_dump(settings)
    write_weights(content["model"], folder / "changed.pth", NAMES, content["inference"])
    return folder / "changed.pth"


# The results


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("min_size", [64, 0])
def test_results_equal_those_of_evaluation(checkpoint, tmp_path, image_format, min_size):
    opts = ("INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TEST", min_size)
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu", opts=opts)
    Image.fromarray(make_image()).save(tmp_path / "x.png")
    example = DatasetMapper(predictor.cfg, is_train=False)({"file_name": str(tmp_path / "x.png")})
    with torch.no_grad():
        expected = predictor.model([example])[0]
    found = predictor(tmp_path / "x.png")
    assert found.kinds == list(KINDS) and found.file_name == str(tmp_path / "x.png")
    assert np.array_equal(found.image, make_image())

    scores = expected["sem_seg"]
    best, ids = scores.max(0)
    assert len(ids.unique()) > 1
    assert np.array_equal(found.semantic, ids.numpy())
    shares = best / scores.sum(0).clamp(min=torch.finfo().tiny)  # all scores may be 0
    assert np.allclose(found.semantic_scores, shares.numpy(), atol=1e-6)
    assert np.array_equal(found.panoptic.ids, expected["panoptic_seg"][0].numpy())
    assert found.panoptic.segments == expected["panoptic_seg"][1] != []
    instances = expected["instances"]
    instances = instances[instances.scores.argsort(descending=True, stable=True)]
    assert len(found.instances) == len(instances) > 1
    assert np.array_equal(found.instances.masks, instances.pred_masks.numpy())
    assert np.array_equal(found.instances.boxes, instances.pred_boxes.tensor.numpy())
    assert np.array_equal(found.instances.scores, instances.scores.numpy())
    assert np.array_equal(found.instances.class_ids, instances.pred_classes.numpy())
    assert found.instances.class_names == [NAMES[i] for i in found.instances.class_ids]


def test_results_are_numpy_arrays_of_the_documented_types(predictor):
    found = predictor(make_image())
    assert found.semantic.dtype == np.int32 == found.panoptic.ids.dtype
    assert found.semantic_scores.dtype == np.float32 == found.instances.scores.dtype
    assert found.instances.masks.dtype == bool and found.instances.boxes.dtype == np.float32


def test_the_same_image_gives_the_same_result_in_any_type(predictor, tmp_path):
    pixels = make_image()
    Image.fromarray(pixels).save(tmp_path / "x.png")
    first = predictor(pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (pixels, str(tmp_path / "x.png"), Image.fromarray(pixels), tensor):
        assert same(predictor(image), first)


def test_every_kind_of_result_can_be_requested_whatever_the_config_turns_on(checkpoint):
    opts = [f"MODEL.MASK_FORMER.TEST.{name}_ON" for name in ("PANOPTIC", "INSTANCE", "SEMANTIC")]
    off = [word for key in opts for word in (key, False)]
    # panoptic and instance results imply this order for the semantic result too
    off += ["MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", True]
    every = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")
    bare = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu", opts=off)
    assert every.kinds == KINDS and bare.kinds == ()
    for kind in KINDS:
        assert bare(make_image(), kinds=kind).kinds == [kind]
    assert same(bare(make_image(), kinds=KINDS), every(make_image()))
    with pytest.raises(ValueError, match="config turns on no result: give kinds="):
        bare(make_image())


def test_things_come_from_the_classes_and_not_from_a_dataset(checkpoint, tmp_path):
    def forget(settings):
        settings["DATASETS"] = {"TRAIN": ["nowhere_train"], "TEST": ["nowhere_val"]}

    changed = change(tmp_path, checkpoint, forget)
    found = MaskFormerPredictor.from_pretrained(changed, device="cpu")
    assert found.model.thing_ids == {2, 3} == set(found.classes.thing_ids)
    expected = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")(make_image())
    assert same(found(make_image()), expected)
    sky = MaskFormerPredictor.from_pretrained(changed, device="cpu", things=["sky"])
    assert set(sky(make_image()).instances.class_names) <= {"sky"}
    assert sky.model.thing_ids == {0}


def test_panoptic_results_without_things_are_warned_about_once(checkpoint, caplog):
    image_output._warn_no_thing_classes.cache_clear()
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu", things=[])
    for _ in range(2):
        found = predictor(make_image(), kinds="panoptic")
        assert not any(segment["isthing"] for segment in found.panoptic.segments)
    assert caplog.text.count("No class is known to be a thing") == 1


# Thresholds


def test_thresholds_act_without_another_forward_pass(checkpoint):
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")
    logits = predictor.logits(make_image())
    predictor.model.predict = None  # another forward pass would fail
    few = logits.result("panoptic", object_mask_threshold=0.9).panoptic.segments
    many = logits.result("panoptic", object_mask_threshold=0).panoptic.segments
    assert len(few) < len(many)
    strict = logits.result("panoptic", overlap_threshold=1).panoptic.segments
    assert len(strict) < len(many)
    assert len(logits.result("instance", topk=1).instances) <= 1
    assert logits.image.shape == (40, 70, 3) and logits.classes.names == NAMES


@pytest.mark.parametrize("name", ["object_mask_threshold", "overlap_threshold"])
def test_default_thresholds_come_from_the_config(checkpoint, name):
    key = f"MODEL.MASK_FORMER.TEST.{name.upper()}"
    plain = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")
    changed = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu", opts=(key, 0.95))
    assert same(plain(make_image(), **{name: 0.95}), changed(make_image()))
    assert same(changed(make_image(), **{name: 0.0}), plain(make_image()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kinds": "panotic"}, "kinds: found 'panotic'; expected .*panoptic"),
        ({"kinds": []}, "kinds: found nothing"),
        ({"object_mask_threshold": 1.5}, r"object_mask_threshold is 1\.5; it must lie in \[0, 1\]"),
        ({"overlap_threshold": float("nan")}, "overlap_threshold is nan"),
        ({"topk": 0}, "topk is 0; expected 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    ],
)
def test_the_error_for_an_invalid_option_names_it(predictor, options, message):
    with pytest.raises(ValueError, match=message):
        predictor(make_image(), **options)


def test_the_last_inner_outputs_equal_the_logits(predictor):
    logits = predictor.logits(make_image()).logits
    last = predictor.inner_outputs(make_image()).layers[-1]
    assert torch.allclose(last.pred_logits[0], logits.mask_cls, atol=1e-5)
    assert torch.allclose(last.pred_masks[0], logits.mask_pred, atol=1e-4)


# Several images


@pytest.fixture(scope="module")
def exact_predictor(checkpoint):
    """A predictor in double precision, so that rounding does not depend on the batch."""
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")
    predictor.model.double()
    return predictor


def test_a_list_gives_a_list_of_the_results_of_each_image_alone(exact_predictor):
    predictor = exact_predictor
    sizes = [(40, 70), (50, 50), (40, 70), (70, 40), (41, 70), (40, 70)]
    images = [make_image(*size, seed) for seed, size in enumerate(sizes)]
    alone = [predictor(one) for one in images]
    assert isinstance(predictor(images[:1]), list) and predictor([]) == []
    for batch_size in (1, 2, 6):
        found = predictor(images, batch_size=batch_size)
        assert len(found) == len(alone)
        assert all(same(*pair) for pair in zip(found, alone, strict=True))
        assert [one.semantic.shape for one in found] == sizes


def test_only_images_of_one_size_share_a_forward_pass(checkpoint):
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")
    passes = []
    predict = predictor.model.predict

    def record(examples):
        passes.append([tuple(example["image"].shape[1:]) for example in examples])
        return predict(examples)

    predictor.model.predict = record
    sizes = [(40, 70), (50, 50), (40, 70), (50, 50), (40, 70)]
    predictor([make_image(*size) for size in sizes], batch_size=3)
    assert [len(one) for one in passes] == [2, 1, 1, 1]
    assert all(len(set(one)) == 1 for one in passes)


def test_a_stream_reads_at_most_one_batch_ahead(exact_predictor):
    predictor, taken = exact_predictor, 0

    def images():
        nonlocal taken
        for seed in range(100):
            taken += 1
            yield make_image(seed=seed)

    stream = predictor.stream(images(), kinds="semantic", batch_size=3)
    assert taken == 0
    first = next(stream)
    alone = predictor(make_image(seed=0), kinds="semantic")
    assert taken == 3 and np.array_equal(first.semantic_scores, alone.semantic_scores)
    for _ in range(3):
        next(stream)
    assert taken == 6


def test_a_stream_refuses_invalid_options_at_once(predictor):
    with pytest.raises(ValueError, match="kinds: found 'x'"):
        predictor.stream([], kinds="x")


def test_threads_can_share_a_predictor(predictor):
    expected = [predictor(make_image(seed=seed)) for seed in range(4)]
    found = {}

    def work(seed):
        found[seed] = predictor(make_image(seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[seed], expected[seed]) for seed in range(4))


def test_forward_passes_never_run_concurrently(checkpoint):
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")
    predict, running, most = predictor.model.predict, [], []

    def record(examples):
        running.append(1)
        most.append(len(running))
        try:
            return predict(examples)
        finally:
            running.pop()

    predictor.model.predict = record
    threads = [threading.Thread(target=predictor, args=(make_image(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


# Other models and mistakes


def test_a_per_pixel_model_gives_only_semantic_results(tmp_path):
    settings = tiny_settings()
    settings["MODEL"]["META_ARCHITECTURE"] = "SemanticSegmentor"
    settings["MODEL"]["SEM_SEG_HEAD"]["NAME"] = "PerPixelBaselineHead"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.manual_seed(0)
    cfg = load_cfg(str(tmp_path / "config.yaml"))
    write_weights(build_model(cfg).state_dict(), tmp_path / "x.pth", None, inference_data(cfg))
    predictor = MaskFormerPredictor.from_pretrained(tmp_path / "x.pth", device="cpu")
    assert predictor.kinds == ("semantic",)
    found = predictor(make_image())
    example = predictor._inputs(make_image())
    with torch.no_grad():
        shares, ids = predictor.model([example])[0]["sem_seg"].softmax(0).max(0)
    assert np.array_equal(found.semantic, ids.numpy()) and len(ids.unique()) > 1
    assert np.allclose(found.semantic_scores, shares.numpy(), atol=1e-6)
    logits = predictor.logits(make_image()).logits
    assert logits.output_size == (40, 70) and logits.num_classes == 4
    for kind in ("panoptic", "instance"):
        with pytest.raises(ValueError, match=f"has no masks, so it has no {kind} result"):
            predictor(make_image(), kinds=kind)


def test_a_large_image_can_be_predicted_by_sliding_windows(checkpoint):
    off = [f"MODEL.MASK_FORMER.TEST.{kind}_ON" for kind in ("PANOPTIC", "INSTANCE")]
    opts = [*("TEST.SLIDING_WINDOW.SIZE", 64), *(word for key in off for word in (key, False))]
    predictor = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu", opts=opts)
    found = predictor(make_image(80, 200))
    assert found.semantic.shape == (80, 200) and found.kinds == ["semantic"]


def test_a_predictor_can_be_built_from_a_config(checkpoint):
    config, weights = checkpoint.with_name("tiny.yaml"), checkpoint.with_name("tiny.pth")
    cfg = load_cfg(str(config), ["MODEL.WEIGHTS", str(weights)])
    found = MaskFormerPredictor(cfg)
    assert found.classes.names == NAMES and found.classes.thing_ids == [2, 3]
    expected = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu")(make_image())
    assert same(found(make_image()), expected)


def test_a_wrong_number_of_classes_is_refused(checkpoint):
    cfg = MaskFormerPredictor.from_pretrained(checkpoint, device="cpu").cfg
    classes = mask_former.data.datasets.classes.Classes(["a"], [(0, 0, 0)], [False])
    with pytest.raises(ValueError, match="classes: found 1, the model has 4"):
        MaskFormerPredictor(cfg, classes)


def test_an_image_too_thin_to_resize_is_refused(predictor):
    with pytest.raises(ValueError, match=r"9000×1 pixels \(width×height\) is too thin"):
        predictor(np.zeros((1, 9000, 3), np.uint8))


# Outputs of a training run, and the examples of the documentation


def test_the_output_folder_and_the_checkpoint_of_a_training_run_can_be_loaded(tmp_path, checkpoint):
    write_tiny_model(tmp_path, PANOPTIC_ON=True, INSTANCE_ON=True)
    output = tmp_path / "output"
    output.mkdir()
    words = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]
    words += ["DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_cfg(str(tmp_path / "tiny.yaml"), words)
    model = train(cfg).model.eval()
    (output / "config.yaml").write_text(cfg.dump())
    alone = MaskFormerPredictor.from_pretrained(output / "model_final.pth", device="cpu")
    state = alone.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    folder = MaskFormerPredictor.from_pretrained(output)
    assert same(folder(make_image()), alone(make_image()))
    assert folder.classes == alone.classes


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_the_documentation_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_image(72, 96)).save("street.jpg")
    names: dict = {}
    for code in examples_of(page):
        exec(code, names)
    assert set(names["result"].kinds) & set(KINDS)
    drawn = Image.open("street_drawn.png")
    assert drawn.width >= 96 and drawn.height >= 72
