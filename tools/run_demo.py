# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Segment a photo, then train a small panoptic model on drawn scenes and show what it finds.

    python tools/run_demo.py [--photos PATH ...] [--minimum-pq PQ]

`make demo` runs it. The photo takes seconds: the model that comes with the code segments it. What
an earlier run has finished is skipped, and a training run that was interrupted goes on from its
last checkpoint; `make clean` removes the results.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAIN_NET = "tools/train_net.py"
ZOO_MODEL = "camvid_panoptic"
PHOTO = ("sklearn", "datasets/images/china.jpg")  # one of an installed package
PHOTO_OUTPUT = Path("output/photos_demo")
CONFIG = "configs/shapes/maskformer_panoptic_tiny.yaml"
OUTPUT = Path("output/shapes_demo")  # seen from ROOT, where every command runs
DATASET = "shapes_panoptic_val"
IMAGES = "shapes_panoptic/val"  # seen from $DETECTRON2_DATASETS
NUM_PICTURES = 8


def train_command(*, resume: bool) -> list[str]:
    options = ["--resume"] if resume else []
    return [TRAIN_NET, "--config-file", CONFIG, *options, "OUTPUT_DIR", str(OUTPUT)]


def evaluate_command(weights: Path) -> list[str]:
    settings = ["OUTPUT_DIR", str(OUTPUT), "MODEL.WEIGHTS", str(weights)]
    return [TRAIN_NET, "--config-file", CONFIG, "--eval-only", *settings]


def demo_command(model: str, images: list[str], pictures: Path, *options: str) -> list[str]:
    files = ["--input", *images, "--output", str(pictures)]
    return ["demo/demo.py", "--weights", model, *options, *files]


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def run(step: str, command: list[str]) -> None:
    """Run one of the project's scripts; exit where it fails."""
    say(f"{step}: python {' '.join(command[:6])} …")
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        log = f" and {OUTPUT}/log.txt" if command[0] == TRAIN_NET else ""
        sys.exit(f"demo: {step} failed (exit code {code}); see the error above{log}")


def installed_photo() -> Path | None:
    """Return the photo that an installed package carries; None if it is missing."""
    package, name = PHOTO
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    return path if path and path.is_file() else None


def segment_photos(photos: list[str]) -> None:
    """Draw what the model that comes with the code finds in the user's photos, or in ours."""
    weights = Path("model_zoo") / f"{ZOO_MODEL}.safetensors"
    if not photos:
        photo = installed_photo()
        if photo is None:
            say(f"photos: {PHOTO[0]} with its photo is not installed; name yours with --photos")
            return
        if is_newer(PHOTO_OUTPUT / f"{photo.stem}.png", weights):
            say(f"photos: done already ({PHOTO_OUTPUT})")
            return
        photos = [str(photo)]
    run("photos", demo_command(ZOO_MODEL, photos, PHOTO_OUTPUT, "--legend"))
    say(f"what {ZOO_MODEL}, a model of street scenes, finds in them: {PHOTO_OUTPUT}")


def train(weights: Path) -> None:
    if (ROOT / weights).exists():
        say(f"training: done already ({weights})")
        return
    run("training", train_command(resume=(ROOT / OUTPUT / "last_checkpoint").exists()))


def evaluate(results: Path, weights: Path) -> float:
    """Return the PQ of the weights, in percent; training ends with an evaluation of its own."""
    if not is_newer(results, weights):
        run("evaluation", evaluate_command(weights))
    return json.loads((ROOT / results).read_text())[DATASET]["panoptic_seg"]["PQ"]


def draw(pictures: Path, weights: Path) -> None:
    """Draw what the weights find on the first held-out images."""
    folder = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets")) / IMAGES
    images = sorted(p for p in folder.glob("*") if p.suffix in (".jpg", ".png"))[:NUM_PICTURES]
    if not images:
        sys.exit(f"demo: no images in {folder}; write them: python datasets/prepare_shapes.py")
    if all(is_newer(pictures / image.name, weights) for image in images):
        say(f"images: done already ({pictures})")
        return
    run("pictures", demo_command(str(weights), [str(image) for image in images], pictures))


def is_newer(path: Path, than: Path) -> bool:
    """Return True if `path` exists and was written after `than`."""
    path, than = ROOT / path, ROOT / than
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minimum-pq", type=float, default=0.0, help="exit with 1 below it")
    parser.add_argument(
        "--photos", nargs="+", default=[], metavar="PATH", help="yours: images, folders or globs"
    )
    args = parser.parse_args()
    weights, pictures = OUTPUT / "model_final.pth", OUTPUT / "pictures"
    try:
        segment_photos([str(Path(photo).resolve()) for photo in args.photos])
        train(weights)
        pq = evaluate(OUTPUT / "results.json", weights)
        draw(pictures, weights)
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; the same command goes on from here")
    say(f"PQ {pq:.1f} on the held-out scenes; images of the results: {pictures}")
    if pq < args.minimum_pq:
        sys.exit(f"demo: PQ {pq:.1f} is below {args.minimum_pq:g}")


if __name__ == "__main__":
    main()
