"""How far the predicted KL of ACKTR's updates falls short of the one that they make, by curvature and by how long statistics are averaged.

    python benchmarks/acktr_prediction.py                                   # Walker2d, 2 seeds, 25 updates each: about 5 minutes
    python benchmarks/acktr_prediction.py --environment Hopper --decays 0.95 0 --curvatures kfac
    python benchmarks/acktr_prediction.py --full                            # 100 updates, 5 seeds, EKFAC too

The preset of the environment, with two layers of `--width` units for policy and critic: small enough for the curvature `exact`, whose
blocks are the whole Fisher of a layer, so that what it mispredicts is due to what lies between layers and to the averages, not to
Kronecker factors.

Prints for each curvature and decay the ratio of the measured KL (policy and critic, exact, over the rollout) to the predicted one: the
median over the updates after the fifth, mean and standard error over seeds (from 100), and the largest of any update.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from stable_baselines3.common.callbacks import BaseCallback

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._agents import FIRST_SEED, preset
from benchmarks._comparisons import publish, table
from benchmarks._pages import mean_and_error
from benchmarks._timing import environment
from benchmarks.acktr_mujoco import PACKAGES, THRESHOLDS
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import make_training

FIRST_UPDATES = 5
"""Not counted: the networks change most in them, and averages are young."""
COLUMNS = ("curvature", "decay", "measured over predicted", "largest")


class _Ratios(BaseCallback):
    """Has every update measured, keeps its ratio, and stops the training after some updates.

    Args:
        updates: How many.
    """

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.values: list[float] = []
        self._updates = updates

    @property
    def _agent(self) -> ACKTR:
        assert isinstance(self.model, ACKTR)
        return self.model

    def _on_rollout_start(self) -> None:
        numbers = self._agent.last_update
        if numbers:  # empty before the first update
            self.values.append((numbers["measured_kl"] + numbers["measured_critic_kl"]) / numbers["predicted_kl"])

    def _on_step(self) -> bool:
        return len(self.values) < self._updates

    def _on_rollout_end(self) -> None:
        self._agent.measure_next_update = True


def configured(name: str, curvature: str, decay: float, width: int, seed: int) -> TrainConfig:
    """The preset of an environment with another curvature and smaller networks."""
    config = preset(name)
    options = replace(config.agent.natural_gradient, curvature={"name": curvature, "decay": decay})
    network = replace(config.agent.network, net_arch={"pi": [width] * 2, "vf": [width] * 2})
    return replace(config, agent=replace(config.agent, natural_gradient=options, network=network), seed=seed, device="cpu")


def ratios(config: TrainConfig, updates: int) -> list[float]:
    """Measured over predicted KL of the updates of one training, the first ones left out."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    venv = make_training(config.environment, config.agent.gamma, config.seed)
    try:
        seen = _Ratios(updates)
        build_agent(config, venv).learn(config.total_timesteps, seen)  # its whole length counts for the schedule of the rate
    finally:
        venv.close()
    return seen.values[FIRST_UPDATES:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", choices=list(THRESHOLDS), default="Walker2d", help="(default %(default)s)")
    parser.add_argument("--curvatures", nargs="+", choices=["kfac", "ekfac", "exact", "diagonal"], default=["kfac", "exact"])
    parser.add_argument("--decays", nargs="+", type=float, default=[0.95, 0.8, 0.0], help="(default 0.95 0.8 0)")
    parser.add_argument("--width", type=int, default=16, help="units of each layer (default %(default)s)")
    parser.add_argument("--updates", type=int, default=25, help=f"of each training, more than {FIRST_UPDATES} (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="(default %(default)s)")
    parser.add_argument("--full", action="store_true", help="100 updates, 5 seeds, EKFAC too")
    parser.add_argument("--write", action="store_true", help="put the table into docs/acktr-results.md")
    options = parser.parse_args(arguments)
    if options.updates <= FIRST_UPDATES:
        parser.error(f"--updates must be more than {FIRST_UPDATES}, got {options.updates}")
    curvatures, updates, seeds = (
        (["kfac", "ekfac", "exact"], 100, 5) if options.full else (options.curvatures, options.updates, options.seeds)
    )
    console = Console(width=140)
    pairs = [(curvature, decay) for curvature in curvatures for decay in options.decays]
    cells = []
    for curvature, decay in track(pairs, "curvatures and decays", console=console):
        of = [ratios(configured(options.environment, curvature, decay, options.width, FIRST_SEED + seed), updates) for seed in range(seeds)]
        middle = mean_and_error([statistics.median(values) for values in of], 1)
        cells.append([f"`{curvature}`", f"{decay:g}", middle, f"{max(map(max, of)):.1f}"])
    console.print(table(f"{options.environment}-v5, {updates} updates, {seeds} seeds, two layers of {options.width}", COLUMNS, cells))
    versions = environment(PACKAGES)
    console.print(made_with := ", ".join(f"{name} {versions[name]}" for name in [*PACKAGES, "commit"]))
    if options.write:
        command = f"python benchmarks/acktr_prediction.py --environment {options.environment} --curvatures {' '.join(curvatures)}"
        command += f" --decays {' '.join(f'{d:g}' for d in options.decays)} --width {options.width} --updates {updates} --seeds {seeds}"
        publish(f"acktr_prediction {options.environment}", command, COLUMNS, cells, made_with)


if __name__ == "__main__":
    main()
