"""Steps per second of ACKTR beside SB3's A2C on Pong from pixels: same environments, batch (32 x 20) and network, in one run.

    python benchmarks/a2c_speed.py                  # 3 blocks of 3 updates each, about four minutes on 2 cores
    python benchmarks/a2c_speed.py --full           # 10 blocks of 10 updates

A block is collecting ``updates`` rollouts and learning from each. Every block of ACKTR is compared with the A2C blocks before and after
it, so slow drifts of the machine cancel. Prints the median and range of the ratio of steps per second, and both absolute numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3 import A2C
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._timing import environment
from natgrad_apps._resources import config_path
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import make_training
from natgrad_apps.agents.networks import ACKTRCnnPolicy
from natgrad_apps.agents.training import build_agent
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file


def block(model: OnPolicyAlgorithm, updates: int) -> float:
    """Steps per second of a block."""
    steps = updates * model.n_steps * model.n_envs
    start = time.perf_counter()
    model.learn(steps, log_interval=10**9, reset_num_timesteps=False)
    return steps / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pong", help="preset of natgrad-acktr (default pong)")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of ACKTR (default 3)")
    parser.add_argument("--updates", type=int, default=3, help="updates of a block (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--full", action="store_true", help="10 blocks of 10 updates")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    blocks, updates = (10, 10) if options.full else (options.blocks, options.updates)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(options.threads)
    config = replace(schema.read(TrainConfig, read_file(config_path("agents", options.preset))), device=options.device)
    models: dict[str, Any] = {}
    venvs = [make_training(config.environment, config.agent.gamma, config.seed) for _ in range(2)]
    models["ACKTR"] = build_agent(config, venvs[0])
    kwargs = config.agent.network.policy_kwargs()
    models["A2C"] = A2C(
        ACKTRCnnPolicy, venvs[1], n_steps=config.agent.n_steps, policy_kwargs=kwargs, seed=config.seed, device=options.device
    )
    speeds: dict[str, list[float]] = {"A2C": [], "ACKTR": []}
    with Progress() as progress:
        task = progress.add_task("blocks", total=2 * blocks + 3)
        for model in models.values():  # warm up: first statistics, caches of the allocator
            block(model, 1)
            progress.advance(task)
        for i in range(2 * blocks + 1):
            name = "ACKTR" if i % 2 else "A2C"
            speeds[name].append(block(models[name], updates))
            progress.advance(task)
    pairs = zip(speeds["ACKTR"], speeds["A2C"], speeds["A2C"][1:], strict=False)
    ratios = [mine / statistics.mean((before, after)) for mine, before, after in pairs]
    console = Console()
    result = Table(title=f"{config.environment.id}, {config.environment.n_envs} x {config.agent.n_steps}, {options.device}")
    for column in ("learner", "steps per second (median)", "ratio to A2C (median)", "range"):
        result.add_column(column, justify="left" if column == "learner" else "right")
    result.add_row("A2C", f"{statistics.median(speeds['A2C']):.0f}", "1", "")
    result.add_row(
        "ACKTR", f"{statistics.median(speeds['ACKTR']):.0f}", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} - {max(ratios):.2f}"
    )
    console.print(result)
    versions = environment(["torch", "numpy", "stable-baselines3", "gymnasium", "ale-py"])
    console.print(", ".join(f"{k} {v}" for k, v in versions.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({"environment": versions, "speeds": speeds, "ratios": ratios}, indent=1))
    for venv in venvs:
        venv.close()


if __name__ == "__main__":
    main()
