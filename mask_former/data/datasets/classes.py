"""The classes of a dataset as results need them: names, colours, and which are things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mask_former.utils.colors import PALETTES, Color, spread_color

__all__ = ["Classes"]


@dataclass(frozen=True)
class Classes:
    """Names, colours and kinds of the K classes, by contiguous id."""

    names: list[str]
    colors: list[Color]
    is_thing: list[bool]
    """False: stuff, or a class of a dataset that does not tell things from stuff."""

    def __post_init__(self) -> None:
        lengths = len(self.names), len(self.colors), len(self.is_thing)
        if len(set(lengths)) > 1:
            raise ValueError(
                "Classes have a name, a colour and an is_thing each; found "
                f"{lengths[0]} names, {lengths[1]} colours and {lengths[2]} is_thing."
            )

    @property
    def thing_ids(self) -> list[int]:
        """The contiguous ids of the things, ascending."""
        return [index for index, is_thing in enumerate(self.is_thing) if is_thing]

    @classmethod
    def from_metadata(cls, metadata: Any, num_classes: int) -> Classes:
        """Those of a dataset's metadata; where it has none for K classes, "class 3" and a colour.

        Args:
            metadata: detectron2's, with ``stuff_classes`` or ``thing_classes`` and colours. Things
                are the values of ``thing_dataset_id_to_contiguous_id``; without it all classes,
                where the names are those of ``thing_classes`` alone.
            num_classes: K; a list of another length belongs to other classes and is not taken.
        """

        def find(suffix: str) -> tuple[str, list[Any]] | None:
            lists = ((kind, metadata.get(f"{kind}_{suffix}", None)) for kind in ("stuff", "thing"))
            found = ((kind, list(one)) for kind, one in lists if one and len(one) == num_classes)
            return next(found, None)

        kind, names = find("classes") or ("", [f"class {i}" for i in range(num_classes)])
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
        """The same classes in other colours; a class's colour depends on its id alone.

        Args:
            name: a key of :data:`mask_former.utils.colors.PALETTES`; "dataset" leaves all as it is.

        Raises:
            ValueError: for another name.
        """
        if name not in PALETTES:
            raise ValueError(f"There is no palette {name!r}; there are {', '.join(PALETTES)}.")
        make = PALETTES[name]
        if make is None:
            return self
        return replace(self, colors=[make(index) for index in range(len(self.names))])

    def to_data(self) -> list[dict[str, Any]]:
        """Plain data for checkpoints and JSON: a dict of ``name``, ``color``, ``isthing`` each."""
        return [
            {"name": name, "color": list(color), "isthing": bool(is_thing)}
            for name, color, is_thing in zip(self.names, self.colors, self.is_thing, strict=True)
        ]

    @classmethod
    def from_data(cls, data: Sequence[Mapping[str, Any]]) -> Classes:
        """What :meth:`to_data` gave.

        Raises:
            ValueError: if an entry lacks a key or has another type there.
        """
        try:
            rows = [(str(d["name"]), _color(d["color"]), bool(d["isthing"])) for d in data]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "Classes are a list of dicts of name, color (three values 0 … 255) and isthing; "
                f"found {str(data)[:200]} ({error!r})."
            ) from error
        return cls(*([row[column] for row in rows] for column in range(3)))  # type: ignore[arg-type]


def _color(values: Sequence[Any]) -> Color:
    red, green, blue = (int(value) for value in values)
    return red, green, blue
