"""Images of noise, and augmentations applied to them."""

import numpy as np
from detectron2.data import transforms as T

IGNORE = 255


def noise(height, width, seed=0):
    """Return an RGB image of noise: uint8, H×W×3."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def augment(augmentations, image, sem_seg=None, seed=0):
    """Return the augmented image and label map, and the transforms that were applied."""
    np.random.seed(seed)
    inputs = T.AugInput(image, sem_seg=sem_seg)
    transforms = T.AugmentationList(augmentations)(inputs)
    return inputs.image, inputs.sem_seg, transforms
