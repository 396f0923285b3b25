"""Policies with a memory on CartPole-v1 whose observations have no velocities, several seeds each, the same budget and evaluation.

    python benchmarks/memory_policies.py                       # 3 seeds of every learner
    python benchmarks/memory_policies.py --learners lstm mlp --seeds 5

Learners: `lstm` is ACKTR with MlpLstmPolicy, the settings of the preset `cartpole` and backtracking to a measured KL of 0.004; `unchecked`
has no backtracking, `diagonal` the diagonal Fisher. `mlp` is the preset without a memory, `stacked` the same on the last four observations,
`recurrent_ppo` sb3-contrib's RecurrentPPO with the settings that the RL Zoo tuned for this task.

Prints, for each learner: the mean return of 100 deterministic episodes with the last policy (mean and standard error over seeds), of the
policy that did best in the periodic evaluations, and how many seeds reach 475 with each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TransformObservation
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, train
from benchmarks._timing import environment
from natgrad_apps._resources import config_path
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import EnvironmentConfig, LinearSchedule, NetworkConfig, TrainConfig
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file

TARGET = 475.0
"""Mean return over 100 episodes that counts as solved."""
CHECK = {"kl_limit": 0.004}
"""Steps of an LSTM are correlated, which the predicted KL leaves out."""
BLIND = "CartPoleWithoutVelocities-v0"


def blind(**kwargs: Any) -> gym.Env[Any, Any]:
    """CartPole that shows the positions of cart and pole only."""
    env = CartPoleEnv(**kwargs)
    bounds = env.observation_space
    assert isinstance(bounds, gym.spaces.Box)
    space = gym.spaces.Box(bounds.low[::2], bounds.high[::2], dtype=np.float32)
    return TransformObservation(env, lambda observation: observation[::2], space)


gym.register(BLIND, blind, max_episode_steps=500)


def _ppo(config: TrainConfig, venv: Any) -> OnPolicyAlgorithm:
    try:
        from sb3_contrib import RecurrentPPO  # noqa: PLC0415
    except ImportError as error:
        raise SystemExit("recurrent_ppo needs sb3-contrib: pip install sb3-contrib, or leave it out of --learners") from error
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}
    settings |= {"learning_rate": LinearSchedule(1e-3), "clip_range": LinearSchedule(0.2)}
    return RecurrentPPO("MlpLstmPolicy", venv, seed=config.seed, device="cpu", **settings)


@dataclass(frozen=True)
class Learner:
    """How a learner differs from the preset, and how it is built."""

    policy: str = "MlpPolicy"
    frame_stack: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[TrainConfig, Any], OnPolicyAlgorithm] = build_agent


LEARNERS = {
    "lstm": Learner("MlpLstmPolicy", changes={"backtracking": CHECK}),
    "unchecked": Learner("MlpLstmPolicy"),
    "diagonal": Learner("MlpLstmPolicy", changes={"backtracking": CHECK, "curvature": "diagonal"}),
    "mlp": Learner(),
    "stacked": Learner(frame_stack=4),
    "recurrent_ppo": Learner(build=_ppo),
}


@dataclass(frozen=True)
class Outcome:
    """One training."""

    learner: str
    seed: int
    final: float
    best: float
    first_hit: int | None
    steps: int
    seconds: float


def configured(learner: Learner, seed: int, steps: int) -> TrainConfig:
    """The preset `cartpole` with the learner's changes."""
    config = schema.read(TrainConfig, read_file(config_path("agents", "cartpole")))
    options = replace(config.agent.natural_gradient, **learner.changes)
    network = NetworkConfig(lstm_hidden_size=64) if learner.policy == "MlpLstmPolicy" else config.agent.network
    agent = replace(config.agent, policy=learner.policy, network=network, natural_gradient=options)  # type: ignore[arg-type]
    settings = EnvironmentConfig(BLIND, n_envs=8, frame_stack=learner.frame_stack)
    evaluation = replace(config.evaluation, n_envs=20)
    return replace(config, environment=settings, agent=agent, evaluation=evaluation, total_timesteps=steps, seed=seed, device="cpu")


def run(name: str, seed: int, steps: int) -> Outcome:
    """Train one learner with one seed."""
    config = configured(LEARNERS[name], seed, steps)
    done = train(config, config.environment, LEARNERS[name].build, TARGET)
    return Outcome(name, seed, done.final, done.best, done.first_hit, done.steps, done.seconds)


def table(outcomes: Sequence[Outcome]) -> Table:
    """Results of all learners."""
    result = Table(title=f"CartPole without velocities: {max(o.steps for o in outcomes)} environment steps", title_justify="left")
    for column in ("learner", "seeds", "last policy", "at 475", "best policy", "at 475", "steps to 475 (median)", "seconds a seed"):
        result.add_column(column, justify="left" if column == "learner" else "right")
    for learner in LEARNERS:
        mine = [o for o in outcomes if o.learner == learner]
        if not mine:
            continue
        cells = []
        for scores in ([o.final for o in mine], [o.best for o in mine]):
            error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else float("nan")
            cells += [f"{statistics.mean(scores):.1f} +- {error:.1f}", f"{sum(score >= TARGET for score in scores)} of {len(scores)}"]
        middle = sorted(o.first_hit if o.first_hit is not None else math.inf for o in mine)[len(mine) // 2]
        hit = f"{middle:.0f}" if math.isfinite(middle) else "not reached"
        result.add_row(learner, str(len(mine)), *cells, hit, f"{statistics.mean(o.seconds for o in mine):.0f}")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each learner (default 3)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seeds run from this one (default %(default)s)")
    parser.add_argument("--steps", type=int, default=80_000, help="environment steps (default %(default)s; the RL Zoo takes 100,000)")
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side, one thread each (default 1)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    jobs = [(name, options.first_seed + s, options.steps) for s in range(options.seeds) for name in options.learners]
    outcomes: list[Outcome] = []
    console = Console(width=140)
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *job) for job in jobs]):
            outcomes.append(done := future.result())
            console.print(f"{done.learner} seed {done.seed}: last {done.final:.1f}, best {done.best:.1f}, {done.seconds:.0f} s")
    console.print(table(outcomes))
    versions = environment(["torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium"])
    console.print(", ".join(f"{k} {v}" for k, v in versions.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({"environment": versions, "outcomes": [asdict(o) for o in outcomes]}, indent=1))


if __name__ == "__main__":
    main()
