# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Segment a photo, then train a small panoptic model on synthetic scenes and draw its results.

    python tools/run_demo.py [--photos PATH ...] [--minimum-pq PQ]

`make demo` runs it. The photo takes seconds, because it is segmented with the model that comes with
the code. Steps that an earlier run has finished are skipped, and an interrupted training continues
from its last checkpoint; `make clean` removes the results.
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
PHOTO = ("sklearn", "datasets/images/china.jpg")  # package, and file in it
PHOTO_OUTPUT = Path("output/photos_demo")
CONFIG = "configs/shapes/mask2former_panoptic_tiny.yaml"
OUTPUT = Path("output/shapes_demo")  # relative to ROOT, where every command runs
DATASET = "shapes_panoptic_val"
IMAGES = "shapes_panoptic/val"  # relative to $DETECTRON2_DATASETS
NUM_IMAGES = 8


def train_command(*, resume: bool) -> list[str]:
    """Return the command that trains the model."""
    options = ["--resume"] if resume else []
    return [TRAIN_NET, "--config-file", CONFIG, *options, "OUTPUT_DIR", str(OUTPUT)]


def evaluate_command(weights: Path) -> list[str]:
    """Return the command that evaluates weights."""
    settings = ["OUTPUT_DIR", str(OUTPUT), "MODEL.WEIGHTS", str(weights)]
    return [TRAIN_NET, "--config-file", CONFIG, "--eval-only", *settings]


def demo_command(model: str, images: list[str], output: Path, *options: str) -> list[str]:
    """Return the command that draws the results of a model for images."""
    files = ["--input", *images, "--output", str(output)]
    return ["demo/demo.py", "--weights", model, *options, *files]


def log(text: str) -> None:
    """Print a line of progress."""
    print(f"demo: {text}", flush=True)


def run(step: str, command: list[str]) -> None:
    """Run one of the project's scripts; exit if it fails."""
    log(f"{step}: python {' '.join(command[:6])} …")
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        log_file = f" and {OUTPUT}/log.txt" if command[0] == TRAIN_NET else ""
        sys.exit(f"demo: {step} failed (exit code {code}); see the error above{log_file}")


def installed_photo() -> Path | None:
    """Return the path of the photo in an installed package; None if it is missing."""
    package, name = PHOTO
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    return path if path and path.is_file() else None


def segment_photos(photos: list[str]) -> None:
    """Draw the results of the model that comes with the code for the user's photos, or for ours."""
    weights = Path("model_zoo") / f"{ZOO_MODEL}.safetensors"
    if not photos:
        photo = installed_photo()
        if photo is None:
            log(f"photos: skipped, because {PHOTO[0]} is missing; name yours with --photos")
            return
        if is_newer(PHOTO_OUTPUT / f"{photo.stem}.png", weights):
            log(f"photos: done already ({PHOTO_OUTPUT})")
            return
        photos = [str(photo)]
    run("photos", demo_command(ZOO_MODEL, photos, PHOTO_OUTPUT, "--legend"))
    log(f"results of {ZOO_MODEL}, a model for street scenes: {PHOTO_OUTPUT}")


def train(weights: Path) -> None:
    """Train the model, or continue its training, unless its final weights exist."""
    if (ROOT / weights).exists():
        log(f"training: done already ({weights})")
        return
    run("training", train_command(resume=(ROOT / OUTPUT / "last_checkpoint").exists()))


def evaluate(results: Path, weights: Path) -> float:
    """Return the PQ of the weights, in percent; evaluate them unless training has done so."""
    if not is_newer(results, weights):
        run("evaluation", evaluate_command(weights))
    return json.loads((ROOT / results).read_text())[DATASET]["panoptic_seg"]["PQ"]


def draw(drawings: Path, weights: Path) -> None:
    """Draw the results of the weights for the first held-out images."""
    folder = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets")) / IMAGES
    images = sorted(p for p in folder.glob("*") if p.suffix in (".jpg", ".png"))[:NUM_IMAGES]
    if not images:
        sys.exit(f"demo: no images in {folder}; create them: python datasets/prepare_shapes.py")
    if all(is_newer(drawings / image.name, weights) for image in images):
        log(f"images: done already ({drawings})")
        return
    run("images", demo_command(str(weights), [str(image) for image in images], drawings))


def is_newer(path: Path, than: Path) -> bool:
    """Return True if `path` exists and was written after `than`."""
    path, than = ROOT / path, ROOT / than
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def main() -> None:
    """Run all steps; exit with a message if one fails or the PQ is too low."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--minimum-pq", type=float, default=0.0, help="exit with 1 if the PQ is below"
    )
    parser.add_argument(
        "--photos",
        nargs="+",
        default=[],
        metavar="PATH",
        help="your photos: images, folders or globs",
    )
    args = parser.parse_args()
    weights, drawings = OUTPUT / "model_final.pth", OUTPUT / "images"
    try:
        segment_photos([str(Path(photo).resolve()) for photo in args.photos])
        train(weights)
        pq = evaluate(OUTPUT / "results.json", weights)
        draw(drawings, weights)
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; the same command continues from here")
    log(f"PQ {pq:.1f} on the held-out scenes; images of the results: {drawings}")
    if pq < args.minimum_pq:
        sys.exit(f"demo: PQ {pq:.1f} is below {args.minimum_pq:g}")


if __name__ == "__main__":
    main()
