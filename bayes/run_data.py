"""From the settings of a run to its data and its device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from natgrad_apps.bayes.config import TrainConfig
from natgrad_apps.bayes.data import Split, Table, load, random_split, read_frame, read_inputs
from natgrad_apps.bayes.data.table import Floats
from natgrad_apps.bayes.fitted import Schema
from natgrad_apps.bayes.fitting import published_split
from natgrad_apps.errors import ConfigError


def open_data(config: TrainConfig) -> tuple[Table, Split]:
    """Data set and rows of a run.

    Raises:
        ConfigError: The set, its file or its split cannot be used.
    """
    table = load(config.dataset, config.table)
    if table.splits:
        return table, published_split(table, config.split)
    return table, random_split(table, config.test_fraction, config.split)


def resolve_device(name: str) -> str:
    """The device to use; ``auto`` takes CUDA where there is one.

    Raises:
        ConfigError: The device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(name, False):
        found = ", ".join(n for n, value in there.items() if value)
        raise ConfigError(f"device {name!r} is not available to torch {torch.__version__} on this machine; available: auto, {found}")
    return name


def read_labelled(path: Path, schema: Schema) -> tuple[Floats, Tensor]:
    """Inputs ``[N, D]`` and targets ``[N]`` of new rows.

    Args:
        path: CSV, TSV or Parquet with the columns of the training data.
        schema: Of the training data.

    Raises:
        ConfigError: A column is absent, a cell is empty, or a class is new.
    """
    x = read_inputs(path, schema.features)
    frame = read_frame(path)
    if schema.target not in frame.columns:
        raise ConfigError(f"{path.name} lacks the target {schema.target!r}; for predictions without targets use the verb predict")
    column = frame[schema.target]
    if column.isna().any():
        raise ConfigError(f"{path.name}: the target {schema.target!r} is empty in {int(column.isna().sum())} rows; drop them")
    if not schema.classes:
        try:
            return x, torch.tensor(column.to_numpy(dtype=np.float64))
        except ValueError as error:
            raise ConfigError(f"{path.name}: the target {schema.target!r} is no column of numbers") from error
    numbers = {name: i for i, name in enumerate(schema.classes)}
    new = sorted({str(v) for v in column} - set(numbers))
    if new:
        raise ConfigError(f"{path.name}: class {', '.join(map(repr, new))} was not in training; known: {', '.join(schema.classes)}")
    return x, torch.tensor([numbers[str(v)] for v in column])
