"""What each part of ACKTR is worth: the preset of an environment with one thing changed, the same seeds and budget for all.

    python benchmarks/acktr_ablations.py --out runs/ablations                         # HalfCheetah-v5, 200,000 steps, 2 seeds
    python benchmarks/acktr_ablations.py --out runs/ablations                         # again: goes on with the trainings that are missing
    python benchmarks/acktr_ablations.py --out runs/small --variants preset diagonal --seeds 1 --total-timesteps 20000
    python benchmarks/acktr_ablations.py --out runs/pong --environment Pong --total-timesteps 300000 --seeds 1
    python benchmarks/acktr_ablations.py --out runs/full --full                       # a million steps, 5 seeds
    python benchmarks/acktr_ablations.py --out runs/ablations --report                # only the table of what is there

Variants on MuJoCo: `preset`; the curvatures `ekfac` and `diagonal`; `momentum_inside` the region (0.9) and `momentum_outside` (the rule
of the released code, which averages clipped steps: `KLClip` with a tenth of the rate and a hundredth of the clip); `one_region` for actor
and critic together; `no_limit` of the measured KLs, `no_critic_limit` of the critic's; `batch_1024` and `batch_4096` (512 and 128 updates
per 2^19 steps instead of 256); `gae` with gamma 0.99 and lambda 0.95; `adaptive_rate`, the rule of the older continuous code of OpenAI's
baselines, which adapts the rate to a measured KL of 0.01 nats; `critic_adam`, whose critic does 10 steps of Adam in an update instead of
the natural-gradient step, as TRPO has it, and `critic_extra`, which does them after it, as that older code did its 25 by K-FAC.

Variants on an Atari game: `preset`; `batch_160`, 5 steps of the 32 environments instead of 20; `reduce`, whose statistics take the sum of
the gradients and the mean of the inputs over the locations of a filter; `critic_auto`, whose critic has the variance of its residuals
instead of 1, and `critic_region`, whose critic has a trust region of its own, of the size of the policy's; ten times the `damping`; the
`diagonal` curvature; `no_limit` of the measured KL; `normalized_advantages`; and the `released` code's rule, which has no such limit,
averages steps that were clipped at a `kfac_clip` of 0.001, and weighs the value loss by 0.5.

Prints the mean return with the last policy and with the best of ten periodic evaluations (20 deterministic episodes; 10 with drawn actions
in a game), mean and standard error over seeds (from 100, so that none was used in choosing the preset), and the seconds of a training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, GAMES, preset, train
from benchmarks._comparisons import publish, table
from benchmarks._pages import mean_and_error
from benchmarks._records import Job, Trained, load, run_missing, versions
from benchmarks._variants import variants
from benchmarks.acktr_mujoco import THRESHOLDS
from natgrad_apps.agents.config import TrainConfig


def configured(job: Job, total_timesteps: int) -> TrainConfig:
    """The preset of the environment with the variant's change."""
    config = preset(job.environment)
    variant = variants(job.environment)[job.learner]
    agent = replace(config.agent, natural_gradient=variant.options(config.agent.natural_gradient), **variant.agent)
    every = max(total_timesteps // 10, 1)
    evaluation = replace(config.evaluation, every_steps=every)
    if job.environment not in GAMES:
        evaluation = replace(evaluation, episodes=5, final_episodes=20, n_envs=10)
    return replace(config, agent=agent, evaluation=evaluation, seed=job.seed, device="cpu", total_timesteps=total_timesteps)


def run(job: Job, total_timesteps: int) -> Trained:
    """Train one variant."""
    config = configured(job, total_timesteps)
    return train(config, config.environment, variants(job.environment)[job.learner].build, GAMES.get(job.environment, float("inf")))


COLUMNS = ("variant", "seeds", "last policy, by seed", "last policy", "best policy", "seconds")
PACKAGES = ["torch", "numpy", "stable-baselines3", "gymnasium", "mujoco", "ale-py"]


def rows(name: str, found: Mapping[Job, Trained]) -> list[list[str]]:
    """Cells of `COLUMNS` of one environment."""
    digits = 1 if name in GAMES else 0
    result = []
    for variant in variants(name):
        mine = {job.seed: done for job, done in found.items() if job.learner == variant}
        if mine:
            of = [mine[seed] for seed in sorted(mine)]
            cells = (mean_and_error([getattr(done, part) for done in of], digits) for part in ("final", "best"))
            each = ", ".join(f"{done.final:.{digits}f}" for done in of)
            seconds = statistics.mean(done.seconds for done in of)
            result.append([f"`{variant}`", " ".join(map(str, sorted(mine))), each, *cells, f"{seconds:.0f}"])
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished trainings")
    parser.add_argument("--environment", choices=[*THRESHOLDS, *GAMES], default="HalfCheetah", help="(default %(default)s)")
    parser.add_argument("--variants", nargs="+", help="some of them (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each variant (default 2)")
    parser.add_argument("--total-timesteps", type=int, default=200_704, help="environment steps of each training (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--full", action="store_true", help="a million steps, 5 seeds")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/acktr-results.md")
    options = parser.parse_args(arguments)
    steps, seeds = (999_424, 5) if options.full else (options.total_timesteps, options.seeds)
    known = variants(options.environment)
    chosen = options.variants or list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"no variants {sorted(unknown)} for {options.environment}; legal: {', '.join(known)}")
    jobs = [Job(options.environment, variant, FIRST_SEED + s) for s in range(seeds) for variant in chosen]
    console = Console(width=140)
    run_missing([] if options.report else jobs, partial(run, total_timesteps=steps), options.out, options.workers, PACKAGES, console)
    found = {job: done for job, done in load(options.out).items() if job.environment == options.environment}
    cells = rows(options.environment, found)
    console.print(table(f"{options.environment}, {steps} environment steps", COLUMNS, cells))
    console.print(made_with := versions(found.values(), PACKAGES))
    if options.write:
        command = f"python benchmarks/acktr_ablations.py --out docs/records/acktr_ablations --environment {options.environment}"
        command += f" --total-timesteps {steps}"
        publish(f"acktr_ablations {options.environment}", command, COLUMNS, cells, made_with)


if __name__ == "__main__":
    main()
