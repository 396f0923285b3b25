"""What ACKTR learns and what a deterministic evaluation plays: the same policies with their noise, with a part of it, and without.

    python benchmarks/acktr_noise.py                                          # Hopper, 2 seeds, a million steps: about 15 minutes
    python benchmarks/acktr_noise.py --environment Walker2d --entropy 0 -0.02 # with and without a penalty of the entropy
    python benchmarks/acktr_noise.py --full                                   # 5 seeds

A Gaussian policy learns with the noise that it has; evaluations play its mean actions. The preset of the environment is trained, and at
three moments the last weights and their running mean (`iterate_averaging` 0.05; learning is the same with and without it) play with their
standard deviations multiplied by 0, 1/4, 1/2 and 1, 20 episodes each.

Prints the mean return by seed (from 100), mean and standard error, how many episodes ended before the time limit, and the reward of a step.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from stable_baselines3.common.callbacks import BaseCallback

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, preset
from benchmarks._comparisons import publish, table
from benchmarks._pages import mean_and_error
from benchmarks._records import end_with_parent
from benchmarks._timing import environment
from benchmarks.acktr_mujoco import PACKAGES
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import find_normalization, make_evaluation, make_training
from natgrad_apps.agents.evaluation import PERIODIC_SEED, evaluate

FACTORS = (0.0, 0.25, 0.5, 1.0)
MOMENTS = (0.4, 0.8, 1.0)
EPISODES, LIMIT = 20, 1000
COLUMNS = ("entropy", "steps", "who plays", "noise", "return, by seed", "return", f"ended early, of {EPISODES}", "reward of a step")


@dataclass(frozen=True)
class Played:
    """Episodes with one policy and a part of its noise.

    Attributes:
        moment: Share of the training that was done.
        averaged: Whether the mean of iterates played, and not the last one.
        factor: Of the standard deviations.
        mean: Mean return.
        early: Episodes that ended before the time limit.
        per_step: Mean reward of a step.
    """

    moment: float
    averaged: bool
    factor: float
    mean: float
    early: int
    per_step: float


class _Plays(BaseCallback):
    """Plays at the moments.

    Args:
        total: Steps of the training.
        test: Environment of evaluations.
        seed: Of their first states.
    """

    def __init__(self, total: int, test: Any, seed: int) -> None:
        super().__init__()
        self._left, self._total, self._test, self._seed = list(MOMENTS), total, test, seed
        self.played: list[Played] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._left and self.num_timesteps >= self._left[0] * self._total:
            self.play()

    def _on_training_end(self) -> None:
        self.play()

    def play(self) -> None:
        """The last weights, then their mean, with each part of the noise."""
        agent, moment = self.model, self._left.pop(0)
        assert isinstance(agent, ACKTR)
        mean = agent.averaged_policy
        for averaged in (False, True):
            agent.averaged_policy = mean if averaged else None
            deviation = agent.playing_policy.log_std
            kept = deviation.detach().clone()
            for factor in FACTORS:
                with torch.no_grad():
                    deviation.copy_(kept + (math.log(factor) if factor else 0.0))
                found = evaluate(agent, self._test, EPISODES, self._seed, deterministic=factor == 0)
                early = sum(length < LIMIT for length in found.lengths)
                per_step = sum(found.returns) / sum(found.lengths)
                self.played.append(Played(moment, averaged, factor, found.mean, early, per_step))
            with torch.no_grad():
                deviation.copy_(kept)
        agent.averaged_policy = mean


def configured(name: str, entropy: float | None, seed: int, total_timesteps: int | None) -> TrainConfig:
    """The preset with a mean of iterates, which learning does not know of, and another weight of the entropy where one is given."""
    config = preset(name)
    options = replace(config.agent.natural_gradient, iterate_averaging=0.05)
    agent = replace(config.agent, natural_gradient=options, ent_coef=config.agent.ent_coef if entropy is None else entropy)
    return replace(config, agent=agent, seed=seed, device="cpu", total_timesteps=total_timesteps or config.total_timesteps)


def play(config: TrainConfig) -> list[Played]:
    """Train with one thread, and play."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    with ExitStack() as stack:
        venv = make_training(config.environment, config.agent.gamma, config.seed)
        stack.callback(venv.close)
        test = make_evaluation(config.environment, 10, config.seed + PERIODIC_SEED, find_normalization(venv))
        stack.callback(test.close)
        plays = _Plays(config.total_timesteps, test, config.seed + PERIODIC_SEED)
        build_agent(config, venv).learn(config.total_timesteps, plays)
    return plays.played


def rows(config: TrainConfig, of: Sequence[Sequence[Played]]) -> list[list[str]]:
    """Cells of `COLUMNS`.

    Args:
        config: Of the trainings, but for the seed.
        of: What each seed played, in the same order.
    """
    cells = []
    for each in zip(*of, strict=True):
        first, returns = each[0], [one.mean for one in each]
        steps, who = f"{first.moment * config.total_timesteps:,.0f}", "mean" if first.averaged else "last"
        early, per_step = ", ".join(str(one.early) for one in each), mean_and_error([one.per_step for one in each], 2)
        every = ", ".join(f"{value:.0f}" for value in returns)
        cells.append([f"{config.agent.ent_coef:g}", steps, who, f"{first.factor:g}", every, mean_and_error(returns, 0), early, per_step])
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--environment",
        choices=["Hopper", "Walker2d", "Ant", "InvertedDoublePendulum"],
        default="Hopper",
        help="one whose episodes can end early (default %(default)s)",
    )
    parser.add_argument("--entropy", nargs="+", type=float, help="weights of the entropy (default: that of the preset)")
    parser.add_argument("--seeds", type=int, default=2, help="(default %(default)s)")
    parser.add_argument("--total-timesteps", type=int, help="environment steps of each training (default: those of the preset)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each (default %(default)s)")
    parser.add_argument("--full", action="store_true", help="5 seeds")
    parser.add_argument("--write", action="store_true", help="put the table into docs/acktr-results.md")
    options = parser.parse_args(arguments)
    seeds = range(FIRST_SEED, FIRST_SEED + (5 if options.full else options.seeds))
    weights = options.entropy or [None]
    configs = [[configured(options.environment, weight, seed, options.total_timesteps) for seed in seeds] for weight in weights]
    console = Console(width=140)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context, initializer=end_with_parent) as pool:
        futures = [[pool.submit(play, config) for config in of] for of in configs]
        waiting = concurrent.futures.as_completed([future for of in futures for future in of])
        for _ in track(waiting, "trainings", total=len(weights) * len(seeds), console=console):
            pass
        cells = [row for of, group in zip(configs, futures, strict=True) for row in rows(of[0], [future.result() for future in group])]
    console.print(table(f"{options.environment}, seeds {', '.join(map(str, seeds))}", COLUMNS, cells))
    versions = environment(PACKAGES)
    console.print(made_with := ", ".join(f"{name} {versions[name]}" for name in [*PACKAGES, "commit"]))
    if options.write:
        given = "" if options.entropy is None else f" --entropy {' '.join(map(str, options.entropy))}"
        command = f"python benchmarks/acktr_noise.py --environment {options.environment}{given} --seeds {len(seeds)}"
        if options.total_timesteps:
            command += f" --total-timesteps {options.total_timesteps}"
        publish(f"acktr_noise {options.environment}", command, COLUMNS, cells, made_with)


if __name__ == "__main__":
    main()
