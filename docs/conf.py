"""Sphinx configuration of the documentation site, which `make docs` builds from the Markdown pages.

The source folder is the checkout, so that links between pages work on the site and in the
repository alike; this file is in docs/ (``sphinx-build -c docs . site``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon import GoogleDocstring

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the API pages import the package

project = "MaskFormer on detectron2"
copyright = "the MaskFormer-on-detectron2 authors, Apache-2.0"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "model_zoo/*.md"]
include_patterns += ["datasets/README.md", "tests/golden/README.md"]
exclude_patterns = [".*", "output", "build", "dist", "site", "datasets/*/**"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
default_role = "code"  # for `x` in a docstring
myst_heading_anchors = 4
myst_links_external_new_tab = False
autodoc_typehints = "none"  # the signatures show the types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "special-members": "__call__"}
autoclass_content = "both"  # a constructor's arguments are in its own docstring
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"  # loads no fonts or scripts from the web
html_title = project
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
pygments_style = "tango"
highlight_language = "text"  # blocks without a language are commands

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def _line_numbers(text: str) -> str:
    """Load paper_lines.py, which is outside ``sys.path``, and add its line numbers to a page."""
    spec = importlib.util.spec_from_file_location("paper_lines", ROOT / "docs" / "paper_lines.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.with_lines(text)


def _prepare(app: Any, page: str, source: list[str]) -> None:
    """Turn links to code and configs into plain text, because the site has only pages."""
    folder = (ROOT / page).parent

    def without_dead_link(match: re.Match[str]) -> str:
        target = folder / match[2]
        if "://" in match[2] or target.suffix == ".md" or not target.exists():
            return match[0]
        return match[1]

    source[0] = LINK.sub(without_dead_link, source[0])
    if page == "docs/paper_to_code":
        source[0] = _line_numbers(source[0])


def _drop_constructor_text(app: Any, *event: Any) -> None:
    """Drop Python's own docstring of a named tuple's constructor, which repeats its signature."""
    lines = event[-1]
    lines[:] = [line for line in lines if not line.startswith("Create new instance of ")]


def setup(app: Any) -> None:
    """Connect the event handlers; Sphinx calls this function."""
    app.connect("source-read", _prepare)
    app.connect("autodoc-process-docstring", _drop_constructor_text)
    # Otherwise "the key: its meaning" below an attribute is parsed as a type and a description.
    GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end
