"""Tables of the user: CSV and Parquet with named columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from natgrad_apps.bayes.data.table import Floats, Table
from natgrad_apps.errors import ConfigError, unknown_name

SUFFIXES = (".csv", ".tsv", ".parquet")
MAX_CLASSES = 1000


@dataclass(frozen=True)
class TableFile:
    """How a CSV or Parquet file is read.

    Attributes:
        target: Name of the target column; null is an error for a table, and ignored for other data sets.
        exclude: Columns that are no inputs.
        task: auto takes a target of texts or truth values for classes and one of numbers for regression.
        missing: error refuses a table with empty cells, drop leaves out the rows that have one.
        one_unit: Whether the inputs are amounts of the same thing, as pixels are, and are standardized by one deviation.
    """

    target: str | None = None
    exclude: list[str] = field(default_factory=list)
    task: Literal["auto", "regression", "classification"] = "auto"
    missing: Literal["error", "drop"] = "error"
    one_unit: bool = False


def is_table(name: str) -> bool:
    """Whether the name of a data set is that of a file."""
    return Path(name).suffix.lower() in SUFFIXES


def read_frame(path: Path) -> Any:
    """A pandas frame.

    Raises:
        ConfigError: The file is missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{str(path)!r} is no table: its name must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"there is no table {str(path)!r}")
    import pandas as pd  # noqa: PLC0415 - takes a second, and only tables need it
    from pyarrow import ArrowException  # noqa: PLC0415

    try:
        if suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",", skipinitialspace=True)
    except (OSError, ValueError, ArrowException) as error:  # pandas' parser errors are ValueErrors
        raise ConfigError(f"the table {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    frame.columns = [str(c) for c in frame.columns]
    twice = sorted({c for c in frame.columns if list(frame.columns).count(c) > 1})
    if twice:
        raise ConfigError(f"the table {str(path)!r} has two columns of the name {', '.join(twice)}; rename one")
    return frame


def read_table(path: Path, how: TableFile) -> Table:
    """A table with its target.

    Args:
        path: CSV, TSV or Parquet.
        how: Names of columns, and what to do with empty cells.

    Raises:
        ConfigError: A column is unknown, not numeric, constant or has empty cells; there are too few rows, or one class only.
    """
    frame = read_frame(path)
    columns = list(frame.columns)
    if len(frame) == 0:
        raise ConfigError(f"the table {str(path)!r} has no rows, only the columns {', '.join(columns)}")
    if how.target is None:
        raise ConfigError(f"table.target is needed: the name of the target column of {str(path)!r}; columns: {', '.join(columns)}")
    for name in [how.target, *how.exclude]:
        if name not in columns:
            raise unknown_name(f"column of {path.name}", name, columns)
    if how.target in how.exclude:
        raise ConfigError(f"column {how.target!r} cannot be both table.target and in table.exclude")
    features = [c for c in columns if c != how.target and c not in how.exclude]
    used = frame[[*features, how.target]]
    if how.missing == "drop":
        used = used.dropna()
    _check_cells(path, used)
    y, classes = _target(path, used[how.target], how)
    table = Table(path.stem, _inputs(path, used, features), y, tuple(features), how.target, classes, one_unit=how.one_unit)
    if table.constant:
        names = ", ".join(map(repr, table.constant))
        raise ConfigError(f"{path.name}: column {names} has one value only, so nothing can be learned from it; add it to table.exclude")
    return table


def read_inputs(path: Path, features: Sequence[str]) -> Floats:
    """The inputs of new rows, ``[N, D]``, in the order of training.

    Args:
        path: CSV, TSV or Parquet; further columns are ignored.
        features: Names of the inputs.

    Raises:
        ConfigError: A column is absent, not numeric or has empty cells, or there is no row.
    """
    frame = read_frame(path)
    absent = [f for f in features if f not in frame.columns]
    if absent:
        raise ConfigError(f"{path.name} lacks the column {', '.join(map(repr, absent))}; it has {', '.join(frame.columns)}")
    if len(frame) == 0:
        raise ConfigError(f"{path.name} has no rows")
    _check_cells(path, frame[list(features)])
    return _inputs(path, frame, list(features))


def _check_cells(path: Path, frame: Any) -> None:
    empty = frame.isna()
    if empty.to_numpy().any():
        columns = [f"{name!r} ({int(n)})" for name, n in empty.sum().items() if n]
        row = int(empty.any(axis=1).to_numpy().argmax())
        raise ConfigError(
            f"{path.name} has empty cells or NaN in the column {', '.join(columns)}, the first in row {row} (counted from 0); fill them, "
            "exclude the column (table.exclude), or leave out such rows (table.missing: drop)"
        )


def _inputs(path: Path, frame: Any, features: list[str]) -> Floats:
    import pandas as pd  # noqa: PLC0415

    texts = [c for c in features if not (pd.api.types.is_numeric_dtype(frame[c]) or pd.api.types.is_bool_dtype(frame[c]))]
    if texts:
        raise ConfigError(
            f"{path.name}: column {', '.join(map(repr, texts))} is no column of numbers; encode it as numbers, or add it to table.exclude"
        )
    return np.asarray(frame[features].to_numpy(dtype=np.float64, copy=True))


def _target(path: Path, column: Any, how: TableFile) -> tuple[Any, tuple[str, ...]]:
    """Target values, and the classes in sorted order (none for regression)."""
    import pandas as pd  # noqa: PLC0415

    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if how.task == "regression" or (how.task == "auto" and numeric):
        if not numeric:
            raise ConfigError(f"{path.name}: the target {how.target!r} is no column of numbers; use table.task: classification")
        return column.to_numpy(dtype=np.float64, copy=True), ()
    if how.task == "auto" and not numeric:
        _check_texts(path, column, how)
    names, y = np.unique(column.to_numpy(), return_inverse=True)
    if len(names) > MAX_CLASSES:
        raise ConfigError(f"{path.name}: the target {how.target!r} has {len(names)} classes, legal are {MAX_CLASSES}; is it a number?")
    if 2 * len(names) > len(y):
        raise ConfigError(
            f"{path.name}: the target {how.target!r} has {len(names)} classes in {len(y)} rows, fewer than two rows a class; is it a "
            "number (table.task: regression), or an identifier?"
        )
    return y.astype(np.int64), tuple(str(n) for n in names)


def _check_texts(path: Path, column: Any, how: TableFile) -> None:
    """Raise if most cells of a target of texts are numbers: then the others are slips, not classes."""
    import pandas as pd  # noqa: PLC0415

    slips = pd.to_numeric(column, errors="coerce").isna().to_numpy()
    if 0 < slips.sum() < len(column) / 2:
        row = int(slips.argmax())
        raise ConfigError(
            f"{path.name}: the target {how.target!r} has {int(slips.sum())} cells that are no numbers, the first is "
            f"{str(column.iloc[row])!r} in row {row} (counted from 0); mend them, or set table.task: classification if they are classes"
        )
