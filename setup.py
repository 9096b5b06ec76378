# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Build script of the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

INIT = (ROOT / "mask_former" / "__init__.py").read_text()
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', INIT, flags=re.MULTILINE)

# These folders are next to the package in the repository, and inside it in a wheel.
FOLDERS = [name for name in ("configs", "model_zoo") if (ROOT / name).is_dir()]

# Lower bounds only, so that an installed torch is kept. Not listed are detectron2, which may be a
# source build or the wheel of requirements/detectron2.txt (`python tools/doctor.py` prints how to
# get one), OpenCV, of which two conflicting packages exist, and panopticapi-lite, whose outdated
# bound would downgrade numpy below 2.
REQUIRES = [
    "torch>=2.6",  # weights_only loading is safe from here on
    "torchvision>=0.21",
    "numpy>=1.26",
    "scipy",
    "Pillow>=10",
    "safetensors",
    # requirements of detectron2, whose wheel is installed without them
    "cloudpickle",
    "fvcore>=0.1.5.post20221221",
    "hydra-core>=1.1",
    "iopath>=0.1.9",
    "matplotlib",
    "omegaconf>=2.1",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor",
    "tqdm",
    "yacs>=0.1.8",
]

EXTRAS = {
    "timm": ["timm>=1.0.31"],
    "cityscapes": ["cityscapesscripts>=2.2"],
    "opencv": ["opencv-python-headless"],
    "huggingface": ["transformers>=5"],
    "coco-stuff": ["h5py"],
    "app": ["gradio>=6.31"],
    "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
    "dev": ["build", "mypy", "pytest>=8", "pytest-cov", "pytest-xdist", "ruff"],
}

setup(
    name="mask-former",
    version=VERSION,
    description="MaskFormer: mask classification for semantic, instance and panoptic segmentation",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE", "model_zoo/LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["mask_former", "mask_former.*"]),
        *(f"mask_former.{name}" for name in FOLDERS),
    ],
    package_dir={f"mask_former.{name}": name for name in FOLDERS},
    package_data={
        "mask_former": ["**/*.json"],
        "mask_former.configs": ["**/*.yaml"],
        "mask_former.model_zoo": ["*"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    zip_safe=False,
)
