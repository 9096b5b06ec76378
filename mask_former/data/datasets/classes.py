"""Classes of a dataset: their names and colours, and which of them are things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mask_former.utils.colors import PALETTES, Color, spread_color
from mask_former.utils.errors import short

__all__ = ["Classes"]


@dataclass(frozen=True)
class Classes:
    """Names, colours and kinds of the K classes, by contiguous id."""

    names: list[str]
    colors: list[Color]
    is_thing: list[bool]
    """False for stuff, and for all classes of a dataset that does not separate the two."""

    def __post_init__(self) -> None:
        lengths = len(self.names), len(self.colors), len(self.is_thing)
        if len(set(lengths)) > 1:
            raise ValueError(
                "Every class needs one name, colour and is_thing; found "
                f"{lengths[0]} names, {lengths[1]} colours and {lengths[2]} values of is_thing."
            )

    @property
    def known_names(self) -> list[str] | None:
        """Names of the classes; None if they are placeholders ("class 0", …)."""
        return None if self.names == _numbered(len(self.names)) else self.names

    @property
    def thing_ids(self) -> list[int]:
        """Contiguous ids of the things, ascending."""
        return [index for index, is_thing in enumerate(self.is_thing) if is_thing]

    @classmethod
    def from_metadata(cls, metadata: Any, num_classes: int) -> Classes:
        """Read classes from a dataset's metadata; name them "class 0", … if it does not list K.

        Args:
            metadata: detectron2's metadata, with ``stuff_classes`` or ``thing_classes`` and their
                colours. Things are the values of ``thing_dataset_id_to_contiguous_id``; without it,
                all classes are things if only ``thing_classes`` lists K names.
            num_classes: K; lists of another length belong to other classes and are ignored.
        """

        def find(suffix: str) -> tuple[str, list[Any]] | None:
            lists = ((kind, metadata.get(f"{kind}_{suffix}", None)) for kind in ("stuff", "thing"))
            found = ((kind, list(v)) for kind, v in lists if v and len(v) == num_classes)
            return next(found, None)

        kind, names = find("classes") or ("", _numbered(num_classes))
        _, colors = find("colors") or ("", [spread_color(i) for i in range(num_classes)])
        mapping = metadata.get("thing_dataset_id_to_contiguous_id", None)
        every = range(num_classes) if kind == "thing" else ()
        things = set(every if mapping is None else mapping.values())
        return cls(
            names,
            [(int(r), int(g), int(b)) for r, g, b in colors],
            [index in things for index in range(num_classes)],
        )

    def with_palette(self, name: str) -> Classes:
        """Return the same classes in other colours; a class's colour depends only on its id.

        Args:
            name: a key of :data:`mask_former.utils.colors.PALETTES`; "dataset" changes nothing.

        Raises:
            ValueError: if there is no palette with this name.
        """
        if name not in PALETTES:
            raise ValueError(f"There is no palette {name!r}; choose from {', '.join(PALETTES)}.")
        color_of = PALETTES[name]
        if color_of is None:
            return self
        return replace(self, colors=[color_of(index) for index in range(len(self.names))])

    def to_data(self) -> list[dict[str, Any]]:
        """Return plain data for files: for each class a dict of name, color and isthing."""
        return [
            {"name": name, "color": list(color), "isthing": bool(is_thing)}
            for name, color, is_thing in zip(self.names, self.colors, self.is_thing, strict=True)
        ]

    @classmethod
    def from_data(cls, data: Sequence[Mapping[str, Any]]) -> Classes:
        """Build classes from the data that :meth:`to_data` returns.

        Raises:
            ValueError: if a key of an entry is missing or has the wrong type.
        """
        try:
            rows = [(str(d["name"]), _color(d["color"]), bool(d["isthing"])) for d in data]
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                "Classes are a list of dicts of name, color (three values 0 … 255) and isthing; "
                f"found {short(data, 200)} ({error!r})."
            ) from error
        return cls(*([row[column] for row in rows] for column in range(3)))  # type: ignore[arg-type]


def _numbered(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def _color(values: Sequence[Any]) -> Color:
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError("a colour is outside 0 … 255")
    return red, green, blue
