"""The configurations of studies, which train many nets: splits of a data set, and learning curves over the number of labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from natgrad_apps.bayes.config import Positive, RecipeConfig, Seed
from natgrad_apps.bayes.data import TableFile
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.hints import Range

MAX_SPLITS = 10_000
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True)
class UciConfig(RecipeConfig):
    """One data set over several of its published splits.

    Attributes:
        method: Such as noisy_kfac, noisy_ekfac, noisy_adam, vadam, vogn.
        model: The network.
        inference: How its posterior is found.
        training: How long.
        prediction: How it predicts.
        dataset: A UCI set: boston, concrete, energy, kin8nm, naval, power, protein, wine or yacht.
        splits: Which ones, such as 0-19 or 0,3,5-7.
        workers: Processes that work on splits side by side.
        seed: Seed of the first split; split s has seed + s.
        threads: CPU threads of torch in each process.
    """

    dataset: str = "concrete"
    splits: str = "0-19"
    workers: Annotated[int, Range(low=1, high=256)] = 1
    seed: Seed = 0
    threads: Annotated[int, Range(low=1, high=1024)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_numbers()
        if self.model.weights is not None:
            raise ConfigError("model.weights is for one split: its network has seen test rows of the others; use the verb train")

    def split_numbers(self) -> list[int]:
        """The splits, ascending.

        Raises:
            ConfigError: The text is no list of numbers and ranges.
        """
        return parse_splits(self.splits)


@dataclass(frozen=True)
class ActiveConfig(RecipeConfig):
    """Learning curves over the number of labels.

    Attributes:
        method: Such as noisy_kfac, noisy_ekfac, noisy_adam, vadam, vogn.
        model: The network.
        inference: How its posterior is found.
        training: How long each of its models is trained.
        prediction: How it predicts.
        dataset: diabetes, breast_cancer, digits, a UCI set such as concrete, or a CSV, TSV or Parquet file.
        table: How such a file is read.
        acquisitions: What chooses the next labels: mutual_information (for regression the order of predictive variances), entropy, random.
        start: Labelled rows at the beginning.
        pool: Rows whose labels may be asked for; null is all others.
        test: Rows that measure.
        rounds: Acquisitions.
        per_round: Labels of each.
        seeds: Of rows, first weights and samples, such as 0-9; each acquisition sees the same rows.
        threads: CPU threads of torch.
    """

    dataset: str = "boston"
    table: TableFile = field(default_factory=TableFile)
    acquisitions: list[Literal["mutual_information", "entropy", "random"]] = field(default_factory=lambda: ["mutual_information", "random"])
    start: Positive = 20
    pool: Positive | None = 100
    test: Positive = 100
    rounds: Positive = 10
    per_round: Positive = 1
    seeds: str = "0-9"
    threads: Annotated[int, Range(low=1, high=1024)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seed_numbers()
        if not self.acquisitions or len(set(self.acquisitions)) < len(self.acquisitions):
            raise ConfigError(f"acquisitions must name each one once, got {self.acquisitions}")
        if self.model.weights is not None:
            raise ConfigError("model.weights is for one training; every model of an active run begins at random weights")

    @property
    def sizes(self) -> tuple[int, int | None, int]:
        """Rows that are labelled, candidates, and tests."""
        return self.start, self.pool, self.test

    def seed_numbers(self) -> list[int]:
        """The seeds, ascending.

        Raises:
            ConfigError: The text is no list of numbers and ranges.
        """
        return parse_splits(self.seeds, "seeds")


def parse_splits(text: str, what: str = "splits") -> list[int]:
    """Numbers from ``"0-19"`` or ``"0,3,5-7"``, ascending, each once.

    Args:
        text: Numbers and ranges.
        what: They are called in an error.

    Raises:
        ConfigError: The text is no such list.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MAX_SPLITS:
            raise ConfigError(f"{what} {text!r} is no list of numbers and ranges such as 0-19 or 0,3,5-7")
        found.update(range(first, last + 1))
    return sorted(found)
