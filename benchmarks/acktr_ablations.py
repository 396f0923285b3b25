"""What each part of ACKTR is worth on MuJoCo: the preset of an environment with one thing changed, the same seeds and budget for all.

    python benchmarks/acktr_ablations.py --out runs/ablations                         # HalfCheetah-v5, 200,000 steps, 2 seeds
    python benchmarks/acktr_ablations.py --out runs/ablations                         # again: goes on with the trainings that are missing
    python benchmarks/acktr_ablations.py --out runs/small --variants preset diagonal --seeds 1 --total-timesteps 20000
    python benchmarks/acktr_ablations.py --out runs/full --full                       # a million steps, 5 seeds
    python benchmarks/acktr_ablations.py --out runs/ablations --report                # only the table of what is there

Variants: `preset`; the curvatures `ekfac` and `diagonal`; `momentum_inside` the region (0.9) and `momentum_outside` (the rule of the
released code, which clips the gradient and averages what it has clipped); `one_region` for actor and critic together; `no_limit` of the
measured KL; `batch_1024` and `batch_4096` (512 and 128 updates per 2^19 steps instead of 256); `gae` with gamma 0.99 and lambda 0.95;
`adaptive_rate`, the rule of the older continuous code of OpenAI's baselines, which adapts the rate to a measured KL of 0.01 nats;
`critic_adam`, whose critic does 10 steps of Adam in an update instead of the natural-gradient step, as TRPO has it, and `critic_extra`,
which does them after it, as that older code did its 25 by K-FAC.

Prints the mean return of 20 deterministic episodes with the last policy and with the best of ten periodic evaluations, mean and standard
error over seeds (from 100, so that none was used in choosing the preset), and the seconds of a training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, Job, load, preset, run_missing, train
from benchmarks._comparisons import publish, table
from benchmarks._pages import mean_and_error
from benchmarks._timing import environment
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import TrainConfig

ADAM_STEPS, ADAM_BATCH, ADAM_LR = 10, 1024, 1e-3
Build = Callable[[TrainConfig, Any], OnPolicyAlgorithm]


class CriticByAdam(ACKTR):
    """ACKTR with steps of Adam on the value loss after each update; for networks that share nothing."""

    def _update(self) -> None:
        super()._update()
        network = torch.nn.Sequential(self.policy.mlp_extractor.value_net, self.policy.value_net)
        if not hasattr(self, "_adam"):
            self._adam = torch.optim.Adam(network.parameters(), lr=ADAM_LR)
        rollout = self.rollout_buffer
        observations = torch.as_tensor(rollout.observations, dtype=torch.float32)
        returns = torch.as_tensor(rollout.returns, dtype=torch.float32).flatten()
        size = min(ADAM_BATCH, len(returns))
        for _ in range(ADAM_STEPS):
            rows = torch.randperm(len(returns))[:size]
            self._adam.zero_grad()
            (network(observations[rows]).flatten() - returns[rows]).square().mean().backward()
            self._adam.step()


@dataclass(frozen=True)
class Variant:
    """One change of the preset.

    Attributes:
        natural_gradient: Changed options.
        agent: Changed arguments of the agent.
        build: Makes it.
    """

    natural_gradient: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    build: Build = build_agent


_STILL = {"name": "kl_trust_region", "radius": 1e-12}
VARIANTS = {
    "preset": Variant(),
    "ekfac": Variant({"curvature": {"name": "ekfac", "decay": 0.95}}),
    "diagonal": Variant({"curvature": {"name": "diagonal", "decay": 0.95}}),
    "momentum_inside": Variant({"momentum": 0.9}),
    "momentum_outside": Variant(
        {"momentum": 0.9, "step": {"name": "kl_clip", "kl_clip": 0.04}, "critic_step": {"name": "kl_clip", "kl_clip": 0.2}}
    ),
    "one_region": Variant({"critic_step": None}),
    "no_limit": Variant({"backtracking": None}),
    "batch_1024": Variant(agent={"n_steps": 128}),
    "batch_4096": Variant(agent={"n_steps": 512}),
    "gae": Variant(agent={"gamma": 0.99, "gae_lambda": 0.95}),
    "adaptive_rate": Variant({"kl_target": 0.01, "backtracking": None}),
    "critic_adam": Variant({"critic_step": _STILL}, build=partial(build_agent, kind=CriticByAdam)),
    "critic_extra": Variant(build=partial(build_agent, kind=CriticByAdam)),
}


def configured(job: Job, total_timesteps: int) -> TrainConfig:
    """The preset of the environment with the variant's change."""
    config = preset(job.environment)
    variant = VARIANTS[job.learner]
    options = replace(config.agent.natural_gradient, **variant.natural_gradient)
    agent = replace(config.agent, natural_gradient=options, **variant.agent)
    every = max(total_timesteps // 10, 1)
    evaluation = replace(config.evaluation, every_steps=every, episodes=5, final_episodes=20, n_envs=10)
    return replace(config, agent=agent, evaluation=evaluation, seed=job.seed, device="cpu", total_timesteps=total_timesteps)


def run(job: Job, total_timesteps: int) -> Any:
    """Train one variant."""
    config = configured(job, total_timesteps)
    return train(config, config.environment, VARIANTS[job.learner].build, float("inf"))


COLUMNS = ("variant", "seeds", "last policy, by seed", "last policy", "best policy", "seconds")
PACKAGES = ["torch", "numpy", "stable-baselines3", "gymnasium", "mujoco"]


def rows(name: str, out: Path) -> list[list[str]]:
    """Cells of `COLUMNS` of one environment."""
    found = {job: done for job, done in load(out).items() if job.environment == name}
    result = []
    for variant in VARIANTS:
        mine = {job.seed: done for job, done in found.items() if job.learner == variant}
        if mine:
            of = [mine[seed] for seed in sorted(mine)]
            cells = (mean_and_error([getattr(done, part) for done in of], 0) for part in ("final", "best"))
            each = ", ".join(f"{done.final:.0f}" for done in of)
            seconds = statistics.mean(done.seconds for done in of)
            result.append([f"`{variant}`", " ".join(map(str, sorted(mine))), each, *cells, f"{seconds:.0f}"])
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished trainings")
    parser.add_argument("--environment", default="HalfCheetah", help="of Gymnasium's MuJoCo ones, without -v5 (default %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each variant (default 2)")
    parser.add_argument("--total-timesteps", type=int, default=200_704, help="environment steps of each training (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--full", action="store_true", help="a million steps, 5 seeds")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/acktr.md")
    options = parser.parse_args(arguments)
    steps, seeds = (999_424, 5) if options.full else (options.total_timesteps, options.seeds)
    jobs = [Job(options.environment, variant, FIRST_SEED + s) for s in range(seeds) for variant in options.variants]
    console = Console(width=140)
    run_missing([] if options.report else jobs, partial(run, total_timesteps=steps), options.out, options.workers, console)
    cells = rows(options.environment, options.out)
    console.print(table(f"{options.environment}-v5, {steps} environment steps", COLUMNS, cells))
    console.print(", ".join(f"{k} {v}" for k, v in environment(PACKAGES).items()))
    if options.write:
        command = f"python benchmarks/acktr_ablations.py --out runs/ablations --environment {options.environment} --total-timesteps {steps}"
        publish("acktr_ablations", command, COLUMNS, cells, PACKAGES)


if __name__ == "__main__":
    main()
