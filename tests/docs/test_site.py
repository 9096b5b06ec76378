"""The site: links have targets, formulas refer to lines of code, it builds without a warning."""

from __future__ import annotations

import ast
import importlib
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mask_former
from tests.helpers.pages import PAGES, ROOT, blocks, name_of, text_of
from tests.helpers.scripts import load_script

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")

paper_lines = load_script(DOCS / "paper_lines.py")

TEXT = paper_lines.PAGE.read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "`mask_former/" in line]


def anchors(page: Path) -> set[str]:
    """Return the anchors (``#…``) of a page: its headings as GitHub and the site convert them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_included_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link[0]]
    targets = [target for target, _ in links if target]
    targets += re.findall(r"\{literalinclude\} (\S+)", text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
    for target, anchor in links:
        if anchor:
            assert anchor in anchors(page.parent / target if target else page), anchor


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:60] for row in ROWS])
def test_a_formula_is_on_one_line_of_the_code(row: str) -> None:
    (match,) = paper_lines.ROW.findall(row)
    fragment, file = match
    line = paper_lines.line_of(fragment, file)
    assert fragment in (ROOT / file).read_text(encoding="utf-8").splitlines()[line - 1]
    assert f"`{file}:{line}` |" in paper_lines.with_lines(row)


def test_the_page_has_the_formulas_of_each_part() -> None:
    assert len(ROWS) >= 30
    files = {file for _, file in paper_lines.ROW.findall(TEXT)}
    assert {f"mask_former/losses/{name}.py" for name in ("matcher", "mask_losses")} <= files


def test_code_that_is_missing_or_ambiguous_is_an_error() -> None:
    with pytest.raises(ValueError, match="no line has `x = no such code`"):
        paper_lines.line_of("x = no such code", "mask_former/losses/matcher.py")
    with pytest.raises(ValueError, match=r"lines \[\d+, \d+"):
        paper_lines.line_of("return", "mask_former/losses/matcher.py")


def test_image_files_are_small() -> None:
    assert {path.name for path in (DOCS / "images").glob("*") if path.stat().st_size > 200e3} <= {
        "shapes_demo.png"
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, with warnings as errors, and return its folder."""
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="make docs installs it (requirements/docs.txt)")
    folder = tmp_path_factory.mktemp("docs")
    command = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(DOCS), "-d", str(folder / "d")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command, str(ROOT), str(folder / "site")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def html(site: Path, page: str) -> str:
    """Read a built page."""
    return (site / page).with_suffix(".html").read_text(encoding="utf-8")


@pytest.mark.subprocess
def test_the_site_has_all_pages_and_fetches_nothing(site: Path) -> None:
    assert re.search(r"mask_former/losses/mask_losses\.py:\d+", html(site, "docs/paper_to_code"))
    assert "docs/index.html" in html(site, "index")
    fetched = re.compile(r'(?:<script[^>]+src|<link[^>]+rel="stylesheet"[^>]+href)="https?:')
    for page in PAGES:
        assert not fetched.search(html(site, name_of(page))), "the page must work offline"


@pytest.mark.subprocess
def test_the_api_pages_document_how_a_class_is_created_and_called(site: Path) -> None:
    predict = html(site, "docs/api/predict")
    assert 'id="mask_former.predictor.MaskFormerPredictor.__call__"' in predict
    assert "<strong>weights</strong> – The model" in predict
    assert not [
        path.name
        for path in (site / "docs" / "api").glob("*.html")
        if "Create new instance of" in path.read_text(encoding="utf-8")
    ]


def public_names() -> dict[str, object]:
    """Map the names in ``mask_former.__all__``, and those that the pages import, to objects."""
    names = {f"mask_former.{name}": getattr(mask_former, name) for name in mask_former.__all__}
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mask_former"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    names[f"{node.module}.{alias.name}"] = getattr(module, alias.name)
    return names


@pytest.mark.subprocess
def test_the_api_pages_have_every_public_name(site: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (site / "docs" / "api").glob("*.html")]
    entries = [entry for page in pages for entry in re.findall(r'id="(mask_former\.[\w.]+)"', page)]
    documented = [pydoc.locate(entry) for entry in entries]
    names = public_names()
    assert len(names) > 20
    missing = [name for name, it in names.items() if not any(it is found for found in documented)]
    assert not missing, "docs/api lacks these names"
    parts = {"modeling.pixel_decoder.build_pixel_decoder", "data.mappers.base.TrainingMapper"}
    assert {f"mask_former.{part}" for part in parts} <= set(entries), "docs/extend.md needs them"
