"""A table of parameter names that serves both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["Modules", "NameTable", "Part"]


class Modules(NamedTuple):
    """Modules with common prefixes."""

    ours: str
    theirs: str
    names: Mapping[str, str]
    """Ours → theirs, without the prefixes. ``*`` is a number. Three modules of theirs, {a,b,c}, are
    one of ours, with their rows concatenated."""


class Part(NamedTuple):
    """The place of a parameter of theirs in ours."""

    name: str
    """The name of ours."""
    position: int
    parts: int
    """It is at ``position``, from 0, among the ``parts`` that are concatenated."""


# transformers 5 uses these names in memory, and `torch.save` writes them.
_IN_MEMORY = tuple(
    (re.compile(pattern), saved)
    for pattern, saved in (
        (r"(_attn)\.o_proj\.", r"\1.out_proj."),
        (r"(transformer_module\.decoder\.layers\.\d+)\.mlp\.(fc[12])\.", r"\1.\2."),
        # the Swin of a Mask2Former
        (r"(pixel_level_module\.encoder)\.swin\.", r"\1."),
        (r"(blocks\.\d+\.attention)\.q_proj\.", r"\1.self.query."),
        (r"(blocks\.\d+\.attention)\.k_proj\.", r"\1.self.key."),
        (r"(blocks\.\d+\.attention)\.v_proj\.", r"\1.self.value."),
        (r"(blocks\.\d+\.attention)\.o_proj\.", r"\1.output.dense."),
        (r"(blocks\.\d+\.attention)\.relative_position_bias\.", r"\1.self."),
        (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    )
)


class _Row(NamedTuple):
    ours: str  # with * for numbers
    theirs: tuple[str, ...]  # one name, or the three that ours concatenates


class NameTable:
    """Names of the modules of a model, ours and those of the files of ``save_pretrained``."""

    def __init__(self, blocks: Iterable[Modules]) -> None:
        rows = [
            _Row(block.ours + ours, _expand(block.theirs + theirs))
            for block in blocks
            for ours, theirs in block.names.items()
        ]
        self._ours = [(_pattern(row.ours), row) for row in rows]
        self._theirs = [
            (_pattern(theirs), row, index)
            for row in rows
            for index, theirs in enumerate(row.theirs)
        ]

    def to_ours(self, name: str) -> Part | None:
        """Return the place in ours of a parameter of theirs, or None if the name is unknown.

        Args:
            name: The name in files or in memory.
        """
        for pattern, saved in _IN_MEMORY:
            name = pattern.sub(saved, name)
        for pattern, row, index in self._theirs:
            found = pattern.fullmatch(_split(name))
            if found:
                return Part(_fill(row.ours, found.groups()), index, len(row.theirs))
        return None

    def to_theirs(self, name: str) -> list[str]:
        """Return the names of the parts of a parameter of ours, or [] if the name is unknown."""
        for pattern, row in self._ours:
            found = pattern.fullmatch(_split(name))
            if found:
                return [_fill(theirs, found.groups()) for theirs in row.theirs]
        return []


def _expand(theirs: str) -> tuple[str, ...]:
    """Expand a name such as ``x.{q,k,v}_proj`` to three names."""
    parts = re.fullmatch(r"(.*)\{(.*)\}(.*)", theirs)
    return tuple(parts[1] + part + parts[3] for part in parts[2].split(",")) if parts else (theirs,)


def _pattern(module: str) -> re.Pattern[str]:
    """Compile a pattern of a module's parameters; groups: numbers, and the parameter's own name."""
    return re.compile(re.escape(module).replace(r"\*", r"(\d+)") + r"\.(\w+)")


def _split(name: str) -> str:
    """Treat ``in_proj_weight``, of torch's attention, as the weight of a module ``in_proj``."""
    return name.replace("in_proj_", "in_proj.")


def _fill(module: str, words: Iterable[str]) -> str:
    """Insert the numbers into a module's name, and append the parameter's own name."""
    parts: Iterator[str] = iter((*words,))
    filled = re.sub(r"\*", lambda _: next(parts), module)
    return f"{filled}.{next(parts)}".replace("in_proj.", "in_proj_")
