"""Everything of a run that a checkpoint holds: agent, environments, normalization, generators, counters."""

from __future__ import annotations

import dataclasses
import io
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from natgrad_apps.agents import environment_state, random_state
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.callbacks import Progress
from natgrad_apps.agents.diagnostics import Spectrum
from natgrad_apps.agents.environments import find_normalization
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints, plain_data
from natgrad_apps.runner.checkpoints import Checkpoint, CheckpointStore

AGENT, NORMALIZATION, RUN, CONFIG = "agent.zip", "vecnormalize.pkl", "run.zip", "config.yaml"

COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "_value_variance",
    "_rate_factor",
    "_states",
    "_updates_at_start",
    "measure_next_update",
)
"""Attributes of an agent, beside its networks and optimizer, that training goes on from."""


def pack(agent: ACKTR, venv: VecEnv, progress: Progress, config_yaml: str) -> dict[str, bytes]:
    """The files of a checkpoint: SB3's own two for use elsewhere, and what a run needs to go on.

    Args:
        agent: Between two updates.
        venv: Its environment.
        progress: How far the run is.
        config_yaml: The resolved configuration, so that a checkpoint can be used away from its run.
    """
    buffer = io.BytesIO()
    agent.save(buffer)
    logger = agent.logger
    statistics = find_normalization(venv)
    run = {
        "progress": dataclasses.asdict(progress),
        "agent": {name: getattr(agent, name) for name in COUNTERS},
        "episodes": (agent.ep_info_buffer, agent.ep_success_buffer),
        "spectrum": dataclasses.asdict(agent.spectrum),
        "generators": random_state.capture(agent.device),
        "normalization": None if statistics is None else _statistics(statistics),
        "environments": environment_state.capture(venv),
        # Numbers that the logger has been told and not yet written.
        "pending": (dict(logger.name_to_value), dict(logger.name_to_count), dict(logger.name_to_excluded)),
        "python_random": random.getstate(),
    }
    files = {AGENT: buffer.getvalue(), RUN: plain_data.dump(run), CONFIG: config_yaml.encode()}
    if statistics is not None:
        # The format of VecNormalize.save, so that VecNormalize.load reads it; never read here.
        files[NORMALIZATION] = pickle.dumps(statistics)
    return files


def restore_agent(files: Mapping[str, bytes], agent: ACKTR) -> None:
    """Bring a new agent, and the global generators of torch and numpy, to the state of a checkpoint.

    Only tensors and plain data are read: nothing in the files is executed.

    Args:
        files: Of the checkpoint.
        agent: Built with the checkpoint's configuration.

    Raises:
        ConfigError: The checkpoint holds no agent, or another one.
    """
    if AGENT not in files or RUN not in files:
        raise ConfigError(f"the checkpoint has no {AGENT if AGENT not in files else RUN}")
    run = plain_data.load(files[RUN], RUN)
    try:
        _, parameters, _ = load_from_zip_file(io.BytesIO(files[AGENT]), load_data=False, device=agent.device)
        agent.set_parameters(parameters, exact_match=True, device=agent.device)
    except (ValueError, RuntimeError, KeyError, UnpicklingError) as error:
        raise ConfigError(f"the agent of the checkpoint does not fit its configuration: {error}") from error
    saved = {"_states": None, **run["agent"]}  # older checkpoints know of no memory
    for name in COUNTERS:
        setattr(agent, name, saved[name])
    agent.ep_info_buffer, agent.ep_success_buffer = run["episodes"]
    agent.spectrum = Spectrum(**run["spectrum"])
    random_state.restore(run["generators"], agent.device)


def normalization(files: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Running statistics of a checkpoint's VecNormalize, for `take_statistics`; None if the run had none."""
    found: dict[str, Any] | None = plain_data.load(files[RUN], RUN)["normalization"] if RUN in files else None
    return found


def _statistics(normalize: VecNormalize) -> dict[str, Any]:
    def moments(rms: Any) -> Any:
        if isinstance(rms, dict):
            return {"parts": {key: moments(value) for key, value in rms.items()}}
        return {"mean": np.asarray(rms.mean), "var": np.asarray(rms.var), "count": float(rms.count)}

    return {
        "returns": moments(normalize.ret_rms),
        "observations": moments(normalize.obs_rms) if normalize.norm_obs else None,
        "last": normalize.old_obs if normalize.norm_obs else None,
    }


def _set_moments(rms: Any, saved: Mapping[str, Any]) -> None:
    if "parts" in saved:
        for key, value in saved["parts"].items():
            _set_moments(rms[key], value)
        return
    rms.mean, rms.var, rms.count = saved["mean"], saved["var"], saved["count"]


def take_statistics(venv: VecEnv, saved: Mapping[str, Any] | None) -> None:
    """Give saved running statistics to the normalization of an environment, if it has one."""
    own = find_normalization(venv)
    if own is None or saved is None:
        return
    _set_moments(own.ret_rms, saved["returns"])
    if own.norm_obs and saved["observations"] is not None:
        _set_moments(own.obs_rms, saved["observations"])
        own.old_obs = saved["last"]


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
        data = plain_data.load(files[RUN], RUN)
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


def how_to_go_on(path: Path) -> str:
    """What trains the agent of a complete run further.

    Raises:
        ConfigError: The run folder has no checkpoint.
    """
    agent = CheckpointStore(path / "checkpoint").find() / AGENT
    return f'To train its agent further, in Python: ACKTR.load("{agent}", env).learn(N, reset_num_timesteps=False)'
