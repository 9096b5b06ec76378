"""The site: links lead somewhere, formulas have their lines, it builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("**/*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)")

spec = importlib.util.spec_from_file_location("paper_lines", DOCS / "paper_lines.py")
assert spec is not None and spec.loader is not None
paper_lines = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper_lines)

TEXT = paper_lines.PAGE.read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "`mask_former/" in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_included_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [link for link in LINK.findall(text) if "://" not in link]
    targets += re.findall(r"\{literalinclude\} (\S+)", text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:60] for row in ROWS])
def test_a_formula_stands_on_one_line(row: str) -> None:
    (match,) = paper_lines.ROW.findall(row)
    fragment, file = match
    line = paper_lines.line_of(fragment, file)
    assert fragment in (ROOT / file).read_text(encoding="utf-8").splitlines()[line - 1]
    assert f"`{file}:{line}` |" in paper_lines.with_lines(row)


def test_the_page_has_the_formulas_of_each_part() -> None:
    assert len(ROWS) >= 30
    files = {file for _, file in paper_lines.ROW.findall(TEXT)}
    assert {f"mask_former/losses/{name}.py" for name in ("matcher", "mask_losses")} <= files


def test_code_that_is_gone_or_not_alone_is_an_error() -> None:
    with pytest.raises(ValueError, match="no line has `x = no such code`"):
        paper_lines.line_of("x = no such code", "mask_former/losses/matcher.py")
    with pytest.raises(ValueError, match=r"lines \[\d+, \d+"):
        paper_lines.line_of("return", "mask_former/losses/matcher.py")


def test_pictures_are_small() -> None:
    assert {path.name for path in (DOCS / "images").glob("*") if path.stat().st_size > 200e3} <= {
        "shapes_demo.png"
    }


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="make docs installs it (requirements/docs.txt)")
    command = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(DOCS), "-d", str(tmp_path / "d")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command, str(ROOT), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    html = (site / "docs" / "paper_to_code.html").read_text(encoding="utf-8")
    assert re.search(r"mask_former/losses/mask_losses\.py:\d+", html)
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")
    fetched = re.compile(r'(?:<script[^>]+src|<link[^>]+rel="stylesheet"[^>]+href)="https?:')
    pages = [path.read_text(encoding="utf-8") for path in site.glob("docs/**/*.html")]
    assert pages and not any(fetched.search(page) for page in pages), "it works offline"
