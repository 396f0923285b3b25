"""What sparse features and sparse sums over neighbours save: memory and time of an epoch on the wide public graphs.

    NATGRAD_DATA=... python benchmarks/sparse_features.py            # CS and Computers, a few minutes
    NATGRAD_DATA=... python benchmarks/sparse_features.py --full     # and Physics, with its dense features

Memory: peak resident set of a fresh process that loads the graph and trains 20 epochs, libraries included. Time: processor time of an
epoch without evaluation (processes that share the machine do not count), mean of epochs that take turns. Two-layer GCN of width 64,
dropout 0.5, Shchur's split. "messages" is torch-geometric's `GCNConv`, "product" ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.nn import GCNConv

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._timing import ROOT, environment
from natgrad_apps.graphs import models, runs
from natgrad_apps.graphs.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from natgrad_apps.graphs.convolutions import FixedGCNConv
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.features import Layout
from natgrad_apps.graphs.trainer import Trainer

SUMS = {"product": FixedGCNConv, "messages": GCNConv}
VARIANTS: tuple[tuple[Layout, str], ...] = (("sparse", "product"), ("dense", "product"), ("sparse", "messages"))
OPTIMIZERS = ("natural_gradient", "adam")
MEMORY_EPOCHS = 20


def config(dataset: str, layout: Layout, optimizer: str) -> TrainConfig:
    """One run."""
    return TrainConfig(
        dataset=dataset,
        split="shchur",
        data=DataConfig(features=layout),
        model=ModelConfig(hidden=64),
        optimizer=OptimizerConfig(name=optimizer),  # type: ignore[arg-type]
        device="cpu",
        threads=1,
    )


@contextmanager
def summing_by(kind: str) -> Iterator[None]:
    """Build networks with one of the two convolutions."""
    with mock.patch.object(models, "FixedGCNConv", SUMS[kind]):
        yield


def peak(dataset: str, layout: Layout) -> float:
    """GiB of a fresh process; see the module."""
    command = [sys.executable, __file__, "--child", dataset, layout]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(dataset: str, layout: Layout) -> None:
    """Train here and print the peak."""
    trainer = runs.open_trainer(config(dataset, layout, "natural_gradient"))
    for _ in range(MEMORY_EPOCHS):
        trainer.run_epoch()
    # Not ru_maxrss, which begins at the size of the process that started this one.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) / 2**20)


def times(dataset: str, epochs: int) -> dict[tuple[str, str, str], float]:
    """Milliseconds an epoch, by layout, sum and optimizer."""
    loaded: dict[Layout, GraphData] = {layout: runs.open_data(config(dataset, layout, "adam")) for layout in ("sparse", "dense")}
    trainers: dict[tuple[str, str, str], Trainer] = {}
    for layout, kind in VARIANTS:
        for optimizer in OPTIMIZERS:
            with summing_by(kind):
                trainers[layout, kind, optimizer] = runs.open_trainer(config(dataset, layout, optimizer), loaded[layout])
    found: dict[tuple[str, str, str], list[float]] = {key: [] for key in trainers}
    for _ in range(epochs + 1):
        for key, trainer in trainers.items():
            start = time.process_time()
            trainer.step()
            found[key].append(1e3 * (time.process_time() - start))
            trainer.progress.epoch += 1
    # The first epoch builds matrices. Means, because statistics and inverses are due in one epoch of ten.
    return {key: statistics.fmean(values[1:]) for key, values in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="*", default=["CS", "Computers"])
    parser.add_argument("--full", action="store_true", help="Physics too")
    parser.add_argument("--epochs", type=int, default=10, help="timed epochs, a multiple of 10")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child:
        child(*given.child)
        return
    for dataset in [*given.datasets, *(["Physics"] if given.full else [])]:
        table = Table("graph", "features", "sum", "peak GiB", "natural gradient ms", "Adam ms", "ratio")
        memory = {layout: peak(dataset, layout) for layout in ("sparse", "dense")}
        timed = times(dataset, given.epochs)
        for layout, kind in VARIANTS:
            ours, adam = (timed[layout, kind, optimizer] for optimizer in OPTIMIZERS)
            held = f"{memory[layout]:.2f}" if kind == "product" else ""
            table.add_row(dataset, layout, kind, held, f"{ours:.0f}", f"{adam:.0f}", f"{ours / adam:.2f}")
        Console(width=110).print(table)
    versions = environment(["torch", "torch-geometric", "numpy", "scipy"])
    print(", ".join(f"{name} {value}" for name, value in versions.items()), f"threads 1, torch threads {torch.get_num_threads()}")


if __name__ == "__main__":
    main()
