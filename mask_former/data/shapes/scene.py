"""Draw scenes of simple shapes on textured backgrounds from a seed.

The outline of a thing and the pattern of a stuff region define their classes. Colours come from a
small palette that is drawn for each scene and shared by everything in it, so colours do not reveal
classes, and reveal only few borders of segments.

Only NumPy's float64 arithmetic and PCG64's ``random``, ``uniform`` and ``integers`` are used, and
no library that rasterises or blurs, so that a seed produces the same scene on every machine.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 128, 160  # pixels
THINGS_PER_SCENE = (3, 12)
NEW_CLASS = 0.7  # probability that the next thing has a class that is new in the scene
RADIUS = (15.0, 30.0)  # pixels
TILT = 0.35  # radians, the largest rotation of a thing in either direction
MIN_VISIBLE_AREA = 120  # pixels, of every thing
MIN_VISIBLE_PART = 0.6  # fraction of a thing's full area, any part outside the image included
MIN_STUFF_AREA = 600  # pixels
PERIOD = (10.0, 16.0)  # pixels, of every pattern
SUBSAMPLES = 3  # per pixel and axis, for antialiasing
PALETTE = 3  # colours of a scene, shared by things and stuff
MARGIN = 8  # pixels around a thing, for its shadow

Array = NDArray[np.float64]
Outline = Callable[[Array, Array], NDArray[np.bool_]]
Pattern = Callable[[Array, Array], Array]
T = TypeVar("T")


def _polar(x: Array, y: Array) -> tuple[Array, Array]:
    return np.hypot(x, y), np.arctan2(y, x)


def _star(x: Array, y: Array) -> NDArray[np.bool_]:
    """Test whether points lie inside a five-pointed star.

    All edges mirror one straight edge, from an outer corner (radius 1) to an inner corner.
    """
    radius, angle = _polar(x, y)
    sector = np.pi / 5
    folded = np.abs((angle + sector) % (2 * sector) - sector)  # 0 at an outer corner
    inner = 0.45
    px, py = radius * np.cos(folded), radius * np.sin(folded)
    ix, iy = inner * np.cos(sector), inner * np.sin(sector)
    return (px - 1) * iy - py * (ix - 1) < 0


# Functions that test whether points lie inside a thing, in its own frame, where it roughly fills
# the unit disc.
OUTLINES: dict[str, Outline] = {
    "disc": lambda x, y: x**2 + y**2 < 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) < 0.25,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.8,
    "triangle": lambda x, y: np.maximum(y, -0.5 * y + 0.866 * np.abs(x)) < 0.55,
    "star": _star,
    "cross": lambda x, y: (
        (np.maximum(np.abs(x), np.abs(y)) < 0.95) & (np.minimum(np.abs(x), np.abs(y)) < 0.3)
    ),
    "moon": lambda x, y: (x**2 + y**2 < 1) & ((x - 0.55) ** 2 + y**2 > 0.55),
    "heart": lambda x, y: x**2 + (y + np.sqrt(np.abs(x)) - 0.23) ** 2 < 0.83,
}


def _dots(u: Array, v: Array) -> Array:
    row = np.floor(v)
    return 0.3 - np.hypot((u + row % 2 / 2) % 1 - 0.5, v - row - 0.5)


# Negative where a pattern has its first colour, positive for the second; coordinates in periods.
PATTERNS: dict[str, Pattern] = {
    "stripes": lambda u, v: np.abs(u % 1 - 0.5) - 0.25,
    "checks": lambda u, v: np.sin(np.pi * u * 1.4) * np.sin(np.pi * v * 1.4) / 4,
    "dots": _dots,
    "waves": lambda u, v: np.abs((u + 0.45 * np.sin(np.pi * v)) % 1 - 0.5) - 0.25,
}


@dataclass(frozen=True)
class _Frame:
    """Position, rotation and size of an object, in pixels and radians."""

    x: float
    y: float
    angle: float
    unit: float
    stretch: float = 1.0

    def local(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Convert image coordinates to coordinates in this frame, in units."""
        cos, sin = np.cos(self.angle) / self.unit, np.sin(self.angle) / self.unit
        x, y = x - self.x, y - self.y
        return (cos * x + sin * y) * self.stretch, cos * y - sin * x


@dataclass(frozen=True)
class _Layer:
    """One segment: its coverage of each pixel (0 … 1) in a box at (left, top)."""

    name: str
    frame: _Frame
    coverage: Array
    left: int = 0
    top: int = 0

    def clip(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the part of the box inside the image, as slices of the image and the box."""
        (height, width), left, top = self.coverage.shape, self.left, self.top
        rows = slice(max(top, 0), min(top + height, HEIGHT))
        columns = slice(max(left, 0), min(left + width, WIDTH))
        return (rows, columns), (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )


def scene(
    seed: int | Sequence[int],
) -> tuple[NDArray[np.uint8], NDArray[np.int32], dict[int, str]]:
    """Draw one scene.

    Returns:
        The image, H×W×3 RGB; the segment id of every pixel, H×W from 1; and the class name by
        segment id. A pattern occurs in at most one segment of a scene.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    layers, ids = _layout(rng)
    return _render(rng, layers), ids, {i + 1: layer.name for i, layer in enumerate(layers)}


def _layout(rng: np.random.Generator) -> tuple[list[_Layer], NDArray[np.int32]]:
    """Draw layers from bottom to top, and the map of their ids 1, 2, … ."""
    while True:
        layers, ids = _stuff(rng)
        num_stuff = len(layers)
        fewest, most = THINGS_PER_SCENE
        count = fewest + int((most + 1 - fewest) * rng.random() ** 2)
        ids = _add_things(rng, count, layers, ids)
        stuff_areas = np.bincount(ids.ravel(), minlength=num_stuff + 1)[1 : num_stuff + 1]
        if len(layers) >= num_stuff + THINGS_PER_SCENE[0] and stuff_areas.min() >= MIN_STUFF_AREA:
            return layers, ids


def _stuff(rng: np.random.Generator) -> tuple[list[_Layer], NDArray[np.int32]]:
    """Draw two or three regions; wavy lines separate all but the first from the others."""
    x, y = _pixel_centres(slice(0, WIDTH), slice(0, HEIGHT))
    ids = np.ones((HEIGHT, WIDTH), np.int32)
    layers: list[_Layer] = []
    for name in _shuffled(rng, list(PATTERNS))[: rng.integers(2, 3, endpoint=True)]:
        cx, cy = rng.uniform(0.25, 0.75, 2) * (WIDTH, HEIGHT)
        across, along = _Frame(cx, cy, rng.uniform(0, 2 * np.pi), 1).local(x, y)
        distance = across + rng.uniform(3, 9) * np.sin(along / rng.uniform(12, 25))
        coverage = np.clip(distance + 0.5, 0, 1) if layers else np.ones_like(distance)
        frame = _Frame(cx, cy, rng.uniform(0, 2 * np.pi), rng.uniform(*PERIOD))
        layers.append(_Layer(name, frame, coverage))
        ids[coverage >= 0.5] = len(layers)
    return layers, ids


def _add_things(
    rng: np.random.Generator, count: int, layers: list[_Layer], ids: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Put up to ``count`` things on top of ``layers`` so that enough of each stays visible."""
    needed = [0.0] * (len(layers) + 1)  # minimum of visible pixels, by id
    total = len(layers) + count
    for _ in range(20 * count):
        fresh = sorted(set(OUTLINES) - {layer.name for layer in layers})
        names = fresh if fresh and rng.random() < NEW_CLASS else list(OUTLINES)
        thing = _thing(rng, names[rng.integers(len(names))])
        window, inner = thing.clip()
        candidate = ids.copy()
        candidate[window][thing.coverage[inner] >= 0.5] = len(layers) + 1
        least = [*needed, max(MIN_VISIBLE_AREA, MIN_VISIBLE_PART * thing.coverage.sum())]
        if (np.bincount(candidate.ravel(), minlength=len(least)) >= least).all():
            layers.append(thing)
            ids, needed = candidate, least
        if len(layers) == total:
            break
    return ids


def _thing(rng: np.random.Generator, name: str) -> _Layer:
    """Draw a thing at a random position, in a box that contains it and its shadow."""
    x, y = rng.random(2) * (WIDTH, HEIGHT)
    angle, radius, stretch = rng.uniform((-TILT, RADIUS[0], 0.9), (TILT, RADIUS[1], 1.1))
    frame = _Frame(x, y, angle, radius, stretch)
    reach = int(np.ceil(1.3 * radius))
    left, top = int(x) - reach, int(y) - reach
    fine = (np.arange(SUBSAMPLES * 2 * reach) + 0.5) / SUBSAMPLES
    inside = OUTLINES[name](*frame.local(left + fine[None], top + fine[:, None]))
    shape = (2 * reach, SUBSAMPLES, 2 * reach, SUBSAMPLES)
    coverage = inside.reshape(shape).mean(axis=(1, 3))
    return _Layer(name, frame, np.pad(coverage, MARGIN), left - MARGIN, top - MARGIN)


def _render(rng: np.random.Generator, layers: list[_Layer]) -> NDArray[np.uint8]:
    palette = _palette(rng)
    light = rng.uniform(0, 2 * np.pi)
    canvas = np.zeros((HEIGHT, WIDTH, 3))
    for layer in layers:
        window, inner = layer.clip()
        u, v = layer.frame.local(*_pixel_centres(*window[::-1]))
        colours = palette[_shuffled(rng, range(PALETTE))]
        if layer.name in PATTERNS:
            fill = _pattern_fill(layer, u, v, colours)
        else:
            fill = _gradient_fill(u, v, colours, rng.uniform(0, 2 * np.pi))
            soft = _blurred(layer.coverage)
            shift = np.round([-3 * np.sin(light), -3 * np.cos(light)]).astype(int)
            canvas[window] *= 1 - 0.5 * np.roll(soft, shift, axis=(0, 1))[inner][..., None]
            rim = np.clip(3.5 * (0.8 - soft[inner]), 0, 0.85)[..., None]
            fill += (0.95 - fill) * rim
        canvas[window] += (fill - canvas[window]) * layer.coverage[inner][..., None]
    x, y = _pixel_centres(slice(0, WIDTH), slice(0, HEIGHT))
    toward_light, _ = _Frame(WIDTH / 2, HEIGHT / 2, light, WIDTH / 2).local(x, y)
    canvas *= 1 + 0.25 * toward_light[..., None]
    noise = rng.random(canvas.shape) + rng.random(canvas.shape) - 1
    canvas += rng.uniform(0.04, 0.1) * noise
    return np.clip(255 * canvas, 0, 255).round().astype(np.uint8)


def _pattern_fill(layer: _Layer, u: Array, v: Array, colours: Array) -> Array:
    """Fill a region with a pattern of two colours; transitions are about one pixel wide."""
    mix = np.clip(0.5 + layer.frame.unit * PATTERNS[layer.name](u, v), 0, 1)
    return colours[0] + (colours[1] - colours[0]) * mix[..., None]


def _gradient_fill(u: Array, v: Array, colours: Array, turn: float) -> Array:
    """Fill a thing with a gradient from the first to the third colour; the second is central."""
    sweep = (np.cos(turn) * u + np.sin(turn) * v)[..., None]
    end = np.where(sweep < 0, colours[0], colours[2])
    return end + (colours[1] - end) * (1 - np.clip(1.1 * np.abs(sweep), 0, 1))


def _palette(rng: np.random.Generator) -> Array:
    """Draw RGB colours (0 … 1), every two of them clearly different."""
    while True:
        hsv = rng.uniform((0, 0.25, 0.4), (1, 0.85, 1), size=(PALETTE, 3))
        palette = np.array([colorsys.hsv_to_rgb(*color) for color in hsv])
        distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
        if distances[np.triu_indices(PALETTE, 1)].min() > 0.3:
            return palette


def _blurred(coverage: Array) -> Array:
    """Apply two box blurs of 5 pixels, within the box's margin."""
    for axis in (0, 1, 0, 1):
        total = np.cumsum(coverage, axis=axis)
        coverage = (np.roll(total, -2, axis) - np.roll(total, 3, axis)) / 5
        coverage.swapaxes(0, axis)[[0, 1, 2, -2, -1]] = 0  # where the roll wrapped around
    return coverage


def _pixel_centres(columns: slice, rows: slice) -> tuple[Array, Array]:
    """Return the x coordinates 1×w and y coordinates h×1 of the centres of pixels."""
    x = np.arange(columns.start, columns.stop) + 0.5
    y = np.arange(rows.start, rows.stop) + 0.5
    return x[None], y[:, None]


def _shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    return [items[i] for i in np.argsort(rng.random(len(items)))]
