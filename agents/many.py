"""Several seeds of one configuration side by side, each a run of its own in a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.agents.plotting import NothingToDrawError, plot_runs
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic, schema
from natgrad_apps.runner.arguments import read_file
from natgrad_apps.runner.command import BAD_INPUT, DONE, INTERRUPTED, RunFailedError
from natgrad_apps.runner.figures import interquartile_mean
from natgrad_apps.runner.folder import CONFIG, RESULTS, check_new, read_results
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.metrics import read_rows
from natgrad_apps.runner.progress import ProgressView
from natgrad_apps.runner.words import counted, number

FOLDER = "seed_{}"
POLL_SECONDS = 0.2
SHOW_SECONDS = 2.0


def train_seeds(config: TrainConfig, out: Path, count: int, workers: int) -> None:
    """Train with the seeds ``config.seed, ..., config.seed + count - 1``, and summarize.

    Args:
        config: The run of the first seed.
        out: A folder that does not exist or is empty; each seed gets a run folder in it.
        count: Number of seeds.
        workers: Most runs at a time.

    Raises:
        ConfigError: The folder cannot be used.
        InterruptedRunError: A signal arrived; every run has written its checkpoint.
        RunFailedError: A run failed; the others went on to their end.
    """
    check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(config.seed, config.seed + count):
        atomic.write_text(out / f"{FOLDER.format(seed)}.yaml", schema.to_yaml(replace(config, seed=seed)))
    _run(out, workers)


def is_group(path: Path) -> bool:
    """Whether a folder holds the runs of `train_seeds`."""
    return path.is_dir() and not (path / CONFIG).exists() and any(path.glob("seed_*.yaml"))


def resume_seeds(out: Path, workers: int) -> None:
    """Continue the runs of `train_seeds` that are not complete, and summarize; raises as that does."""
    _run(out, workers)


def _run(out: Path, workers: int) -> None:
    jobs = sorted(out.glob("seed_*.yaml"), key=lambda path: int(path.stem.rpartition("_")[2]))
    folders = [path.with_suffix("") for path in jobs]
    total = sum(_steps_of(path) for path in jobs)
    waiting = [(job, folder) for job, folder in zip(jobs, folders, strict=True) if not (folder / RESULTS).exists()]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    failed: list[Path] = []
    with InterruptFlag() as flag, ProgressView(f"{len(jobs)} seeds", total, 0, lambda text: None) as view:
        shown = float("-inf")
        while waiting or running:
            while waiting and len(running) < workers and not flag.is_set:
                job, folder = waiting.pop(0)
                running[folder] = _start(job, folder)
            for folder, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[folder]
                if code == DONE:
                    view.say(f"{folder.name}: {_summary(folder)}")
                elif code != INTERRUPTED:
                    failed.append(folder)
                    view.say(f"{folder.name}: failed with exit code {code}, see {folder}.log")
                    if code == BAD_INPUT:
                        waiting.clear()  # the others have the same settings
            if flag.is_set:
                _stop(running)
                break
            if time.monotonic() - shown >= SHOW_SECONDS:
                shown = time.monotonic()
                view.update(sum(_done(folder) for folder in folders), {"running": str(len(running))})
            time.sleep(POLL_SECONDS)
        view.update(sum(_done(folder) for folder in folders), {}, last=True)
    if flag.is_set:
        raise InterruptedRunError(f"{PROGRAM} train --resume {shlex.quote(str(out))}")
    if failed:
        raise RunFailedError(
            f"{len(failed)} of {len(jobs)} runs failed ({', '.join(f.name for f in failed)}): {_last_line(failed[0])}; when mended: "
            f"{PROGRAM} train --resume {shlex.quote(str(out))}"
        )
    _finish(out, folders)


def _start(job: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The run of one seed, in a session of its own, so that Ctrl-C reaches it once, through this process."""
    command = [sys.executable, "-m", "natgrad_apps.agents.cli", "train"]
    fresh = not (folder / "checkpoint").is_dir()
    command += ["--config", str(job), "--out", str(folder)] if fresh else ["--resume", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)


def _stop(running: dict[Path, subprocess.Popen[bytes]]) -> None:
    """Let every run finish its update and write its checkpoint."""
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    for process in running.values():
        process.wait()


def _steps_of(job: Path) -> int:
    return schema.read(TrainConfig, read_file(job)).total_timesteps


def _done(folder: Path) -> int:
    """Environment steps of a run as its metrics tell."""
    try:
        rows = read_rows(folder / "metrics.csv")
        return int(rows[-1]["step"]) if rows else 0
    except (OSError, ConfigError, KeyError, ValueError):
        return 0


def _last_line(folder: Path) -> str:
    log = Path(f"{folder}.log")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "no output"


def _evaluation(folder: Path, best: bool) -> float | None:
    results: dict[str, Any] = dict(read_results(folder) or {})
    record = (results.get("best_checkpoint") or {}).get("evaluation") if best else results.get("evaluation")
    return None if record is None else float(record["mean_return"])


def _summary(folder: Path) -> str:
    found = {"mean return": _evaluation(folder, best=False), "best checkpoint": _evaluation(folder, best=True)}
    return ", ".join(f"{name} {number(value)}" for name, value in found.items() if value is not None)


def _finish(out: Path, folders: list[Path]) -> None:
    """Write the summary over seeds and the picture of all."""
    summary: dict[str, Any] = {"runner": PROGRAM, "seeds": [int(f.name.rpartition("_")[2]) for f in folders]}
    for name, best in (("evaluation", False), ("best_checkpoint", True)):
        values = [_evaluation(folder, best) for folder in folders]
        if all(v is not None for v in values):
            summary[name] = _statistics(np.array(values, dtype=float))
    atomic.write_json(out / RESULTS, summary)
    found = summary["evaluation"]
    error = "" if found["se_return"] is None else f" +- {number(found['se_return'])} (standard error)"
    mean = number(found["mean_return"])
    print(f"{counted(len(folders), 'seed')}: mean return {mean}{error}, interquartile mean {number(found['iqm'])}")
    try:
        print(f"folder: {out}   picture: {plot_runs(folders, out / 'figures' / 'learning_curves.png')}")
    except NothingToDrawError as error:
        print(f"folder: {out}   no picture: {error}")


def _statistics(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    count = len(values)
    return {
        "mean_return": float(values.mean()),
        "se_return": float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None,
        "iqm": float(interquartile_mean(values)),
        "per_seed": values.tolist(),
    }
