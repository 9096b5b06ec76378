"""Pages and forms for contributors, and the citation, agree with the repository."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.helpers.paths import ROOT

TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
FORMS = sorted(path for path in TEMPLATES.glob("*.yml") if path.name != "config.yml")
PAGES = (
    *("CONTRIBUTING.md", "docs/tested_on.md", ".github/pull_request_template.md"),
    *(str(form.relative_to(ROOT)) for form in FORMS),
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_an_issue_form_has_the_required_entries(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    ids = [field["id"] for field in content["body"]]
    assert len(ids) == len(set(ids)) and all(
        field["attributes"]["label"] for field in content["body"]
    )
    assert {field["type"] for field in content["body"]} <= {"input", "textarea"}


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(
        r"\b((?:tests|tools|docs|mask_former|requirements|configs)/[\w./-]+\.\w+)", text
    )
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_the_citation_and_the_notice_name_the_same_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    assert paper["title"] in notice
    assert all(
        f"{author['given-names']} {author['family-names']}" in notice for author in paper["authors"]
    )
    assert "arXiv 2107.06278" in notice and paper["identifiers"][0]["value"] == "arXiv:2107.06278"
    assert (
        citation["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()
    )
