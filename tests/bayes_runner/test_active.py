"""The verb `active`: pools, scores, curves, resumption, bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from natgrad_apps.bayes import acquiring
from natgrad_apps.bayes.acquiring import Pool, Rounds, draw_pool, learn_actively, score
from natgrad_apps.bayes.cli import main
from natgrad_apps.bayes.config import FitConfig, ModelConfig, RecipeConfig
from natgrad_apps.bayes.data import Table
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.prediction import ClassificationPrediction, RegressionPrediction
from natgrad_apps.errors import ConfigError

FAST = ["--model.hidden", "[3]", "--training.epochs", "1", "--prediction.num_samples", "3", "--start", "10", "--test", "10", "--pool", "15"]
RECIPE = RecipeConfig(model=ModelConfig(hidden=[3]), training=FitConfig(epochs=2, batch_size=8))


def table(rows: int = 40) -> Table:
    g = np.random.default_rng(0)
    x = g.normal(size=(rows, 2))
    return Table("t", x, x.sum(1), ("a", "b"), "y")


def test_pools_are_disjoint_and_acquisition_moves_rows() -> None:
    pool = draw_pool(table(), (5, 20, 10), seed=3)
    assert [len(p) for p in (pool.labelled, pool.candidates, pool.test)] == [5, 20, 10]
    assert len(np.unique(np.concatenate([pool.labelled, pool.candidates, pool.test]))) == 35
    after = pool.acquire(np.array([0, 7]))
    assert set(after.labelled) == {*pool.labelled, pool.candidates[0], pool.candidates[7]}
    assert list(after.candidates) == [c for i, c in enumerate(pool.candidates) if i not in (0, 7)]
    assert len(draw_pool(table(), (5, None, 10), 0).candidates) == 25
    # the same labelled and test rows, whatever the size of the pool
    assert (draw_pool(table(), (5, None, 10), 3).labelled == pool.labelled).all()
    with pytest.raises(ConfigError, match="need 41"):
        draw_pool(table(), (5, 26, 10), 0)


def test_scores_by_hand() -> None:
    found = RegressionPrediction(torch.tensor([[1.0, 2.0], [3.0, 2.0]]).double(), torch.tensor(0.5).double())
    # epistemic variances 1 and 0, noise variance 1/4: I = 1/2 log(1 + 4) and 0
    assert score(found, "mutual_information").tolist() == pytest.approx([0.5 * math.log(5), 0])
    # entropy of N(0, 1 + 1/4) and of N(0, 1/4)
    normal = torch.distributions.Normal(0.0, torch.tensor([1.25, 0.25]).double().sqrt())
    assert score(found, "entropy").tolist() == pytest.approx(normal.entropy().tolist())
    p = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]).double()
    classes = ClassificationPrediction(p)
    assert score(classes, "mutual_information").tolist() == pytest.approx([math.log(2), 0])
    assert score(classes, "entropy").tolist() == pytest.approx([math.log(2)] * 2)


def test_the_rows_with_the_highest_scores_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    data, trained = table(), []
    monkeypatch.setattr(acquiring, "score", lambda found, _: -found.mean.abs())  # nearest to zero first
    init = Fit.__init__

    def watched(self: Fit, *args: Any) -> None:
        trained.append(args[1].train)
        init(self, *args)

    monkeypatch.setattr(Fit, "__init__", watched)
    pool = Pool(np.arange(10), np.arange(10, 30), np.arange(30, 40))
    curve = learn_actively(data, pool, RECIPE, Rounds("entropy", 2, 3), seed=0)
    assert [point["labels"] for point in curve] == [10, 13, 16]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(trained))
    assert not set(trained[-1]) & set(pool.test)
    with pytest.raises(ConfigError, match="more labels than the 20 candidates"):
        learn_actively(data, pool, RECIPE, Rounds("random", 7, 3), seed=0)


def test_a_run_has_curves_of_every_acquisition_with_standard_errors(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--dataset", str(tables / "line.csv"), "--table.target", "y", "--seeds", "0-1", "--rounds", "2", "--per_round", "2", *FAST]
    assert main(["active", *words, "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())
    assert set(found["curves"]) == {"mutual_information", "random"}
    chosen, drawn = (found["curves"][name] for name in ("mutual_information", "random"))
    assert chosen["labels"] == drawn["labels"] == [10, 12, 14]
    # both begin with the same rows and weights
    assert chosen["rmse"]["mean"][0] == drawn["rmse"]["mean"][0]
    first, second = (json.loads((out / "curves" / f"random_0{s}.json").read_text())[-1]["rmse"] for s in (0, 1))
    assert drawn["rmse"]["se"][-1] == pytest.approx(abs(first - second) / 2)
    gain = found["difference_to_random"]["mutual_information"]["rmse"]
    assert gain["mean"] == pytest.approx(np.mean(chosen["rmse"]["mean"][1:]) - np.mean(drawn["rmse"]["mean"][1:]))
    assert (out / "figures" / "active_learning.png").is_file()
    assert "mutual_information less random" in capsys.readouterr().out
    assert len((out / "metrics.csv").read_text().splitlines()) == 4


def test_an_interrupted_run_goes_on_to_the_same_end(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--dataset", str(tables / "flowers.csv"), "--table.target", "kind", "--seeds", "0-1", "--rounds", "1", *FAST]
    assert main(["active", *words, "--out", str(tmp_path / "whole")]) == 0
    evaluate, calls = Fit.evaluate, []

    def stopping(self: Fit, *args: Any) -> dict[str, float]:
        calls.append(self)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Fit, "evaluate", stopping)
        assert main(["active", *words, "--out", str(tmp_path / "cut")]) == 130
    assert len(list((tmp_path / "cut" / "curves").iterdir())) == 1
    assert main(["active", "--resume", str(tmp_path / "cut")]) == 0
    ends = [json.loads((tmp_path / name / "results.json").read_text())["curves"] for name in ("whole", "cut")]
    assert ends[0] == ends[1]
    assert main(["active", "--resume", str(tmp_path / "cut")]) == 0  # complete


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start", "100"], "lower start, pool or test"),
        (["--rounds", "20"], "more than the 15 candidates"),
        (["--seeds", "1-0"], "seeds '1-0' is no list"),
        (["--acquisitions", "[variance]"], "mutual_information"),
        (["--acquisitions", "[random, random]"], "each one once"),
        (["--model.weights", "net.pt"], "begins at random weights"),
    ],
)
def test_bad_input_writes_nothing(words: list[str], message: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--dataset", str(tables / "line.csv"), "--table.target", "y", *FAST, *words]
    assert main(["active", *given, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
