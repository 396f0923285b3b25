"""Foreign inputs of each kind, and their way through a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from natgrad_apps.bayes.cli import main
from natgrad_apps.bayes.config import FitConfig, ForeignConfig, RecipeConfig
from natgrad_apps.bayes.data import Split, Table
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.foreign import describe, foreign_inputs
from natgrad_apps.errors import ConfigError


def fit(columns: int = 4) -> Fit:
    g = np.random.default_rng(0)
    x = g.normal(size=(30, columns)) * np.arange(1, columns + 1)
    table = Table("t", x, x.sum(1), tuple(f"x{i}" for i in range(columns)), "y")
    return Fit(table, Split(np.arange(20), np.arange(20, 30)), RecipeConfig(training=FitConfig(epochs=1)), seed=0)


def test_moved_and_permuted_by_hand() -> None:
    trained = fit()
    x = trained.table.x[20:]
    moved = foreign_inputs(trained, ForeignConfig("moved", distance=2.0))
    np.testing.assert_allclose(np.abs((moved - x) / trained.table.x[:20].std(0)), 2.0, rtol=1e-12)
    permuted = foreign_inputs(trained, ForeignConfig("permuted"))
    np.testing.assert_array_equal(np.sort(permuted, 0), np.sort(x, 0))
    assert (permuted != x).any(0).all()
    # columns move apart from each other: no row is whole
    assert not {tuple(row) for row in permuted} & {tuple(row) for row in x}
    np.testing.assert_array_equal(foreign_inputs(trained, ForeignConfig("permuted")), permuted)


def test_rotated_images() -> None:
    trained = fit(9)
    rotated = foreign_inputs(trained, ForeignConfig("rotated")).reshape(-1, 3, 3)
    image = trained.table.x[20].reshape(3, 3)
    # a quarter turn: the last column becomes the first row
    np.testing.assert_array_equal(rotated[0][0], image[:, 2])
    with pytest.raises(ConfigError, match="square images, t has 5 inputs"):
        foreign_inputs(fit(5), ForeignConfig("rotated"))


def test_a_table_of_foreign_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x1": [1.0, 2.0], "x0": [3.0, 4.0], "other": ["a", "b"]})
    frame.to_csv(tmp_path / "f.csv", index=False)
    config = ForeignConfig("table", table=str(tmp_path / "f.csv"))
    np.testing.assert_array_equal(foreign_inputs(fit(2), config), [[3, 1], [4, 2]])
    assert describe(config) == "rows of f.csv"
    with pytest.raises(ConfigError, match="go together"):
        ForeignConfig("table")
    with pytest.raises(ConfigError, match="go together"):
        ForeignConfig("moved", table="f.csv")


def test_the_configured_kind_reaches_results_and_is_checked_before_the_training(
    tables: Path, small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(small_config), "--dataset", str(tables / "line.csv"), "--table.target", "y"]
    pd.DataFrame({"a": [50.0, -70.0], "b": [80.0, 90.0]}).to_csv(tmp_path / "far.csv", index=False)
    out = tmp_path / "run"
    assert main(["train", *words, "--foreign.kind", "table", "--foreign.table", str(tmp_path / "far.csv"), "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())["foreign"]
    assert found == {"inputs": "rows of far.csv", "auroc": 1.0, "fpr95": 0.0}  # fifty deviations away
    pd.DataFrame({"a": [1.0]}).to_csv(tmp_path / "short.csv", index=False)
    for further, message in (
        (["--foreign.kind", "table", "--foreign.table", str(tmp_path / "short.csv")], "lacks the column 'b'"),
        (["--foreign.kind", "rotated"], "square images"),
        (["--foreign.kind", "table"], "go together"),
    ):
        assert main(["train", *words, *further, "--out", str(tmp_path / "bad")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "bad").exists()
