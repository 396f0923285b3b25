"""The verb ``evaluate``: episodes with the agent of a checkpoint."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import natgrad_apps
from natgrad_apps.agents import snapshot
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.agents.environments import close, make_evaluation
from natgrad_apps.agents.evaluation import FINAL_SEED, evaluate
from natgrad_apps.agents.training import PACKAGES
from natgrad_apps.agents.video import record as record_films
from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.runner import atomic, provenance, schema
from natgrad_apps.runner.yaml_text import read_yaml

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how.

    Attributes:
        path: Run folder or checkpoint.
        which: ``"last"`` or ``"best"`` checkpoint of a run folder.
        episodes: Number of episodes; None for the run's ``evaluation.final_episodes``.
        seed: Seed of the first states; None for that of the run's final evaluation.
        device: Where the networks live; None for the run's device.
        stochastic: Whether to draw actions, whatever the run does.
        out: Folder of ``evaluation.json``; None for the run folder.
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
    """Run the episodes, print mean and deviation, and write ``evaluation.json``.

    Args:
        request: What and how.

    Raises:
        ConfigError: There is no intact checkpoint, or its environment cannot be made.
    """
    if request.device not in {None, *DEVICES}:
        raise unknown_name("device", str(request.device), DEVICES)
    owner, saved = snapshot.find(request.path, request.which)
    if snapshot.CONFIG not in saved.files:
        raise ConfigError(f"the checkpoint {saved.folder} has no {snapshot.CONFIG}")
    config = schema.read(TrainConfig, read_yaml(saved.files[snapshot.CONFIG].decode(), snapshot.CONFIG))
    if request.device is not None:
        config = dataclasses.replace(config, device=request.device)  # type: ignore[arg-type]
    episodes = request.episodes or config.evaluation.final_episodes
    seed = config.seed + FINAL_SEED if request.seed is None else request.seed
    deterministic = config.evaluation.deterministic and not request.stochastic
    with ExitStack() as stack:
        venv = make_evaluation(config.environment, min(config.evaluation.n_envs, episodes), seed, None)
        stack.callback(close, venv)
        snapshot.take_statistics(venv, snapshot.normalization(saved.files))
        agent = build_agent(config, venv)
        snapshot.restore_agent(saved.files, agent)
        result = evaluate(agent, venv, episodes, seed, deterministic=deterministic)
        target = (request.out or owner) / "evaluation.json"
        if request.videos:
            for film in record_films(agent, config.environment, request.videos, seed, deterministic, target.parent / "videos"):
                print(f"filmed: {film}")
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
    print(f"mean return {result.mean:.2f}   standard deviation {result.std:.2f}   episodes {episodes}   (agent of step {saved.step:,})")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(target, record)
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    print(f"written: {target}")
