"""Training: every model, exact resumption, pseudo-labels as a switch, and the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps._resources import available_configs
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import comparing, runs
from natgrad_apps.graphs.cli import main
from natgrad_apps.graphs.compare_config import CompareConfig
from natgrad_apps.graphs.config import DataConfig, ModelConfig, OptimizerConfig, PseudoConfig, TrainConfig
from natgrad_apps.graphs.models import MODELS
from natgrad_apps.graphs.trainer import Trainer
from natgrad_apps.runner import metrics
from tests.graphs._tables import write_communities

pytestmark = pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    edges, nodes = write_communities(tmp_path_factory.mktemp("graph"))
    return DataConfig(edges=str(edges), nodes=str(nodes))


def config(tables: DataConfig, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "dataset": "table",
        "data": tables,
        "epochs": 12,
        "seed": 4,
        "device": "cpu",
        "optimizer": OptimizerConfig(refresh={"name": "periodic", "statistics_period": 2, "inverse_period": 3}),
    }
    return TrainConfig(**{**base, **changes})


def finish(trainer: Trainer) -> Trainer:
    while not trainer.done:
        trainer.run_epoch()
    return trainer


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


class Own(nn.Module):
    """A user's network: no graph at all."""

    def __init__(self, d_in: int, classes: int, width: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d_in, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        del edge_index
        result: Tensor = self.body(x)
        return result


class Wrong(Own):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x, edge_index).sum(0)


@pytest.mark.parametrize("name", [*MODELS, "mine:Own"])
def test_every_model_learns(tables: DataConfig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Own=Own))
    trainer = runs.open_trainer(config(tables, model=ModelConfig(name=name, dropout=0.0, hidden=16), epochs=40))
    losses = [trainer.run_epoch().loss for _ in range(40)]
    assert min(losses[20:]) < 0.9 * losses[0]


def test_a_module_that_gives_no_logits_is_refused(tables: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Wrong=Wrong, number=lambda *_: 3))
    for name, words in (
        ("mine:Wrong", r"must return logits of shape \(60, 2\), one row a node; got \(2,\)"),
        ("mine:number", "a torch.nn.Module is needed"),
        ("mine:Absent", "cannot be built"),
        ("sagee", "did you mean 'sage'"),
    ):
        with pytest.raises(ConfigError, match=words):
            runs.open_trainer(config(tables, model=ModelConfig(name=name)))


@pytest.mark.parametrize("optimizer", ["natural_gradient", "adam", "sgd"])
def test_equal_seeds_give_equal_runs(tables: DataConfig, optimizer: str) -> None:
    own = OptimizerConfig(name=optimizer, lr=0.05)  # type: ignore[arg-type]
    first, second, other = (finish(runs.open_trainer(config(tables, optimizer=own, seed=s))) for s in (1, 1, 2))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("optimizer", ["natural_gradient", "adam"])
def test_a_run_in_two_parts_is_the_run_in_one(tables: DataConfig, optimizer: str, pseudo: bool) -> None:
    """Bit-equal weights: the checkpoint has curvature, momentum, generators and the chosen epoch."""
    made = config(
        tables,
        optimizer=OptimizerConfig(name=optimizer, refresh={"name": "periodic", "statistics_period": 2, "inverse_period": 3}),  # type: ignore[arg-type]
        pseudo_labels=PseudoConfig(enabled=pseudo, gamma=1.0),
    )
    whole = finish(runs.open_trainer(made))
    part = runs.open_trainer(made)
    for _ in range(5):
        part.run_epoch()
    files = runs.pack(part, "config")
    torch.manual_seed(99)
    rest = runs.open_trainer(made)
    runs.unpack(files, rest)
    finish(rest)
    assert torch.equal(weights(whole), weights(rest))
    assert (whole.progress.best_epoch, whole.progress.first_hit) == (rest.progress.best_epoch, rest.progress.first_hit)
    whole.load_best()
    rest.load_best()
    assert torch.equal(weights(whole), weights(rest))


def test_pseudo_labels_of_weight_zero_are_no_pseudo_labels(tables: DataConfig) -> None:
    """``(t/T)^gamma`` with gamma = 1000 is at most 1e-37 before the last epoch: the other nodes carry no loss."""
    trainers = [runs.open_trainer(config(tables, pseudo_labels=PseudoConfig(enabled=on, gamma=1000.0))) for on in (False, True)]
    for trainer in trainers:
        torch.manual_seed(1)  # of dropout; the second trainer was built after the first one's weights were drawn
        for _ in range(5):
            trainer.run_epoch()
    # float32: sums over all nodes and over the labelled ones are rounded in different order, over five steps
    torch.testing.assert_close(weights(trainers[0]), weights(trainers[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nodes", ["labelled", "counted", "all"])
def test_every_choice_of_fisher_nodes_trains(tables: DataConfig, nodes: str) -> None:
    own = OptimizerConfig(fisher_nodes=nodes)  # type: ignore[arg-type]
    trainer = runs.open_trainer(config(tables, optimizer=own, pseudo_labels=PseudoConfig(enabled=True, gamma=1.0), epochs=40))
    losses = [trainer.run_epoch().loss for _ in range(40)]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_early_stopping_and_the_chosen_epoch(tables: DataConfig) -> None:
    trainer = runs.open_trainer(config(tables, epochs=300, patience=4, select="loss"))
    nlls = []
    while not trainer.done:
        epoch = trainer.run_epoch()
        assert epoch.val is not None
        nlls.append(epoch.val.nll)
    best = min(range(len(nlls)), key=nlls.__getitem__)
    assert len(nlls) == best + 1 + 4 < 300
    assert trainer.progress.best_epoch == best + 1
    trainer.load_best()
    val = trainer.evaluate()[1]
    assert val is not None
    assert val.nll == pytest.approx(nlls[best])


def words_of(tables: DataConfig) -> list[str]:
    return ["--dataset", "table", "--data.edges", str(tables.edges), "--data.nodes", str(tables.nodes), "--device", "cpu"]


def test_command_line(tables: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", *words_of(tables), "--epochs", "8", "--out", str(out)]) == 0
    assert "public split: 12 train, 18 validation, 30 test nodes" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["test_accuracy"] == results["test"]["accuracy"]
    assert results["split"]["name"] == "public"
    assert results["packages"]["torch-geometric"]
    assert len(metrics.read_rows(out / "metrics.csv")) == 8
    assert {p.name for p in (out / "figures").iterdir()} == {"curves.png", "embedding.png"}
    assert (out / "config.yaml").is_file()

    assert main(["evaluate", str(out)]) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["test"] == results["test"]
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "id,part,label,predicted,p_a,p_b"
    assert len(lines) == 61
    assert main(["plot", str(out), "--out", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").stat().st_size > 10_000
    assert main(["train", "--resume", str(out)]) == 0
    assert "is complete" in capsys.readouterr().out


def test_interrupted_run_goes_on(tables: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal after the fourth epoch: exit code 130, then the same weights and the same table as the run in one piece."""
    settings = [*words_of(tables), "--epochs", "9"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *settings, "--out", str(whole)]) == 0
    advance = Trainer.advance

    def stopping(self: Trainer) -> Any:
        result = advance(self)
        if result is not None and result.epoch == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "advance", stopping)
    assert main(["train", *settings, "--out", str(parts)]) == 130
    monkeypatch.setattr(Trainer, "advance", advance)
    assert main(["train", "--resume", str(parts)]) == 0
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, parts))
    for key in ("test", "val", "best_epoch", "epochs"):
        assert first[key] == second[key]


def test_compare(tables: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare"
    grid = ["--seeds", "3", "--tune_seeds", "1", "--natural_gradient_lr", "[0.1]", "--adam_lr", "[0.05]", "--weight_decay", "[5e-4, 0]"]
    assert main(["compare", *words_of(tables), "--epochs", "6", *grid, "--out", str(out)]) == 0
    assert "paired difference" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    for name in ("natural_gradient", "adam"):
        part = results[name]
        accuracies = [run["test_accuracy"] for run in part["runs"]]
        assert part["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3)
        assert {"mean", "std"} <= set(part["test_accuracy"])
        assert {"epochs_to_target", "seconds", "nll", "ece"} <= set(part)
        assert len(part["grid"]) == 2
        assert [run["seed"] for run in part["runs"]] == results["seeds"] == [0, 1, 2]
    pairs = zip(results["natural_gradient"]["runs"], results["adam"]["runs"], strict=True)
    gains = [a["test_accuracy"] - b["test_accuracy"] for a, b in pairs]
    assert results["paired_difference"]["mean"] == pytest.approx(sum(gains) / 3)


def test_an_interrupted_comparison_goes_on_where_it_was(
    tables: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ["--seeds", "2", "--tune_seeds", "1", "--natural_gradient_lr", "[0.1]", "--adam_lr", "[0.05]", "--weight_decay", "[5e-4, 0]"]
    words = ["compare", *words_of(tables), "--epochs", "4", *grid, "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    trained: list[int] = []

    def trains(limit: int) -> None:
        def run_once(config: TrainConfig, data: Any, check: Any) -> comparing.Outcome:
            if len(trained) == limit:
                os.kill(os.getpid(), signal.SIGTERM)
            trained.append(config.seed)
            return once(config, data, check)

        once = own
        monkeypatch.setattr(comparing, "run_once", run_once)

    own = comparing.run_once
    trains(5)
    out = tmp_path / "parts"
    assert main([*words, str(out)]) == 130
    assert f"natgrad-graph compare --resume {out}" in capsys.readouterr().err
    assert len(list((out / "trainings").glob("*.json"))) == 5
    assert not (out / "results.json").exists()
    trained.clear()
    trains(-1)
    assert main(["compare", "--resume", str(out)]) == 0
    assert trained == [0, 1, 1]  # both optimizers with two seeds, of which one was finished
    timed = {"seconds", "milliseconds_per_epoch", "wall_seconds_of_this_session"}

    def untimed(value: Any) -> Any:
        if isinstance(value, list):
            return [untimed(v) for v in value]
        return {k: untimed(v) for k, v in value.items() if k not in timed} if isinstance(value, dict) else value

    whole, parts = (untimed(json.loads((tmp_path / name / "results.json").read_text())) for name in ("whole", "parts"))
    assert parts == whole
    capsys.readouterr()
    assert main(["compare", "--resume", str(out)]) == 0
    assert "is complete" in capsys.readouterr().out


def test_check_writes_nothing(
    tables: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *words_of(tables), "--model.name", "gat", "--model.hidden", "4"]) == 0
    printed = capsys.readouterr().out
    assert "60 nodes" in printed
    assert "diagonal fallback" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "Corra"], "did you mean 'Cora'"),
        (["--dataset", "table"], "data.edges and data.nodes"),
        (["--dataset", "karate", "--data.edges", "e.csv"], "are for dataset table"),
        (["--split", "pubic"], "did you mean 'public'"),
        (["--model.hiden", "3"], "did you mean"),
        (["--optimizer.fisher", "empirical"], "needs a label of every node"),
        (["--optimizer.damping", "levenberg_marquardt"], "adaptive damping"),
        (["--model.name", "no_such_module:Net"], "cannot be built"),
    ],
)
def test_bad_input(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", *words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_grids_of_compare_have_one_size() -> None:
    with pytest.raises(ConfigError, match=r"must be lists of the same length.*got 1 and 2"):
        CompareConfig(natural_gradient_lr=[0.1])
    with pytest.raises(ConfigError, match=r"at most 100000, where the seeds of the grid begin, got 99999 \+ 2"):
        CompareConfig(seed=99_999, seeds=2)
    with pytest.raises(ConfigError, match="must be natural_gradient"):
        CompareConfig(optimizer=OptimizerConfig(name="adam"))


def test_a_checkpoint_of_another_graph_is_refused(tables: DataConfig, tmp_path: Path) -> None:
    trainer = runs.open_trainer(config(tables))
    files = runs.pack(trainer, "config")
    other = runs.open_trainer(config(tables, model=ModelConfig(hidden=3)))
    with pytest.raises(ConfigError, match="does not fit this model"):
        runs.unpack(files, other)
    with pytest.raises(ConfigError, match=r"has no state\.pt"):
        runs.unpack({}, other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(available_configs("graphs")))
def test_presets_are_legal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("uncertainty",) if name.endswith("_uncertainty") else ("train",) if name in {"motifs", "cora_links"} else ("train", "compare")
    for verb in verbs:
        assert main([verb, "--config", name, "--print_config"]) == 0
        assert "dataset:" in capsys.readouterr().out
