"""Several seeds side by side: folders, summary, interruption, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from natgrad_apps.agents import many
from natgrad_apps.agents.cli import main
from natgrad_apps.runner import metrics
from natgrad_apps.runner.figures import bootstrap_band, interquartile_mean

Capture = pytest.CaptureFixture[str]


def test_two_seeds_make_two_runs_and_a_summary(small_config: Path, finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "with space" / "group"
    assert main(["train", "--config", str(small_config), "--out", str(out), "--seeds", "2"]) == 0
    summary = json.loads((out / "results.json").read_text())
    returns = [json.loads((out / f"seed_{s}" / "results.json").read_text())["evaluation"]["mean_return"] for s in (0, 1)]
    assert summary["seeds"] == [0, 1]
    assert summary["evaluation"]["per_seed"] == returns
    assert summary["evaluation"]["mean_return"] == pytest.approx(sum(returns) / 2)
    assert summary["evaluation"]["se_return"] == pytest.approx(abs(returns[0] - returns[1]) / 2)
    assert (out / "figures" / "learning_curves.png").stat().st_size > 10_000
    assert "2 seeds: mean return" in capsys.readouterr().out
    # the first seed is the run that it would have been alone
    names = ("step", "train/policy_loss", "eval/mean_reward")
    alone, together = (metrics.read_rows(folder / "metrics.csv") for folder in (finished_run, out / "seed_0"))
    assert [[row[n] for n in names] for row in alone] == [[row[n] for n in names] for row in together]
    assert many.is_group(out)
    assert not many.is_group(finished_run)
    assert main(["train", "--resume", str(out)]) == 0, "a complete group is summarized again"


def test_a_failing_run_is_named_and_the_group_can_go_on(small_config: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "group"
    arguments = ["--environment.id", "CartPole-v1", "--environment.kwargs.nonsense", "1"]
    assert main(["train", "--config", str(small_config), "--out", str(out), "--seeds", "2", "--workers", "1", *arguments]) == 1
    error = capsys.readouterr().err
    assert "1 of 2 runs failed (seed_0): natgrad-acktr: error: environment 'CartPole-v1' refuses kwargs" in error
    assert f"natgrad-acktr train --resume {out}" in error
    for seed in (0, 1):
        file = out / f"seed_{seed}.yaml"
        file.write_text(file.read_text().replace("kwargs: {nonsense: 1}", "kwargs: {}"))
    assert main(["train", "--resume", str(out), "--workers", "1"]) == 0


def test_workers_need_something_to_share(small_config: Path, finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--config", str(small_config), "--out", str(tmp_path / "x"), "--workers", "3"]) == 2
    assert main(["train", "--resume", str(finished_run), "--workers", "3"]) == 2
    fresh, resumed = capsys.readouterr().err.splitlines()
    assert "give --seeds N too" in fresh
    assert "is one run" in resumed
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_an_interrupted_group_goes_on(small_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "group"
    command = [sys.executable, "-m", "natgrad_apps.agents.cli", "train"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    settings = ["--seeds", "2", "--total_timesteps", "16000", "--evaluation.every_steps", "0", "--checkpoint_every", "50000"]
    process = subprocess.Popen(
        [*command, "--config", str(small_config), "--out", str(out), *settings], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        deadline = time.monotonic() + 120
        while not all((out / f"seed_{s}" / "metrics.csv").is_file() for s in (0, 1)) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert f"natgrad-acktr train --resume {out}" in error
    assert all(list((out / f"seed_{s}" / "checkpoint").glob("step_*")) for s in (0, 1))
    assert not (out / "results.json").exists()
    assert main(["train", "--resume", str(out)]) == 0
    results = [json.loads((out / f"seed_{s}" / "results.json").read_text()) for s in (0, 1)]
    assert [(r["sessions"], r["resumed_exactly"]) for r in results] == [(2, True)] * 2


def test_bad_counts_are_refused(small_config: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--config", str(small_config), "--out", str(tmp_path / "x"), "--seeds", "0"]) == 2
    assert "--seeds (command line): got '0'; legal: a whole number >= 1" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path), "--seeds", "2"]) == 2
    assert "drop --seeds" in capsys.readouterr().err


def test_interquartile_mean_and_its_band() -> None:
    values = np.array([[100.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [-50.0, 9.0]])
    np.testing.assert_allclose(interquartile_mean(values), [2.0, 2.0])  # 5 runs: one is left out at each end
    np.testing.assert_allclose(interquartile_mean(values[:3]), values[:3].mean(0))
    low, high = bootstrap_band(np.repeat(np.arange(8.0)[:, None], 2, axis=1))
    # the middle half of 0..7 has mean 3.5; its bootstrap interval is wide, and symmetric up to resampling noise
    assert (low > 0.5).all()
    assert (high < 6.5).all()
    assert (low < 2.5).all()
    assert (high > 4.5).all()
