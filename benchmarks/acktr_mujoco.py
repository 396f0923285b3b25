"""ACKTR beside A2C, PPO and TRPO on MuJoCo after a million steps: the same environments, seeds and evaluation, in one run.

    python benchmarks/acktr_mujoco.py --out runs/mujoco              # 5 environments, 3 seeds, ACKTR, A2C and PPO: hours on 2 cores
    python benchmarks/acktr_mujoco.py --out runs/mujoco              # again: goes on with the trainings that are missing
    python benchmarks/acktr_mujoco.py --out runs/small --environments Hopper --seeds 1 --learners ACKTR A2C
    python benchmarks/acktr_mujoco.py --out runs/full --full         # 8 environments, 5 seeds, TRPO too
    python benchmarks/acktr_mujoco.py --out runs/mujoco --report     # only the tables of what is there

ACKTR runs with the preset of the environment, or `mujoco` where it has none. A2C, PPO and TRPO (sb3-contrib) run with the settings that
the RL Zoo gives for the environment: tuned ones for PPO and TRPO, SB3's defaults with normalization for A2C and where there are none. Every
finished training is a JSON file in ``--out``. Seeds start at 100, so that none was used in choosing the presets.

Prints for each environment: the interquartile mean over seeds of the mean return of 50 deterministic episodes with the last policy, mean
and standard error, the environment steps at which a periodic evaluation (10 episodes, every 50,000 steps) first reached the threshold of
the ACKTR paper (its Table 2), and the seconds of a training. Trainings beside others on a busy machine take longer: compare
seconds only within one run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, preset, train
from benchmarks._comparisons import COLUMNS, publish, rows, table
from benchmarks._records import Job, Trained, load, run_missing, versions
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import ACTIVATIONS, TrainConfig

THRESHOLDS = {
    "InvertedDoublePendulum": 9100.0,
    "Reacher": -7.0,
    "Hopper": 2000.0,
    "HalfCheetah": 4700.0,
    "Walker2d": 3000.0,
    "InvertedPendulum": 950.0,
    "Swimmer": 90.0,
    "Ant": 3500.0,
}
QUICK = ("InvertedDoublePendulum", "Reacher", "Hopper", "HalfCheetah", "Walker2d")
_WIDE = {"log_std_init": -2, "ortho_init": False, "activation_fn": ACTIVATIONS["relu"], "net_arch": {"pi": [256, 256], "vf": [256, 256]}}
_KEYS = ("batch_size", "n_steps", "gamma", "learning_rate", "ent_coef", "clip_range", "n_epochs", "gae_lambda", "max_grad_norm", "vf_coef")
_PPO_TUNED: dict[str, tuple[float, ...]] = {
    "HalfCheetah": (64, 512, 0.98, 2.0633e-05, 0.000401762, 0.1, 20, 0.92, 0.8, 0.58096),
    "Hopper": (32, 512, 0.999, 9.80828e-05, 0.00229519, 0.2, 5, 0.99, 0.7, 0.835671),
    "InvertedDoublePendulum": (512, 128, 0.98, 0.000155454, 1.05057e-06, 0.4, 10, 0.8, 0.5, 0.695929),
    "InvertedPendulum": (64, 32, 0.999, 0.000222425, 1.37976e-07, 0.4, 5, 0.9, 0.3, 0.19816),
    "Reacher": (32, 512, 0.9, 0.000104019, 7.52585e-08, 0.3, 5, 1.0, 0.9, 0.950368),
    "Walker2d": (32, 512, 0.99, 5.05041e-05, 0.000585045, 0.1, 20, 0.95, 1.0, 0.871923),
}
_FUSED = {"eps": 1e-5, "fused": True}
"""SB3's Adam in torch's fused form: the same steps but for rounding, in less time."""
_TRPO = {"batch_size": 128, "n_steps": 1024, "cg_max_steps": 25, "cg_damping": 0.1, "n_critic_updates": 20, "learning_rate": 1e-3}


def _build(job: Job, config: TrainConfig, venv: Any) -> OnPolicyAlgorithm:
    common: dict[str, Any] = {"seed": config.seed, "device": "cpu"}
    if job.environment == "Swimmer":
        common["gamma"] = 0.9999
    if job.learner == "ACKTR":
        return build_agent(config, venv)
    if job.learner == "A2C":
        return A2C("MlpPolicy", venv, **common)
    if job.learner == "PPO":
        settings = dict(zip(_KEYS, _PPO_TUNED.get(job.environment, ()), strict=False))
        wide = _WIDE if job.environment in {"HalfCheetah", "Hopper"} else {}
        return PPO("MlpPolicy", venv, policy_kwargs={**wide, "optimizer_kwargs": _FUSED}, **{**common, **settings})
    from sb3_contrib import TRPO  # noqa: PLC0415  (only where asked for)

    target = {"target_kl": 0.04} if job.environment == "HalfCheetah" else {}
    return TRPO("MlpPolicy", venv, **{**common, **_TRPO, **target})


_COPIES = {"A2C": 1, "PPO": 1, "TRPO": 2}
"""The Zoo's numbers of environments."""


def run(job: Job, total_timesteps: int | None) -> Trained:
    """One training."""
    config = preset(job.environment)
    settings = replace(config.environment, n_envs=_COPIES.get(job.learner, config.environment.n_envs))
    config = replace(config, seed=job.seed, device="cpu", total_timesteps=total_timesteps or config.total_timesteps)
    return train(config, settings, lambda c, venv: _build(job, c, venv), THRESHOLDS[job.environment])


PACKAGES = ["torch", "numpy", "stable-baselines3", "gymnasium", "mujoco"]
LEARNERS = ("ACKTR", "A2C", "PPO", "TRPO")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished trainings")
    parser.add_argument("--environments", nargs="+", choices=list(THRESHOLDS), default=list(QUICK))
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=["ACKTR", "A2C", "PPO"])
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each learner (default 3)")
    parser.add_argument("--total-timesteps", type=int, help="environment steps of each training (default: those of the preset)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--full", action="store_true", help="all environments and learners, 5 seeds")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/acktr-results.md")
    options = parser.parse_args(arguments)
    names = list(THRESHOLDS) if options.full else options.environments
    learners, seeds = (LEARNERS, 5) if options.full else (options.learners, options.seeds)
    console = Console(width=140)
    # Seed by seed, so that what is cut off leaves whole comparisons.
    jobs = [Job(name, learner, FIRST_SEED + s) for s in range(seeds) for name in names for learner in learners]
    jobs = [] if options.report else jobs
    run_missing(jobs, partial(run, total_timesteps=options.total_timesteps), options.out, options.workers, PACKAGES, console)
    found = load(options.out)
    found = {job: found[job] for name in THRESHOLDS for job in found if job.environment == name}
    cells = rows(found, LEARNERS)
    console.print(table(f"MuJoCo v5, {max(done.steps for done in found.values())} environment steps", COLUMNS, cells))
    console.print("thresholds: " + ", ".join(f"{name} {THRESHOLDS[name]:g}" for name in dict.fromkeys(job.environment for job in found)))
    console.print(made_with := versions(found.values(), PACKAGES))
    if options.write:
        publish("acktr_mujoco", "python benchmarks/acktr_mujoco.py --out docs/records/acktr_mujoco", COLUMNS, cells, made_with)


if __name__ == "__main__":
    main()
