"""ACKTR beside A2C on Atari games: the same wrappers, seeds and evaluation, in one run.

    python benchmarks/acktr_atari.py --out runs/atari                   # Pong, a million steps, one seed: about an hour on 2 cores
    python benchmarks/acktr_atari.py --out runs/atari --games Pong Breakout --seeds 3
    python benchmarks/acktr_atari.py --out runs/full --full             # 10 million steps, 3 seeds
    python benchmarks/acktr_atari.py --out runs/atari --report          # only the tables of what is there

ACKTR runs with the preset of the game, A2C with the settings that the RL Zoo gives for Atari. A step is four frames. Every finished
training is a JSON file in ``--out``. Trainings of ACKTR have run folders in ``--out/runs`` and go on from their last checkpoint if they
are cut off; those of A2C begin anew. Seeds start at 100, so that none was used in choosing the preset.

Prints for each game: the mean return of 10 episodes with the last policy (actions drawn, rewards not clipped, lives not episodes), the same
of the policy that did best in periodic evaluations (5 episodes, every 100,000 steps), the steps at which such an evaluation first reached
the human level of the paper (its Table 1), and the curve of these evaluations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3 import A2C
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, GAMES, preset, train, train_in
from benchmarks._comparisons import COLUMNS, publish, rows, table
from benchmarks._records import Job, Trained, load, run_missing, versions
from natgrad_apps.agents.config import TrainConfig

STEPS = {"Breakout": 2_000_000}
"""Environment steps of the quick form; a million elsewhere."""
PACKAGES = ["torch", "numpy", "stable-baselines3", "gymnasium", "ale-py"]
LEARNERS = ("ACKTR", "A2C")
A2C_COPIES = 16
"""The Zoo's number of environments."""


def a2c(config: TrainConfig, venv: Any) -> OnPolicyAlgorithm:
    """A2C with the Zoo's settings."""
    policy_kwargs = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    return A2C("CnnPolicy", venv, ent_coef=0.01, vf_coef=0.25, policy_kwargs=policy_kwargs, seed=config.seed, device=config.device)


def run(job: Job, out: Path, total_timesteps: int | None, device: Any) -> Trained:
    """One training; ACKTR's in ``out/runs``."""
    config = preset(job.environment)
    settings = replace(config.environment, n_envs=config.environment.n_envs if job.learner == "ACKTR" else A2C_COPIES)
    total = total_timesteps or STEPS.get(job.environment, 1_000_000)
    every = min(100_000, total)
    evaluation = replace(config.evaluation, every_steps=every)
    config = replace(config, environment=settings, seed=job.seed, device=device, total_timesteps=total, evaluation=evaluation)
    if job.learner == "ACKTR":
        return train_in(out / "runs" / Path(job.file).stem, replace(config, checkpoint_every=every, threads=1), GAMES[job.environment])
    return train(config, settings, a2c, GAMES[job.environment])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run what is missing, print the tables and curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished trainings")
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=["Pong"])
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each learner (default 1)")
    parser.add_argument("--total-timesteps", type=int, help="environment steps of each training (default: 1 million, Breakout 2)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--device", default="auto", help="device of the networks (default auto: a GPU where there is one)")
    parser.add_argument("--full", action="store_true", help="all games, 3 seeds, 10 million steps")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/acktr-results.md")
    options = parser.parse_args(arguments)
    games, seeds, total = (list(GAMES), 3, 10_000_000) if options.full else (options.games, options.seeds, options.total_timesteps)
    console = Console(width=140)
    jobs = [Job(name, learner, FIRST_SEED + s) for s in range(seeds) for name in games for learner in options.learners]
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    work = partial(run, out=options.out, total_timesteps=total, device=device)
    run_missing([] if options.report else jobs, work, options.out, options.workers, PACKAGES, console)
    found = load(options.out)
    cells = rows(found, LEARNERS)
    console.print(table("Atari, NoFrameskip-v4", COLUMNS, cells))
    for job, done in found.items():
        points = ", ".join(f"{step / 1e6:.1f}M {score:.1f}" for step, score in done.curve) or "the curve was not kept"
        console.print(f"{job.environment} {job.learner} {job.seed}: {points}")
    console.print(made_with := versions(found.values(), PACKAGES))
    if options.write:
        publish("acktr_atari", "python benchmarks/acktr_atari.py --out docs/records/acktr_atari", COLUMNS, cells, made_with)


if __name__ == "__main__":
    main()
