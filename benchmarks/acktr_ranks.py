"""Sample throughput of ACKTR under two processes beside one: environment steps per second, in one run.

    python benchmarks/acktr_ranks.py                       # Hopper-v5, 1 and 2 ranks, 3 turns of each
    python benchmarks/acktr_ranks.py --environment HalfCheetah-v5 --ranks 1 2 4

Each rank has its own process, one thread, its own environments and rollouts of the preset `mujoco`; gradients and statistics are averaged
over gloo. One rank and several take turns. The ratio of a turn is its steps per second, over all ranks, to those of the
one-rank turns before and after it; the median over turns is reported, and whether the weights of the ranks are equal to the bit. The bar
for two ranks is 1.7, where the machine has two free cores: the load before the run is printed.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed
from torch.multiprocessing.spawn import spawn

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._timing import environment
from natgrad_apps._resources import config_path
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import make_training
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file

BAR = 1.7


def worker(rank: int, size: int, port: int, name: str, updates: int, out: str) -> None:
    """Learn on one rank; keep its steps per second and its weights."""
    torch.set_num_threads(1)
    config = schema.read(TrainConfig, read_file(config_path("agents", "mujoco")))
    config = replace(config, environment=replace(config.environment, id=name), seed=rank, device="cpu")
    venv = make_training(config.environment, config.agent.gamma, 1000 * rank)
    model = build_agent(config, venv)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    model.distribute()
    model.learn(2 * config.batch_size)  # the first updates set things up
    distributed.barrier()
    start = time.perf_counter()
    model.learn(updates * config.batch_size, reset_num_timesteps=False)
    seconds = time.perf_counter() - start
    weights = torch.cat([p.detach().flatten() for p in model.policy.parameters()])
    torch.save({"rate": updates * config.batch_size / seconds, "weights": weights}, Path(out, f"{rank}.pt"))
    distributed.destroy_process_group()
    venv.close()


def turn(size: int, name: str, updates: int) -> tuple[float, bool]:
    """Steps per second over all ranks, and whether their weights are equal to the bit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, args=(size, port, name, updates, folder), nprocs=size)
        found = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(size)]
    equal = all(torch.equal(found[0]["weights"], other["weights"]) for other in found)
    return sum(one["rate"] for one in found), equal


def main(arguments: Sequence[str] | None = None) -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="Hopper-v5", help="MuJoCo environment (default %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2], help="numbers of ranks beside one (default 2)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="timed updates of a turn (default 10)")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    ones = [turn(1, options.environment, options.updates)[0]]
    result: dict[int, list[tuple[float, float, bool]]] = {size: [] for size in options.ranks if size > 1}
    for _ in range(options.turns):
        rates = {size: turn(size, options.environment, options.updates) for size in result}
        ones.append(turn(1, options.environment, options.updates)[0])
        for size, (rate, equal) in rates.items():
            result[size].append((rate, 2.0 * rate / (ones[-2] + ones[-1]), equal))
    table = Table(title=f"{options.environment}: environment steps per second, median of {options.turns} turns", title_justify="left")
    for column in ("ranks", "steps/s", "ratio to one rank", "lowest - highest", "weights equal to the bit"):
        table.add_column(column, justify="right")
    table.add_row("1", f"{statistics.median(ones):.0f}", "1.00", "", "")
    for size, rows in result.items():
        ratios = [ratio for _, ratio, _ in rows]
        same = "yes" if all(row[2] for row in rows) else "NO"
        rate = statistics.median(row[0] for row in rows)
        table.add_row(str(size), f"{rate:.0f}", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} - {max(ratios):.2f}", same)
    console = Console()
    console.print(table)
    console.print(f"bar for 2 ranks: {BAR}; {os.cpu_count()} cores, load before the run {load:.2f}")
    console.print(", ".join(f"{k} {v}" for k, v in environment(["torch", "numpy", "stable-baselines3", "gymnasium", "mujoco"]).items()))


if __name__ == "__main__":
    main()
