"""Results as text: cells of tables, and where the text goes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from natgrad_apps.bayes.uci import summary


def mean_and_error(values: Sequence[float], digits: int, sign: str = "±") -> str:
    """Mean and standard error of the mean; the mean alone of one value."""
    found = summary(values)
    error = "" if math.isnan(found["se"]) else f" {sign} {found['se']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{error}"


def write_block(text: str, document: Path, marks: tuple[str, str]) -> None:
    """Replace the results block of a page.

    Args:
        text: The new block.
        document: The page.
        marks: Lines before and behind it.
    """
    begin, end = marks
    before, rest = document.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def write_json(setup: Mapping[str, Any], rows: Sequence[Any], out: Path | None) -> None:
    """All numbers of a benchmark as a JSON file, if one is asked for."""
    if out is not None:
        out.write_text(json.dumps({"environment": setup, "rows": rows}, indent=1), encoding="utf-8")
