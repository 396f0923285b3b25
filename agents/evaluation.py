"""Evaluation of an agent: episodes in an environment of its own, the same first states every time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents.faults import EnvironmentFaultError, name_of
from natgrad_apps.agents.masking import player

PERIODIC_SEED = 1_000_003
FINAL_SEED = 2_000_003
"""Added to the seed of the run: evaluation has first states of its own, and the last one not those that chose the best checkpoint."""

LONG_EPISODE, ENDLESS_EPISODE = 30_000, 150_000
"""Steps of an episode that an evaluation warns of, and that it gives up at. Atari games have up to 108,000 frames, 27,000 steps."""


@dataclass(frozen=True)
class Evaluation:
    """Returns of complete episodes, in the units of the environment.

    Attributes:
        returns: Sum of rewards of each episode.
        lengths: Steps of each episode.
        seconds: Time it took.
        seed: Seed of the first states.
        deterministic: Whether the most probable actions were taken.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    seconds: float
    seed: int
    deterministic: bool

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes (population formula, as in SB3)."""
        return float(np.std(self.returns))

    def to_dict(self) -> dict[str, Any]:
        """For ``results.json``."""
        return {
            "mean_return": self.mean,
            "std_return": self.std,
            "episodes": len(self.returns),
            "min_return": min(self.returns),
            "max_return": max(self.returns),
            "mean_length": float(np.mean(self.lengths)),
            "deterministic": self.deterministic,
            "seed": self.seed,
            "returns": list(self.returns),
        }


def evaluate(
    model: BaseAlgorithm, venv: VecEnv, episodes: int, seed: int, *, deterministic: bool, check: Callable[[], None] | None = None
) -> Evaluation:
    """Run episodes without learning. The global generators of torch are left as they were.

    Args:
        model: The agent.
        venv: A vectorized environment made for evaluation.
        episodes: How many.
        seed: Seed of the first states and of random actions.
        deterministic: Whether the most probable action is taken.
        check: Called after every step; may raise to end the evaluation.

    Raises:
        EnvironmentFaultError: An episode does not end.
    """
    name = name_of(venv)
    title = "the environment" if name is None else f"environment {name!r}"

    def watch(variables: dict[str, Any], _: dict[str, Any]) -> None:
        # Steps without any end: with life-loss episodes (Atari) those of one life.
        if not variables["done"]:
            _check_length(title, variables["i"], int(variables["current_lengths"][variables["i"]]))
        if check is not None:
            check()

    venv.seed(seed)
    devices = [model.device] if model.device.type == "cuda" else []
    start = time.perf_counter()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        returns, lengths = evaluate_policy(
            player(model, venv),
            venv,
            n_eval_episodes=episodes,
            deterministic=deterministic,
            return_episode_rewards=True,
            callback=watch,
        )
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    seconds = time.perf_counter() - start
    return Evaluation(tuple(float(r) for r in returns), tuple(int(n) for n in lengths), seconds, seed, deterministic)


def _check_length(title: str, copy: int, steps: int) -> None:
    if steps < LONG_EPISODE:
        return
    what = f"an episode of the evaluation, in copy {copy} of {title}, has not ended after {steps:,} steps"
    if steps == LONG_EPISODE:
        warnings.warn(f"{what}; it is given up after {ENDLESS_EPISODE:,}", UserWarning, stacklevel=2)
    if steps >= ENDLESS_EPISODE:
        raise EnvironmentFaultError(
            f"{what}: evaluations need episodes that end. Train with a time limit, such as --environment.kwargs.max_episode_steps 1000, or "
            "wrap the environment in gymnasium.wrappers.TimeLimit"
        )
