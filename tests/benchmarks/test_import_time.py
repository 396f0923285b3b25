"""Importing the package stays cheap: no application's packages come with it."""

from __future__ import annotations

from benchmarks.import_time import FORBIDDEN, measure


def test_import_adds_nothing_but_the_package() -> None:
    found = measure()
    assert not set(FORBIDDEN) & set(found.new)
    assert "natgrad_apps" in found.new
    assert found.package > 0
