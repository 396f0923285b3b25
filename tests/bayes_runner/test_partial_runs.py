"""Runs with a Bayesian last layer, and runs from pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from natgrad_apps.bayes import snapshot
from natgrad_apps.bayes.cli import main


def words(small_config: Path, tables: Path, *further: str) -> list[str]:
    return ["--config", str(small_config), "--dataset", str(tables / "line.csv"), "--table.target", "y", *further]


def test_a_run_with_a_bayesian_last_layer_predicts_from_its_checkpoint(
    small_config: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *words(small_config, tables, "--model.bayesian", "[last]", "--out", str(out))]) == 0
    assert main(["evaluate", str(out)]) == 0
    fitted, _ = snapshot.open_fitted(snapshot.find(out)[1].files)
    assert set(fitted.vi.posterior.mean) == {"2.weight", "2.bias"}
    # The first layer was trained too, so the checkpoint must bring it along: a new network has other weights there.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = nn.Linear(2, 6)
    first = fitted.vi.model.get_submodule("0")
    assert isinstance(first, nn.Linear)
    assert not torch.equal(first.weight, fresh.weight)
    capsys.readouterr()
    assert main(["check", *words(small_config, tables, "--model.bayesian", "[last]")]) == 0
    assert "25 parameters, 7 of them Bayesian" in capsys.readouterr().out


def test_pretrained_weights_are_the_first_mean_and_misfits_are_refused(
    small_config: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    out = tmp_path / "run"
    start = ["--model.weights", str(tmp_path / "net.pt"), "--training.max_steps", "1", "--inference.lr", "1e-9"]
    assert main(["train", *words(small_config, tables, *start, "--out", str(out))]) == 0
    fitted, _ = snapshot.open_fitted(snapshot.find(out)[1].files)
    # one step of a rate of 1e-9
    torch.testing.assert_close(fitted.vi.posterior.mean["0.weight"], net.state_dict()["0.weight"], rtol=0, atol=1e-5)
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for file, message in (("other.pt", "do not fit the model"), ("text.pt", "cannot be read"), ("none.pt", "no file of weights")):
        capsys.readouterr()
        other = ["--model.weights", str(tmp_path / file), "--out", str(tmp_path / "b")]
        assert main(["train", *words(small_config, tables, *other)]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "b").exists()
    assert main(["uci", "--dataset", "yacht", "--model.weights", "net.pt", "--out", str(tmp_path / "c")]) == 2
    assert "for one split" in capsys.readouterr().err
