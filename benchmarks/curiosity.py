"""Exploration of a sparse MountainCar: ACKTR with a reward for information against ACKTR without.

    python benchmarks/curiosity.py                 # weights 0 and 1, seeds 0-4, 60,000 steps each
    python benchmarks/curiosity.py --probe         # what is rewarded on random actions
    python benchmarks/curiosity.py --seeds 0-9 --steps 100000 --weights 0 0.1 1

MountainCar-v0 with the reward 1 at the goal and 0 elsewhere; 200 steps an episode. A dithering policy hardly ever gets there, so without
another reward there is nothing to learn from. ACKTR has its defaults, 16 environments and rollouts of 20 steps. Weight 0 is ACKTR on the
environment alone (no model is trained). ``--repeat 4`` takes every action four times.

Prints for each weight: the share of a 20 x 20 grid over positions and velocities that was visited, the number of seeds that reached the
goal, the agent's decisions until the first goal (runs that never got there count as the budget), and the share of the last 100 episodes
that ended at the goal; mean and standard error over seeds.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.curiosity import Curiosity, CuriousVecEnv
from natgrad_apps.bayes.study_config import parse_splits
from natgrad_apps.bayes.uci import summary

GRID, ENVIRONMENTS, STEPS, LAST = 20, 16, 60_000, 100
LOW, HIGH = np.array([-1.2, -0.07]), np.array([0.6, 0.07])


class Sparse(gym.RewardWrapper[Any, Any]):
    """Reward 1 where the car is at the goal, else 0."""

    def reward(self, reward: Any) -> float:
        """See the class."""
        del reward
        state: Any = self.unwrapped.state  # type: ignore[attr-defined]
        return float(state[0] >= 0.5)


class Repeat(gym.Wrapper[Any, Any, Any, Any]):
    """Every action is taken several times; rewards add up.

    Args:
        env: The environment.
        times: How often.
    """

    def __init__(self, env: gym.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See the class."""
        total = 0.0
        for _ in range(self._times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


@dataclass
class Found:
    """What a run saw.

    Attributes:
        visited: Cells of the grid.
        first: Environment steps until the first goal; None if there was none.
        ends: Whether each episode ended at the goal.
    """

    visited: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((GRID, GRID), dtype=bool))
    first: int | None = None
    ends: list[bool] = field(default_factory=list)


class Watch(VecEnvWrapper):
    """Records where the environments have been.

    Args:
        venv: MountainCar environments.
        found: Is filled.
    """

    def __init__(self, venv: VecEnv, found: Found) -> None:
        super().__init__(venv)
        self.found, self._steps = found, 0

    def reset(self) -> VecEnvObs:
        """Begin episodes."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Record a step of every environment."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self._steps += len(dones)
        at = cells(observations)
        self.found.visited[at[:, 0], at[:, 1]] = True
        self.found.ends += [bool(r > 0) for r, done in zip(rewards, dones, strict=True) if done]
        if self.found.first is None and bool((rewards > 0).any()):
            self.found.first = self._steps
        return observations, rewards, dones, infos


def run(weight: float, seed: int, steps: int, repeat: int = 1) -> Found:
    """Train an agent.

    Args:
        weight: Of the reward for information; 0 for none.
        seed: Of the agent, the model and the environments.
        steps: Decisions of the agent.
        repeat: Environment steps of a decision.
    """
    found = Found()
    env: VecEnv = DummyVecEnv([lambda: Repeat(Sparse(gym.make("MountainCar-v0")), repeat)] * ENVIRONMENTS)
    env = Watch(VecMonitor(env), found)
    if weight > 0:
        env = CuriousVecEnv(env, Curiosity(weight=weight), seed)
    agent = ACKTR("MlpPolicy", env, seed=seed, device="cpu")
    agent.learn(steps)
    env.close()
    return found


def probe(gain: Literal["expected", "realised"], seed: int, steps: int = 400) -> tuple[float, float]:
    """What is rewarded where nobody learns: sticky random actions, the second half of some steps.

    Args:
        gain: Kind of the reward.
        seed: Of environments, actions and the model.
        steps: Of 16 environments.

    Returns:
        The rank correlation of the gain with the rarity of its cell, and its 99th percentile over its median.
    """
    env = CuriousVecEnv(DummyVecEnv([lambda: gym.make("MountainCar-v0")] * ENVIRONMENTS), Curiosity(gain=gain), seed)
    env.seed(seed)
    generator, seen = np.random.default_rng(seed), np.asarray(env.reset())
    actions = generator.integers(0, 3, ENVIRONMENTS)
    places, gains = [], []
    for _ in range(steps):
        actions = np.where(generator.random(ENVIRONMENTS) < 0.15, generator.integers(0, 3, ENVIRONMENTS), actions)
        places.append(cells(seen) @ [GRID, 1])
        observations, _, _, infos = env.step(actions)
        seen = np.array(observations)
        gains.append([info["information_gain"] for info in infos])
    place, value = np.concatenate(places[steps // 2 :]), np.concatenate(gains[steps // 2 :])
    visits = np.bincount(place, minlength=GRID**2)[place]
    return float(spearmanr(value, -visits)[0]), float(np.quantile(value, 0.99) / np.median(value))


def cells(observations: Any) -> NDArray[np.int64]:
    """Cells of the grid, ``[N, 2]``."""
    return np.asarray(((np.asarray(observations) - LOW) / (HIGH - LOW) * GRID).astype(np.int64).clip(0, GRID - 1))


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print.

    Args:
        argv: Words of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--probe", action="store_true", help="look at the rewards of random actions, and train no agent")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if given.probe:
        for gain in ("expected", "realised"):
            for seed in parse_splits(given.seeds):
                correlation, tail = probe(gain, seed)
                print(
                    f"{gain} gain, seed {seed}: rank correlation with rarity {correlation:.2f}, 99th percentile / median {tail:.3g}",
                    flush=True,
                )
        return
    versions = f"torch {torch.__version__}, stable-baselines3 {stable_baselines3.__version__}, gymnasium {gym.__version__}"
    print(
        f"seeds {given.seeds}, {given.steps} decisions of {given.repeat} steps; {versions}, Python {platform.python_version()}", flush=True
    )
    heads = ("weight", "visited, %", "goal reached", "decisions to the first goal", "last 100 episodes at the goal, %", "CPU s a run")
    print(f"| {' | '.join(heads)} |\n|---|---|---|---|---|---|", flush=True)
    for weight in given.weights:
        start = time.process_time()
        runs = [run(weight, seed, given.steps, given.repeat) for seed in parse_splits(given.seeds)]
        seconds = (time.process_time() - start) / len(runs)
        reached = sum(r.first is not None for r in runs)
        columns = [
            [100 * float(r.visited.mean()) for r in runs],
            [float(given.steps if r.first is None else r.first) for r in runs],
            [100 * sum(r.ends[-LAST:]) / max(len(r.ends[-LAST:]), 1) for r in runs],
        ]
        visited, first, ends = (f"{s['mean']:.4g} ± {s['se']:.2g}" for s in map(summary, columns))
        print(f"| {weight:g} | {visited} | {reached} of {len(runs)} | {first} | {ends} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
