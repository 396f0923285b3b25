"""Relative links lead to files and headings that exist; the documentation names no file that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, anchors, documents, links, without_code

PAGES = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in documents()]


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for link in links(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert not broken(page)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_one_title(page: Path) -> None:
    text = without_code(page.read_text())
    assert len(re.findall(r"^# \S", text, flags=re.MULTILINE)) == 1


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "architecture.md"
    text = "[a](https://example.org) [b](missing.md) ![c](missing.png) [d](#nowhere) `[e](code.md)`\n```\n[f](code.md)\n```\n"
    assert links(text) == ["https://example.org", "missing.md", "missing.png", "#nowhere"]
    assert "canonical-form" in anchors(page.read_text())
    copy = tmp_path / "page.md"
    copy.write_text(text)
    assert broken(copy) == ["missing.md", "missing.png", "#nowhere"]
