"""A data set in memory, checked: numbers only, something to learn, and the rows of each split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natgrad_apps.errors import ConfigError

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
MIN_ROWS = 10
"""Fewer rows than this give no test error worth a number."""


@dataclass(frozen=True)
class Split:
    """Which rows train and which test.

    Attributes:
        train: Row numbers, ``[n_train]``.
        test: Row numbers, ``[n_test]``; none of them trains.
    """

    train: Rows
    test: Rows


@dataclass(frozen=True)
class Table:
    """Inputs and one target.

    Attributes:
        name: What messages and pictures call it.
        x: Inputs ``[N, D]``, in their own units.
        y: Target ``[N]``: numbers in their own unit for regression, class numbers from 0 for classification.
        features: Names of the inputs, D of them.
        target: Name of the target.
        classes: Names of the classes; empty for regression.
        splits: Published splits; empty where there are none.
        hidden: Width of the hidden layer that the published protocol uses; None where there is none.
        one_unit: Whether the inputs are amounts of the same thing, as pixels are, and are standardized by one deviation.

    Raises:
        ConfigError: A value is not finite, shapes do not fit, there are too few rows, or the target never varies.
    """

    name: str
    x: Floats
    y: NDArray[Any]
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...] = ()
    splits: tuple[Split, ...] = ()
    hidden: int | None = None
    one_unit: bool = False

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1] or len(self.features) != self.x.shape[1]:
            shapes = f"inputs {self.x.shape}, target {self.y.shape}, {len(self.features)} names"
            raise ConfigError(f"{self.name}: shapes must be [N, D], [N] and D names, got {shapes}")
        if len(self.x) < MIN_ROWS:
            raise ConfigError(f"{self.name} has {len(self.x)} rows; at least {MIN_ROWS} are needed to train and to test")
        if self.x.shape[1] == 0:
            raise ConfigError(f"{self.name} has no input column; give a table with at least one column besides the target {self.target!r}")
        for column, name in zip(self.x.T, self.features, strict=True):
            _check_finite(self.name, name, column)
        _check_finite(self.name, self.target, self.y.astype(np.float64))
        if len(np.unique(self.y)) < 2:
            what = "one class" if self.classes else "one value"
            raise ConfigError(f"{self.name}: target {self.target!r} has only {what}, so there is nothing to learn; use another target")

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of the inputs that never vary."""
        return tuple(name for name, column in zip(self.features, self.x.T, strict=True) if column.min() == column.max())


def random_split(table: Table, test_fraction: float, seed: int) -> Split:
    """Rows drawn without replacement.

    Args:
        table: The data.
        test_fraction: Share of the rows that test, in (0, 1); at least one row tests and one trains.
        seed: Equal seeds give equal splits.

    Raises:
        ConfigError: A class is left without a training row, or the target does not vary over the training rows.
    """
    count = len(table.x)
    order = np.random.default_rng(seed).permutation(count)
    tests = min(max(round(test_fraction * count), 1), count - 1)
    split = Split(np.sort(order[tests:]), np.sort(order[:tests]))
    lost = [name for k, name in enumerate(table.classes) if not (table.y[split.train] == k).any()]
    if lost:
        raise ConfigError(
            f"{table.name}: no training row of class {', '.join(map(repr, lost))} in split {seed} with test_fraction {test_fraction}; "
            "use another split, a smaller test_fraction or more rows"
        )
    if len(np.unique(table.y[split.train])) < 2:
        raise ConfigError(
            f"{table.name}: the {len(split.train)} training rows of split {seed} with test_fraction {test_fraction} have one value of the "
            f"target {table.target!r} only; use another split, a smaller test_fraction or more rows"
        )
    return split


def _check_finite(table: str, column: str, values: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ConfigError(
            f"{table}: column {column!r} is missing or infinite in {len(bad)} of {len(values)} rows (rows {rows}, counted from 0); "
            "fill them, drop the column, or drop the rows (table.missing: drop)"
        )
