"""Interruption and resumption: a run in pieces equals the run in one piece."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import SubprocVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from natgrad_apps.agents import callbacks, environment_state, evaluation, snapshot, training
from natgrad_apps.agents.cli import main
from natgrad_apps.runner import checkpoints, metrics
from natgrad_apps.runner.checkpoints import CheckpointStore

NORMALIZED = """
environment: {id: Pendulum-v1, n_envs: 3, normalize_observations: true, normalize_rewards: true, frame_stack: 2}
agent:
  n_steps: 24
  learning_rate: lin_0.1
  natural_gradient: {momentum: 0.5, curvature: ekfac, refresh: {name: periodic, inverse_period: 3}, iterate_averaging: 0.2}
total_timesteps: 1296
log_every: 2
checkpoint_every: 400
evaluation: {every_steps: 400, episodes: 2, final_episodes: 2, n_envs: 1}
threads: 1
device: cpu
"""


def table(folder: Path) -> list[dict[str, str]]:
    """Rows of the metrics without the columns that say how long something took."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/f") and k != "time/time_elapsed"}
        for row in metrics.read_rows(folder / "metrics.csv")
    ]


def results(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return value


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = checkpoints.load(CheckpointStore(folder / "checkpoint").find())
    _, states, _ = load_from_zip_file(io.BytesIO(saved.files[snapshot.AGENT]), load_data=False, device="cpu")
    parameters: dict[str, Any] = states  # SB3's annotation misses the nesting
    return {f"{part}.{name}": value for part in parameters if part != "policy.optimizer" for name, value in parameters[part].items()}


def assert_equal_runs(first: Path, second: Path) -> None:
    """Every number of every row, every weight, and the final evaluation, bit for bit."""
    assert table(first) == table(second)
    assert results(first)["evaluation"] == results(second)["evaluation"]
    left, right = weights(first), weights(second)
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


class SignalAfter:
    """Raises a signal in this process after some updates, in the middle of a rollout."""

    def __init__(self, updates: int, number: signal.Signals) -> None:
        self.updates, self.number, self.original = updates, number, callbacks.RunCallback._on_step

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        outer = self

        def on_step(self: callbacks.RunCallback) -> bool:
            if self.agent._n_updates == outer.updates:
                outer.updates = -1
                os.kill(os.getpid(), outer.number)
            return outer.original(self)

        monkeypatch.setattr(callbacks.RunCallback, "_on_step", on_step)


def assert_pieces_equal_the_whole(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that Ctrl-C interrupts, and that is resumed, equals one without interruption; they are ``whole`` and ``parts`` of a folder."""
    assert main(["train", "--config", str(config), "--out", str(folder / "whole")]) == 0
    SignalAfter(5, signal.SIGINT).install(monkeypatch)
    assert main(["train", "--config", str(config), "--out", str(folder / "parts")]) == 130
    assert main(["train", "--resume", str(folder / "parts")]) == 0
    assert_equal_runs(folder / "whole", folder / "parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_exactly(
    number: signal.Signals,
    finished_run: Path,
    small_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "with space" / "run"
    SignalAfter(7, number).install(monkeypatch)
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    error = capsys.readouterr().err
    assert f"natgrad-acktr train --resume '{out}'" in error
    assert "Traceback" not in error
    # The update that the signal came in was finished, and its checkpoint written: 8 updates of 64 steps.
    assert CheckpointStore(out / "checkpoint").steps()[-1] == 8 * 64
    assert f"interrupted by {number.name} at step 512" in (out / "log.txt").read_text()
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(finished_run, out)
    assert (results(out)["sessions"], results(out)["resumed_exactly"]) == (2, True)


def test_normalization_momentum_and_frame_stacks_go_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(NORMALIZED)
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "whole")]) == 0
    SignalAfter(4, signal.SIGINT).install(monkeypatch)
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "parts")]) == 130
    # The odd number of updates lies between two rows and between two refreshes of the inverses.
    SignalAfter(12, signal.SIGINT).install(monkeypatch)
    assert main(["train", "--resume", str(tmp_path / "parts")]) == 130
    assert main(["train", "--resume", str(tmp_path / "parts")]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert results(tmp_path / "parts")["sessions"] == 3


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    finished_run: Path, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written after the checkpoint is written again."""
    out = tmp_path / "run"
    original = callbacks.RunCallback._on_rollout_end

    def die(self: callbacks.RunCallback) -> None:
        original(self)
        if self.agent._n_updates == 15:
            raise KeyboardInterrupt  # as the second Ctrl-C: nothing is saved

    monkeypatch.setattr(callbacks.RunCallback, "_on_rollout_end", die)
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    assert metrics.read_rows(out / "metrics.csv")[-1]["step"] == str(14 * 64)
    last = CheckpointStore(out / "checkpoint").steps()[-1]
    assert last < 14 * 64
    monkeypatch.setattr(callbacks.RunCallback, "_on_rollout_end", original)
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(finished_run, out)


@pytest.mark.parametrize(("call", "step"), [(1, 640), (2, 1280), (3, 1280)], ids=["periodic", "last-periodic", "final"])
def test_an_interrupted_evaluation_is_repeated(
    call: int, step: int, finished_run: Path, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = evaluation.evaluate, []

    def evaluate(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    monkeypatch.setattr(training, "evaluate", evaluate)
    out = tmp_path / "run"
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    assert CheckpointStore(out / "checkpoint").steps()[-1] == step
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(finished_run, out)


def test_an_evaluation_that_was_interrupted_and_then_killed_leaves_one_row(
    finished_run: Path, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of step 640 says that the evaluation is due; the row that follows it is not in that checkpoint."""
    out, original = tmp_path / "run", evaluation.evaluate

    def interrupted(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    def die(self: callbacks.RunCallback) -> None:
        raise KeyboardInterrupt  # as the second Ctrl-C: nothing is saved

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", interrupted)
        assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    assert "640" not in {row["step"] for row in table(out)}
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.RunCallback, "_on_rollout_end", die)
        assert main(["train", "--resume", str(out)]) == 130
    assert table(out)[-1]["step"] == "640"
    assert CheckpointStore(out / "checkpoint").steps()[-1] == 640
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(finished_run, out)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [640, 1280]
    assert [event.step for event in events.Scalars("train/predicted_kl")] == [int(row["step"]) for row in table(out)]


def test_environments_without_a_state_begin_new_episodes(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_state, "capture", lambda venv: None)
    SignalAfter(7, signal.SIGINT).install(monkeypatch)
    out = tmp_path / "run"
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    assert main(["train", "--resume", str(out)]) == 0
    assert results(out)["resumed_exactly"] is False
    assert results(out)["steps"] == 1280
    assert "new episodes begin" in (out / "log.txt").read_text()


def test_environments_without_a_state_are_told_at_the_first_checkpoint_and_why(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_state.Resumable, "save_state", lambda self: None)
    monkeypatch.setattr(environment_state.Resumable, "why_no_state", lambda self: "attribute 'world' of Robot: cannot be pickled")
    out = tmp_path / "run"
    assert main(["train", "--config", str(small_config), "--out", str(out), "--total_timesteps", "640"]) == 0
    log = (out / "log.txt").read_text()
    assert log.count("so a resumed run begins new episodes: attribute 'world' of Robot: cannot be pickled") == 1
    assert log.index("attribute 'world'") < log.index("640/640 steps")


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(
    finished_run: Path, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    SignalAfter(13, signal.SIGINT).install(monkeypatch)
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    newest = CheckpointStore(out / "checkpoint").find()
    (newest / "run.zip").write_bytes(b"")
    capsys.readouterr()
    assert main(["train", "--resume", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"the checkpoint {newest} is damaged: run.zip" in error
    _, command = error.strip().split("is intact; to go back to it: ")
    assert command == f"rm -r {newest}"
    shutil.rmtree(newest)
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(finished_run, out)


def test_a_changed_configuration_is_refused(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    SignalAfter(3, signal.SIGINT).install(monkeypatch)
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 130
    file = out / "config.yaml"
    file.write_text(file.read_text().replace("n_envs: 4", "n_envs: 5"))
    assert main(["train", "--resume", str(out)]) == 2
    assert "a run keeps its settings" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dead_environment_ends_the_run(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One worker is killed; the others must not be waited for."""
    original = callbacks.RunCallback._on_rollout_end

    def kill(self: callbacks.RunCallback) -> None:
        original(self)
        base = self.agent.get_env().unwrapped  # type: ignore[union-attr]
        assert isinstance(base, SubprocVecEnv)
        os.kill(base.processes[-1].pid, signal.SIGKILL)

    monkeypatch.setattr(callbacks.RunCallback, "_on_rollout_end", kill)
    out = tmp_path / "run"
    arguments = ["--environment.vectorization", "subprocess", "--environment.n_envs", "2", "--evaluation.n_envs", "1"]
    assert main(["train", "--config", str(small_config), "--out", str(out), *arguments]) == 1
    assert "the process of an environment died" in capsys.readouterr().err
    assert "Traceback" in (out / "log.txt").read_text()


def test_ctrl_c_from_outside(small_config: Path, tmp_path: Path) -> None:
    """The console command in a process of its own, interrupted as a terminal does it, and continued."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "natgrad_apps.agents.cli", "train"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, "--config", str(small_config), "--out", str(out), "--total_timesteps", "1e7"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.csv").is_file() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"natgrad-acktr train --resume {out}" in error
    assert "Traceback" not in error
    step = CheckpointStore(out / "checkpoint").steps()[-1]
    assert step > 0
    assert step % 64 == 0
