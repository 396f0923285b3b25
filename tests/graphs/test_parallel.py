"""Two processes that train one graph network: equal to the bit, equal to one process with the whole batch, and resumable."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import parallel, runs
from natgrad_apps.graphs.cli import main
from natgrad_apps.graphs.config import LinksConfig, ModelConfig, OptimizerConfig, SamplingConfig, TrainConfig
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.runner.processes import ALONE
from tests.exactness.test_ranks import on_two_ranks
from tests.graphs.test_sampling import config as sampled
from tests.graphs.test_sampling import trainer as node_trainer


def flat(learner: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def learned(learner: Learner) -> Tensor:
    while not learner.done:
        learner.advance()
    return flat(learner)


def nodes(optimizer: OptimizerConfig) -> Learner:
    """One layer: a hidden node would gather terms of several seeds, whose products only the expectation over labels is free of."""
    model = ModelConfig(layers=1, dropout=0.0)
    return node_trainer(sampled(model=model, sampling=SamplingConfig(batch_size=5), optimizer=optimizer, epochs=4))


KFAC = OptimizerConfig(curvature="kfac", fisher="exact", refresh={"name": "periodic"}, lr=0.1)
"""Twelve training nodes in batches of five: the last batch gives one node to either process."""


def half_of_nodes(rank: int) -> Tensor:
    del rank
    learner = nodes(KFAC)
    learner.distribute()
    return learned(learner)


def half_of_nodes_by_adam(rank: int) -> Tensor:
    learner = nodes(OptimizerConfig(name="adam", lr=0.01))
    if rank == 1:  # other beginnings: distribute() gives both those of rank 0
        torch.nn.init.zeros_(next(learner.model.parameters()))
    learner.distribute()
    return learned(learner)


def task(name: str) -> TrainConfig:
    return TrainConfig(
        task=name,  # type: ignore[arg-type]
        dataset="karate" if name == "links" else "motifs",
        model=ModelConfig(hidden=8),
        links=LinksConfig(val=0.1, test=0.2),
        sampling=SamplingConfig(batch_size=20 if name == "links" else 100),
        optimizer=OptimizerConfig(curvature="kfac", lr=0.02),
        epochs=3,
        device="cpu",
    )


def other_tasks(rank: int) -> list[Tensor]:
    """With dropout and sampled labels, which differ between processes."""
    found = []
    for name in ("links", "graphs"):
        learner = runs.open_learner(task(name))
        learner.distribute()
        torch.manual_seed(rank)
        found.append(learned(learner))
    return found


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    first, second = on_two_ranks(half_of_nodes, tmp_path)
    assert torch.equal(first, second)
    # float32; sums in another order through twelve steps with inverses at a damping of 0.01
    torch.testing.assert_close(first, learned(nodes(KFAC)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_adam_averages_gradients(tmp_path: Path) -> None:
    first, second = on_two_ranks(half_of_nodes_by_adam, tmp_path)
    assert torch.equal(first, second)
    # float32; Adam divides by small second moments, so rounding grows over twelve steps of at most 0.01 each
    torch.testing.assert_close(first, learned(nodes(OptimizerConfig(name="adam", lr=0.01))), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_links_and_graphs_are_equal_to_the_bit(tmp_path: Path) -> None:
    first, second = on_two_ranks(other_tasks, tmp_path)
    for mine, theirs in zip(first, second, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.isfinite().all()


WORDS = [
    *("--task", "graphs", "--dataset", "motifs", "--model.name", "gcn", "--optimizer.curvature", "kfac", "--device", "cpu"),
    *("--sampling.batch_size", "100", "--epochs", "4", "--checkpoint_every", "2", "--threads", "1"),
]


def command(rank: int, port: int, words: list[str], out: str, stop_at: int) -> None:
    """One process of the command line, as torchrun starts it; the first one gets a signal after some steps."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    advance = Learner.advance

    def stopping(self: Learner) -> Any:
        result = advance(self)
        if rank == 0 and self.steps == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    Learner.advance = stopping  # type: ignore[method-assign]
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    (Path(out) / f"{rank}.code").write_text(str(code))


def on_command_line(folder: Path, words: list[str], stop_at: int = -1) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(command, args=(port, words, str(folder), stop_at), nprocs=2)
    return [int((folder / f"{rank}.code").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_goes_on_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert on_command_line(tmp_path, ["train", *WORDS, "--out", str(whole)]) == [0, 0]
    assert on_command_line(tmp_path, ["train", *WORDS, "--out", str(parts)], stop_at=4) == [130, 130]
    assert main(["train", "--resume", str(parts)]) == 2
    assert "has 2 processes, not 1; to continue: torchrun --nproc-per-node 2 -m natgrad_apps.graphs.cli" in capsys.readouterr().err
    assert on_command_line(tmp_path, ["train", "--resume", str(parts)]) == [0, 0]
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, parts))
    assert first["processes"] == second["processes"] == 2
    assert first["test"] == second["test"]


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set sampling\.batch_size"):
        node_trainer(sampled(sampling=SamplingConfig())).distribute()
    with pytest.raises(ConfigError, match="no process group"):
        node_trainer(sampled()).distribute()


def test_one_process_is_no_group() -> None:
    assert parallel.open_learner(task("links"), ALONE).ranks is None
