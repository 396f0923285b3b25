"""The verb ``evaluate``: episodes with the agent of a checkpoint, or with that of each seed of a group."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import natgrad_apps
from natgrad_apps.agents import snapshot
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.agents.environments import close, make_evaluation
from natgrad_apps.agents.evaluation import FINAL_SEED, evaluate
from natgrad_apps.agents.experiments import seed_folders
from natgrad_apps.agents.training import PACKAGES
from natgrad_apps.agents.video import record as record_films
from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.runner import atomic, provenance, schema
from natgrad_apps.runner.figures import interquartile_mean
from natgrad_apps.runner.words import counted, number
from natgrad_apps.runner.yaml_text import read_yaml

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how.

    Attributes:
        path: Run folder, checkpoint, or group of run folders that ``train --seeds`` made.
        which: ``"last"`` or ``"best"`` checkpoint of a run folder.
        episodes: Number of episodes; None for the run's ``evaluation.final_episodes``.
        seed: Seed of the first states; None for that of the run's final evaluation.
        device: Where the networks live; None for the run's device.
        stochastic: Whether to draw actions, whatever the run does.
        out: Folder of ``evaluation.json``; None for the folder of the run or group.
        videos: Number of further episodes that are filmed, into the folder ``videos`` beside that file.
    """

    path: Path
    which: str = "last"
    episodes: int | None = None
    seed: int | None = None
    device: str | None = None
    stochastic: bool = False
    out: Path | None = None
    videos: int = 0


def evaluate_checkpoint(request: Request) -> None:
    """Run the episodes, print mean and deviation, and write ``evaluation.json``; films come after it.

    Of a group of seeds every run is evaluated, and a summary over seeds is written into the folder of the group, both under `Request.out`
    if that is given.

    Args:
        request: What and how.

    Raises:
        ConfigError: There is no intact checkpoint, or its environment cannot be made or, with the results written, not be filmed.
    """
    if request.device not in {None, *DEVICES}:
        raise unknown_name("device", str(request.device), DEVICES)
    runs = seed_folders(request.path)
    unfilmed = _evaluate_group(request, runs) if runs else _evaluate_run(request)[1]
    if unfilmed is not None:
        raise unfilmed


def _evaluate_group(request: Request, runs: Sequence[Path]) -> ConfigError | None:
    """Evaluate every run of a group and summarize; returns what hindered the films, if anything did."""
    for run in runs:
        _require_checkpoint(run, request.which, request.path)
    records, unfilmed = [], None
    for run in runs:
        out = run if request.out is None else request.out / run.name
        videos = 0 if unfilmed else request.videos
        record, error = _evaluate_run(dataclasses.replace(request, path=run, out=out, videos=videos), f"{run.name}: ")
        records.append(record)
        unfilmed = unfilmed or error
    summary = _summary(runs, records)
    found = summary["evaluation"]
    spread = "" if found["se_return"] is None else f" +- {number(found['se_return'])} (standard error)"
    print(f"{counted(len(runs), 'seed')}: mean return {number(found['mean_return'])}{spread}, interquartile mean {number(found['iqm'])}")
    _write(request.out or request.path, summary)
    return unfilmed


def _evaluate_run(request: Request, title: str = "") -> tuple[dict[str, Any], ConfigError | None]:
    """Evaluate one run; returns what is written, and what hindered the films, if anything did."""
    owner, saved = snapshot.find(request.path, request.which)
    if snapshot.CONFIG not in saved.files:
        raise ConfigError(f"the checkpoint {saved.folder} has no {snapshot.CONFIG}")
    config = schema.read(TrainConfig, read_yaml(saved.files[snapshot.CONFIG].decode(), snapshot.CONFIG))
    if request.device is not None:
        config = dataclasses.replace(config, device=request.device)  # type: ignore[arg-type]
    episodes = request.episodes or config.evaluation.final_episodes
    seed = config.seed + FINAL_SEED if request.seed is None else request.seed
    deterministic = config.evaluation.deterministic and not request.stochastic
    folder = request.out or owner
    with ExitStack() as stack:
        venv = make_evaluation(config.environment, min(config.evaluation.n_envs, episodes), seed, None)
        stack.callback(close, venv)
        snapshot.take_statistics(venv, snapshot.normalization(saved.files))
        agent = build_agent(config, venv)
        snapshot.restore_agent(saved.files, agent)
        result = evaluate(agent, venv, episodes, seed, deterministic=deterministic)
        record = {
            "runner": PROGRAM,
            "environment": config.environment.id,
            "checkpoint": saved.folder.name,
            "evaluation": result.to_dict(),
            "steps": saved.step,
            "steps_per_second": sum(result.lengths) / max(result.seconds, 1e-9),
            "duration_seconds": result.seconds,
            "seeds": {"run": config.seed, "evaluation": seed},
            "packages": provenance.package_versions(PACKAGES),
            "source": provenance.git_commit(Path(natgrad_apps.__file__)),
            "machine": provenance.machine(agent.device),
        }
        spread = f"standard deviation {number(result.std)} over {counted(episodes, 'episode')}"
        print(f"{title}mean return {number(result.mean)}, {spread} (agent of step {saved.step:,})")
        _write(folder, record)
        if request.videos:
            try:
                films = record_films(agent, config.environment, request.videos, seed, deterministic, folder / "videos")
            except ConfigError as error:
                return record, error
            for film in films:
                print(f"filmed: {film}")
    return record, None


def _require_checkpoint(run: Path, which: str, group: Path) -> None:
    """Raise unless a run of a group can be evaluated, before any is.

    Raises:
        ConfigError: It has no intact checkpoint.
    """
    try:
        snapshot.find(run, which)
    except ConfigError as error:
        raise ConfigError(f"{str(group)!r} cannot be evaluated as a group: {error}; evaluate the others one by one") from error


def _summary(runs: Sequence[Path], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean returns over seeds."""
    means = np.array([record["evaluation"]["mean_return"] for record in records])
    shared = ("runner", "environment", "packages", "source", "machine")
    return {
        **{name: records[0][name] for name in shared},
        "evaluation": {
            "mean_return": float(means.mean()),
            "se_return": float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None,
            "iqm": float(interquartile_mean(means)),
            "per_seed": means.tolist(),
            "episodes_per_seed": records[0]["evaluation"]["episodes"],
            "deterministic": records[0]["evaluation"]["deterministic"],
        },
        "runs": {
            run.name: {name: record[name] for name in ("checkpoint", "steps", "seeds")} for run, record in zip(runs, records, strict=True)
        },
    }


def _write(folder: Path, record: dict[str, Any]) -> None:
    target = folder / "evaluation.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(target, record)
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    print(f"written: {target}")
