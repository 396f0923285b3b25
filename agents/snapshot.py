"""Everything of a run that a checkpoint holds: agent, environments, normalization, generators, counters."""

from __future__ import annotations

import dataclasses
import io
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from natgrad_apps.agents import environment_state
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.callbacks import Progress
from natgrad_apps.agents.environments import find_normalization
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints
from natgrad_apps.runner.checkpoints import Checkpoint, CheckpointStore

AGENT, NORMALIZATION, RUN, CONFIG = "agent.zip", "vecnormalize.pkl", "run.pkl", "config.yaml"


def pack(agent: ACKTR, venv: VecEnv, progress: Progress, config_yaml: str) -> dict[str, bytes]:
    """The files of a checkpoint.

    Args:
        agent: Between two updates.
        venv: Its environment.
        progress: How far the run is.
        config_yaml: The resolved configuration, so that a checkpoint can be used away from its run.
    """
    buffer = io.BytesIO()
    agent.save(buffer)
    logger = agent.logger
    run = {
        "progress": dataclasses.asdict(progress),
        "environments": environment_state.capture(venv),
        # Numbers that the logger has been told and not yet written.
        "pending": (dict(logger.name_to_value), dict(logger.name_to_count), dict(logger.name_to_excluded)),
        "python_random": random.getstate(),
    }
    files = {AGENT: buffer.getvalue(), RUN: pickle.dumps(run), CONFIG: config_yaml.encode()}
    statistics = find_normalization(venv)
    if statistics is not None:
        # The format of VecNormalize.save, so that VecNormalize.load reads it.
        files[NORMALIZATION] = pickle.dumps(statistics)
    return files


def unpack_agent(files: Mapping[str, bytes], venv: VecEnv | None, device: str) -> ACKTR:
    """The agent of a checkpoint; the global generators of torch and numpy are set to their states at that time.

    Args:
        files: Of the checkpoint.
        venv: The environment to go on in; None for prediction only.
        device: Where the networks shall live.

    Raises:
        ConfigError: The checkpoint holds no agent, or one for another environment.
    """
    if AGENT not in files:
        raise ConfigError(f"the checkpoint has no {AGENT}")
    try:
        return ACKTR.load(io.BytesIO(files[AGENT]), env=venv, device=device, force_reset=False)
    except ValueError as error:
        raise ConfigError(f"the agent of the checkpoint does not fit: {error}") from error


def unpack_normalization(files: Mapping[str, bytes]) -> VecNormalize | None:
    """The normalization of a checkpoint, without an environment; None if the run had none."""
    data = files.get(NORMALIZATION)
    if data is None:
        return None
    statistics = pickle.loads(data)
    assert isinstance(statistics, VecNormalize)
    return statistics


def take_statistics(venv: VecEnv, saved: VecNormalize | None) -> None:
    """Give the statistics of a saved normalization to that of an environment."""
    own = find_normalization(venv)
    if own is not None and saved is not None:
        own.ret_rms = saved.ret_rms
        if own.norm_obs:
            own.obs_rms = saved.obs_rms
            own.old_obs = saved.old_obs


@dataclasses.dataclass(frozen=True)
class RunState:
    """What `pack` kept besides agent and normalization."""

    progress: Progress
    environments: dict[str, Any] | None
    pending: tuple[dict[str, Any], dict[str, int], dict[str, Any]]
    python_random: Any

    @classmethod
    def unpack(cls, files: Mapping[str, bytes]) -> RunState:
        """From the files of a checkpoint.

        Raises:
            ConfigError: It is no checkpoint of a run.
        """
        if RUN not in files:
            raise ConfigError(f"the checkpoint has no {RUN}, so the run cannot go on from it")
        data = pickle.loads(files[RUN])
        return cls(Progress(**data["progress"]), data["environments"], data["pending"], data["python_random"])

    def restore(self, venv: VecEnv, logger: Logger) -> bool:
        """Give the state to environments, logger and Python's generator; returns whether the environments had a state.

        Args:
            venv: The environments; they are left alone if they have no state.
            logger: The agent's logger.
        """
        if self.environments is not None:
            environment_state.restore(venv, self.environments)
        for target, saved in zip((logger.name_to_value, logger.name_to_count, logger.name_to_excluded), self.pending, strict=True):
            target.update(saved)  # type: ignore[attr-defined]
        random.setstate(self.python_random)
        return self.environments is not None


def find(path: Path, which: str) -> tuple[Path, Checkpoint]:
    """A checkpoint from what a user points at.

    Args:
        path: A run folder, its ``checkpoint`` folder, or one checkpoint.
        which: ``"last"`` or ``"best"``, where there is a choice.

    Returns:
        The folder that belongs to it (the run folder, or the checkpoint itself) and the verified checkpoint.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    if not path.exists():
        raise ConfigError(f"there is no {str(path)!r}; give a run folder or a checkpoint")
    if (path / checkpoints.MANIFEST).is_file():
        return path, checkpoints.load(path)
    store = path / "checkpoint" if (path / "checkpoint").is_dir() else path
    if not CheckpointStore(store).steps():
        raise ConfigError(f"{str(path)!r} is neither a run folder with a checkpoint nor a checkpoint")
    owner = store.parent if (store.parent / CONFIG).is_file() else store
    return owner, checkpoints.load(CheckpointStore(store).find(which))
