"""How fast ACKTR learns beside SB3's A2C and PPO: several seeds of each, the same environments, budget and evaluation, in one run.

    python benchmarks/acktr_learning.py                      # CartPole-v1 and InvertedPendulum-v5, 5 seeds
    python benchmarks/acktr_learning.py --presets acrobot --seeds 3
    python benchmarks/acktr_learning.py --full               # 10 seeds, all three

ACKTR runs with the preset that `natgrad-acktr train --config PRESET` uses. A2C and PPO run with the settings that the RL Zoo tuned
for the environment (for a much larger budget in A2C's case); they get the budget of the preset. Seeds start at 100, so that no seed
here was used in choosing the presets.

Prints, for each learner: the mean return of 100 deterministic episodes with the last policy (mean and standard error over seeds) and
with the one that did best in the periodic evaluations (10 episodes, other first states), how many seeds reach the target with each, and
the environment steps after which a periodic evaluation first reached it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, train
from benchmarks._timing import environment
from natgrad_apps._resources import config_path
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import LinearSchedule, TrainConfig
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file

TARGETS = {"cartpole": 475.0, "inverted_pendulum": 1000.0, "acrobot": -100.0}
"""Mean return over 100 episodes that counts as solved."""


@dataclass(frozen=True)
class Learner:
    """A learner: environments, normalization, and how to build it."""

    name: str
    n_envs: int | None
    normalize: bool | None
    build: Callable[[TrainConfig, Any], OnPolicyAlgorithm]


@dataclass(frozen=True)
class Outcome:
    """One training."""

    preset: str
    learner: str
    seed: int
    final: float
    best: float
    first_hit: int | None
    steps: int
    seconds: float


def _a2c(config: TrainConfig, venv: Any) -> OnPolicyAlgorithm:
    """RL Zoo: SB3's defaults, without an entropy bonus; 8 environments for classic control."""
    return A2C("MlpPolicy", venv, ent_coef=0.0, seed=config.seed, device="cpu")


def _ppo(config: TrainConfig, venv: Any) -> OnPolicyAlgorithm:
    """RL Zoo: tuned for CartPole-v1; its defaults for the others."""
    common: dict[str, Any] = {"seed": config.seed, "device": "cpu"}
    if config.environment.id.startswith("CartPole"):
        common |= {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}
        common |= {"learning_rate": LinearSchedule(1e-3), "clip_range": LinearSchedule(0.2)}
    elif config.environment.id.startswith("Acrobot"):
        common |= {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0}
    return PPO("MlpPolicy", venv, **common)


LEARNERS = {
    "ACKTR": Learner("ACKTR", None, None, build_agent),
    "A2C": Learner("A2C", 8, None, _a2c),
    "PPO": Learner("PPO", 8, None, _ppo),
}


def run(preset: str, learner: str, seed: int) -> Outcome:
    """Train one learner with one seed."""
    chosen = LEARNERS[learner]
    config = replace(schema.read(TrainConfig, read_file(config_path("agents", preset))), seed=seed, device="cpu")
    settings = config.environment if chosen.n_envs is None else replace(config.environment, n_envs=chosen.n_envs)
    done = train(config, settings, chosen.build, TARGETS[preset])
    return Outcome(preset, learner, seed, done.final, done.best, done.first_hit, done.steps, done.seconds)


def table(preset: str, outcomes: Sequence[Outcome]) -> Table:
    """Results of one environment."""
    steps = max(o.steps for o in outcomes)
    result = Table(title=f"{preset}: {steps} environment steps, target {TARGETS[preset]:g}", title_justify="left")
    for column in (
        "learner",
        "last policy",
        "seeds at target",
        "best policy",
        "seeds at target",
        "steps to target (median)",
        "seconds a seed",
    ):
        result.add_column(column, justify="left" if column == "learner" else "right")
    for learner in LEARNERS:
        mine = [o for o in outcomes if o.learner == learner]
        if not mine:
            continue
        cells = []
        for scores in ([o.final for o in mine], [o.best for o in mine]):
            error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else float("nan")
            cells += [f"{statistics.mean(scores):.1f} +- {error:.1f}", f"{sum(f >= TARGETS[preset] for f in scores)} of {len(scores)}"]
        hits = sorted(o.first_hit if o.first_hit is not None else math.inf for o in mine)
        middle = hits[len(hits) // 2]
        result.add_row(
            learner,
            *cells,
            f"{middle:.0f}" if math.isfinite(middle) else "not reached",
            f"{statistics.mean(o.seconds for o in mine):.0f}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=sorted(TARGETS), default=["cartpole", "inverted_pendulum"])
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each learner (default 5)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seeds run from this one (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--full", action="store_true", help="10 seeds of every preset")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    presets, seeds = (sorted(TARGETS), 10) if options.full else (options.presets, options.seeds)
    jobs = [(p, name, options.first_seed + s) for p in presets for name in options.learners for s in range(seeds)]
    outcomes: list[Outcome] = []
    console = Console()
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, *job) for job in jobs]
        for future in track(concurrent.futures.as_completed(futures), "trainings", total=len(jobs), console=console):
            outcomes.append(done := future.result())
            console.print(
                f"{done.preset} {done.learner} seed {done.seed}: last {done.final:.1f}, best {done.best:.1f}, {done.seconds:.0f} s"
            )
    for preset in presets:
        console.print(table(preset, [o for o in outcomes if o.preset == preset]))
    versions = environment(["torch", "numpy", "stable-baselines3", "gymnasium", "mujoco"])
    console.print(", ".join(f"{k} {v}" for k, v in versions.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({"environment": versions, "outcomes": [asdict(o) for o in outcomes]}, indent=1))


if __name__ == "__main__":
    main()
