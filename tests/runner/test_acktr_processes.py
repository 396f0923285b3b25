"""Runs of two processes, as torchrun starts them: one run folder, equal weights, and a continuation that is exact."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from natgrad_apps.agents import parallel
from natgrad_apps.agents.cli import main
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints, processes
from natgrad_apps.runner.checkpoints import CheckpointStore
from natgrad_apps.runner.processes import ALONE, Processes
from tests.runner.test_acktr_resume import assert_equal_runs, results

CONFIG = """
environment: {id: Pendulum-v1, n_envs: 2, normalize_observations: true, normalize_rewards: true}
agent: {n_steps: 16, learning_rate: lin_0.1, natural_gradient: {critic_step: {name: kl_trust_region, radius: 0.1}}}
total_timesteps: 6400
log_every: 2
checkpoint_every: 640
evaluation: {every_steps: 1280, episodes: 1, final_episodes: 2, n_envs: 1}
threads: 1
device: cpu
"""


def start(*words: str) -> list[subprocess.Popen[str]]:
    """Two processes of one command, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", parallel.COMMAND[1], *words]
    return [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]


def finish(jobs: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes, and what the leading process printed."""
    texts = [job.communicate(timeout=240)[0] for job in jobs]
    return [job.returncode for job in jobs], texts[0]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_goes_on_exactly(config: Path, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    codes, text = finish(start("train", "--config", str(config), "--out", str(whole)))
    assert codes == [0, 0], text
    record = results(whole)
    # 100 updates of 2 processes x 2 environments x 16 steps.
    assert (record["processes"], record["steps"], record["updates"]) == (2, 6400, 100)
    saved = checkpoints.load(CheckpointStore(whole / "checkpoint").find())
    assert {"run.zip", "rank_1_run.zip"} <= set(saved.files)

    jobs = start("train", "--config", str(config), "--out", str(pieces))
    while len(CheckpointStore(pieces / "checkpoint").steps()) < 2:  # the first is that of step 0
        assert all(job.poll() is None for job in jobs)
        time.sleep(0.05)
    for job in jobs:
        job.send_signal(signal.SIGTERM)
    codes, text = finish(jobs)
    assert codes == [130, 130], text
    assert f"torchrun --nproc-per-node 2 -m natgrad_apps.agents.cli train --resume {pieces}" in text
    assert CheckpointStore(pieces / "checkpoint").steps()[-1] < 6400

    assert main(["train", "--resume", str(pieces)]) == 2, "one process cannot continue what two began"
    codes, text = finish(start("train", "--resume", str(pieces)))
    assert codes == [0, 0], text
    assert_equal_runs(whole, pieces)
    assert (results(pieces)["sessions"], results(pieces)["resumed_exactly"]) == (2, True)


@pytest.mark.slow
def test_a_folder_in_use_ends_every_process(config: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    codes, text = finish(start("train", "--config", str(config), "--out", str(tmp_path)))
    assert codes == [2, 0]
    assert str(tmp_path) in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious.txt"]


def test_incomplete_variables_of_torchrun_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"), processes.join():
        pass


def test_many_seeds_are_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--config", "cartpole", "--seeds", "2", "--out", str(tmp_path / "out")]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_files_of_each_process_have_their_own_names() -> None:
    mine = {"run.zip": b"0", "config.yaml": b"c"}
    assert ALONE.gathered_files(mine) == mine
    everything = {**mine, "rank_1_run.zip": b"1", "rank_1_agent.zip": b"a", "rank_10_run.zip": b"10"}
    assert Processes(1, 11).own_files(everything) == {"run.zip": b"1", "agent.zip": b"a"}
    assert Processes(0, 11).own_files(everything) == mine
    assert (processes.count_of(mine), processes.count_of(everything)) == (1, 3)
    assert processes.resume_command("natgrad-acktr", "m", Path("a b"), 1) == "natgrad-acktr train --resume 'a b'"
