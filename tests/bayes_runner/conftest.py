"""Small tables, and one finished run of each task that several tests look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from natgrad_apps.bayes.cli import main

SMALL = """
model: {hidden: [6]}
inference: {lr: 0.05}
training: {epochs: 6, batch_size: 16}
prediction: {num_samples: 8}
log_every: 3
checkpoint_every: 7
threads: 1
device: cpu
"""


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with settings of a run of a second."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with line.csv (regression) and flowers.csv (three classes)."""
    folder = tmp_path_factory.mktemp("tables")
    g = np.random.default_rng(0)
    a, b = g.normal(size=(2, 60))
    pd.DataFrame({"a": a, "b": b, "y": 100 + 20 * a - 10 * b + g.normal(size=60)}).to_csv(folder / "line.csv", index=False)
    kind = np.array(["lily", "rose", "tulip"])[(a > 0).astype(int) + (b > 0)]
    pd.DataFrame({"a": a, "b": b, "kind": kind}).to_csv(folder / "flowers.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_config: Path, tables: Path) -> Path:
    """A run folder of regression that nobody writes to."""
    out = tmp_path_factory.mktemp("runs") / "line"
    words = ["--dataset", str(tables / "line.csv"), "--table.target", "y", "--out", str(out)]
    assert main(["train", "--config", str(small_config), *words]) == 0
    return out


@pytest.fixture(scope="session")
def finished_classes(tmp_path_factory: pytest.TempPathFactory, small_config: Path, tables: Path) -> Path:
    """A run folder of classification that nobody writes to."""
    out = tmp_path_factory.mktemp("runs") / "flowers"
    words = ["--dataset", str(tables / "flowers.csv"), "--table.target", "kind", "--method", "noisy_adam", "--out", str(out)]
    assert main(["train", "--config", str(small_config), *words]) == 0
    return out
