"""``metrics.csv``: one row a log step, on disk as soon as it is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic

STEP = "step"


class MetricsFile:
    """A table of numbers whose first column is the step. A column may appear late; earlier rows are then empty there.

    Attributes:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._file: TextIO | None = None

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Append one row and flush it.

        Args:
            step: The step.
            values: Numbers by name; they are written with every digit, so that equal runs give equal files.
        """
        row = {STEP: str(step), **{name: _text(value) for name, value in values.items()}}
        new = [name for name in row if name not in self._columns]
        if self._file is None or new:
            self._open(new)
        assert self._file is not None
        csv.DictWriter(self._file, self._columns, restval="", lineterminator="\n").writerow(row)
        self._file.flush()

    def cut(self, step: int) -> None:
        """Drop the rows after a step: a run that continues from a checkpoint writes them again."""
        rows = read_rows(self.path) if self.path.is_file() else []
        if rows:
            self.close()
            self._columns = list(rows[0])
            self._rewrite([row for row in rows if int(row[STEP]) <= step])

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, new: list[str]) -> None:
        self.close()
        rows = read_rows(self.path) if self.path.is_file() else []
        self._columns = [*(self._columns or (list(rows[0]) if rows else []))]
        self._columns += [name for name in new if name not in self._columns]
        self._rewrite(rows)
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(self.path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics file as text; a last line that a killed process cut short is left out.

    Raises:
        ConfigError: The file cannot be read or has no step column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(io.StringIO(whole)))
    if rows and (STEP not in rows[0] or any(not (row[STEP] or "").isdigit() for row in rows)):
        raise ConfigError(f"{str(path)!r} is no metrics file: its rows have no {STEP!r}")
    return [{name: value or "" for name, value in row.items() if name is not None} for row in rows]


def column(rows: list[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Pairs of step and value of one column, without the rows that are empty there."""
    return [(int(row[STEP]), float(row[name])) for row in rows if row.get(name)]


def _text(value: float | int | str) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)
