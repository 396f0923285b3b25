"""Trainings of agents with periodic evaluations, for the benchmarks that compare agents."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from benchmarks._records import Trained
from natgrad_apps._resources import config_path
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.config import EnvironmentConfig, TrainConfig
from natgrad_apps.agents.environments import find_normalization, make_evaluation, make_training
from natgrad_apps.agents.evaluation import FINAL_SEED, PERIODIC_SEED, evaluate
from natgrad_apps.agents.training import resume
from natgrad_apps.agents.training import train as run_to_end
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file
from natgrad_apps.runner.checkpoints import CheckpointStore

FIRST_SEED = 100
"""Seeds of benchmarks start here, so that none of them was used in choosing settings."""


EVALUATED = "eval/mean_reward"
"""Column of a run's metrics."""


TUNED = {
    "HalfCheetah": "half_cheetah",
    "Hopper": "hopper",
    "InvertedDoublePendulum": "inverted_double_pendulum",
    "Reacher": "reacher",
    "Walker2d": "walker2d",
    "Pong": "pong",
}
"""Presets of their own; the others have `mujoco` or `atari`."""
GAMES = {"Pong": 9.3, "Breakout": 31.8, "BeamRider": 5775.0, "Qbert": 13455.0, "Seaquest": 20182.0, "SpaceInvaders": 1652.0}
"""Atari games with the human level of the ACKTR paper (its Table 1)."""


def preset(environment: str) -> TrainConfig:
    """ACKTR's preset for one of `GAMES` or a MuJoCo environment, its name without ``-v5``."""
    general, suffix = ("atari", "NoFrameskip-v4") if environment in GAMES else ("mujoco", "-v5")
    config = schema.read(TrainConfig, read_file(config_path("agents", TUNED.get(environment, general))))
    return replace(config, environment=replace(config.environment, id=environment + suffix))


def train(
    config: TrainConfig, settings: EnvironmentConfig, build: Callable[[TrainConfig, Any], OnPolicyAlgorithm], target: float
) -> Trained:
    """Train one agent with one thread.

    Args:
        config: Budget, seed and evaluations; the agent's settings if `build` looks at them.
        settings: The environments.
        build: Makes the agent from the configuration and the vectorized environment.
        target: Mean return that counts as solved.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    with ExitStack() as stack:
        venv = make_training(settings, config.agent.gamma, config.seed)
        stack.callback(venv.close)
        model = build(config, venv)
        normalization = find_normalization(venv)
        if normalization is not None:
            normalization.gamma = model.gamma
        test = make_evaluation(settings, config.evaluation.n_envs, config.seed + PERIODIC_SEED, normalization)
        stack.callback(test.close)

        def measure(episodes: int = config.evaluation.episodes, first: int = PERIODIC_SEED) -> float:
            return evaluate(model, test, episodes, config.seed + first, deterministic=config.evaluation.deterministic).mean

        watch = _Watch(config.evaluation.every_steps, measure, f"{settings.id} {type(model).__name__} seed {config.seed}")
        start = time.perf_counter()
        model.learn(config.total_timesteps, watch)
        seconds = time.perf_counter() - start
        watch.look()
        final = measure(config.evaluation.final_episodes, FINAL_SEED)
        watch.restore(test)
        best = measure(config.evaluation.final_episodes, FINAL_SEED)
    first_hit = next((step for step, score in watch.curve if score >= target), None)
    return Trained(final, best, first_hit, watch.curve, model.num_timesteps, seconds)


def train_in(folder: Path, config: TrainConfig, target: float) -> Trained:
    """ACKTR trained in a run folder by the runner: cut off, it goes on from its last checkpoint, exactly.

    Args:
        folder: The run folder; one that holds a checkpoint is continued with its own configuration.
        config: The run.
        target: Mean return that counts as solved.
    """
    if CheckpointStore(folder / "checkpoint").steps():
        resume(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        run_to_end(config, folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        curve = [(int(row["step"]), float(row[EVALUATED])) for row in csv.DictReader(file) if row.get(EVALUATED)]
    final = results["evaluation"]["mean_return"]
    best = results["best_checkpoint"]
    return Trained(
        final=final,
        best=final if best is None else best["evaluation"]["mean_return"],
        first_hit=next((step for step, score in curve if score >= target), None),
        curve=curve,
        steps=results["steps"],
        seconds=results["duration_seconds"],
    )


class _Watch(BaseCallback):
    """Evaluates at fixed intervals; keeps the curve, and the best policy.

    Args:
        every: Environment steps between two evaluations.
        measure: Mean return of an evaluation.
        name: Of the training, in the line that each evaluation prints.
    """

    def __init__(self, every: int, measure: Callable[[], float], name: str) -> None:
        super().__init__()
        self._every, self._measure, self._name = every, measure, name
        self._next, self._score = every, -math.inf
        self.curve: list[tuple[int, float]] = []
        self._policy: dict[str, Any] = {}
        self._statistics: Any = None

    @property
    def _player(self) -> nn.Module:
        """What `predict` asks: of ACKTR it may be a mean of iterates."""
        return self.model.playing_policy if isinstance(self.model, ACKTR) else self.model.policy

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self._every
            self.look()

    def look(self) -> None:
        """Evaluate the policy of this moment."""
        score = self._measure()
        self.curve.append((self.num_timesteps, score))
        print(f"{self._name}, {self.num_timesteps:,} steps: {score:.1f}", flush=True)
        if score > self._score:
            self._score, self._policy = score, copy.deepcopy(self._player.state_dict())
            normalization = find_normalization(self.training_env)
            self._statistics = None if normalization is None else copy.deepcopy(normalization.obs_rms)

    def restore(self, test: Any) -> None:
        """Give the best policy to the model and its normalization to the environment `test`."""
        self._player.load_state_dict(self._policy)
        normalization = find_normalization(test)
        if normalization is not None:
            normalization.obs_rms = self._statistics

    def _on_step(self) -> bool:
        return True
