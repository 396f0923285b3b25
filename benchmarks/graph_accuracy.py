"""Node classification with the natural gradient and with Adam: paired seeds, both tuned by grids of one size in the same run.

    python benchmarks/graph_accuracy.py                       # Cora, public split, without and with pseudo-labels, and CiteSeer with them
    python benchmarks/graph_accuracy.py --cases cora_public --seeds 3
    python benchmarks/graph_accuracy.py --full                # every case: other choices of the epoch, Cora complete, CS, Computers

Set NATGRAD_DATA to a folder with planetoid/ and gnn-benchmark/, or the data is downloaded. The grid is two learning rates and two weight
decays; its runs have seeds of their own (from 100000), and the point with the best mean validation accuracy is taken. Test accuracy is that
of the running average of the weights (decay 0.95) after the last epoch, for both optimizers; ``_by_loss`` is the epoch of the lowest
validation loss without an average instead, ``_pseudo_averaged`` takes pseudo-labels from the averaged network without dropout, and the
Shchur cases are stopped and chosen by the validation loss. Then 10 timed epochs of each optimizer take turns, for the cost of an epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._timing import environment
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.compare_config import CompareConfig
from natgrad_apps.graphs.comparing import Outcome, Run, contest, paired, run_once, table
from natgrad_apps.graphs.config import DataConfig, ModelConfig, OptimizerConfig, PseudoConfig, TrainConfig
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.runner import schema

KFAC = OptimizerConfig(lr=0.03, damping={"name": "factored_tikhonov", "value": 0.001})
PSEUDO = PseudoConfig(enabled=True, gamma=5.0)
_BASE = CompareConfig(
    dataset="Cora",
    split="public",
    optimizer=KFAC,
    epochs=200,
    select="last",
    average=0.95,
    natural_gradient_lr=[0.03, 0.1],
    adam_lr=[0.01, 0.05],
    weight_decay=[5e-4, 1e-3],
    device="cpu",
    threads=1,
)
_BY_LOSS = replace(_BASE, select="loss", average=0.0)
_DAMPED = replace(KFAC, damping={"name": "factored_tikhonov", "value": 0.01})
_SHCHUR = replace(
    _BASE,
    split="shchur",
    model=ModelConfig(hidden=64),
    data=DataConfig(normalize_features=False),
    optimizer=_DAMPED,
    adam_lr=[0.01, 0.02],
    weight_decay=[1e-3, 1e-2],
    select="loss",
    patience=50,
)
_COMPLETE = replace(
    _BASE,
    split="complete",
    model=ModelConfig(hidden=64),
    optimizer=replace(_DAMPED, refresh={"name": "periodic", "statistics_period": 50, "inverse_period": 50}),
    weight_decay=[1e-4, 3e-4],
    target=0.87,
)
CASES: dict[str, CompareConfig] = {
    "cora_public": _BASE,
    "cora_public_by_loss": _BY_LOSS,
    "cora_public_pseudo": replace(_BASE, pseudo_labels=PSEUDO, weight_decay=[2.5e-4, 5e-4]),
    "cora_public_pseudo_averaged": replace(_BASE, pseudo_labels=replace(PSEUDO, predict="eval"), weight_decay=[2.5e-4, 5e-4]),
    "cora_public_pseudo_by_loss": replace(_BY_LOSS, pseudo_labels=PSEUDO),
    "citeseer_public_by_loss": replace(_BY_LOSS, dataset="CiteSeer", target=0.68),
    "citeseer_public_pseudo_by_loss": replace(_BY_LOSS, dataset="CiteSeer", pseudo_labels=PSEUDO, target=0.68),
    "cora_complete": _COMPLETE,
    "cora_complete_by_loss": replace(_COMPLETE, select="loss", average=0.0, weight_decay=[1e-4, 5e-4]),
    "cs_shchur": replace(_SHCHUR, dataset="CS", target=0.9),
    "computers_shchur": replace(_SHCHUR, dataset="Computers", target=0.8),
}
QUICK = ("cora_public", "cora_public_pseudo_averaged", "citeseer_public_pseudo_by_loss")
EPOCHS = 10


def remembering(file: Path | None) -> Run:
    """`run_once`, which keeps each run's numbers as a line of a file and does not train again what is there.

    Args:
        file: JSON lines of settings and numbers; None remembers nothing.
    """
    if file is None:
        return run_once
    lines = file.read_text().splitlines() if file.is_file() else []
    known = {entry["settings"]: Outcome(**entry["outcome"]) for entry in map(json.loads, lines)}

    def run(config: TrainConfig, data: GraphData) -> Outcome:
        settings = schema.to_yaml(config)
        if settings not in known:
            known[settings] = run_once(config, data)
            with file.open("a") as out:
                out.write(json.dumps({"settings": settings, "outcome": asdict(known[settings])}) + "\n")
        return known[settings]

    return run


def epoch_cost(config: CompareConfig, data: GraphData) -> dict[str, float]:
    """Milliseconds of an epoch (forward, statistics, backward, step) of each optimizer, and their ratio; medians of rounds that take turns.

    Args:
        config: The case.
        data: The graph.
    """
    adam = replace(config.optimizer, name="adam", lr=0.01)
    trainers = {
        name: runs.open_trainer(config.run(optimizer=o), data) for name, o in (("natural_gradient", config.optimizer), ("adam", adam))
    }
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(6):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            for _ in range(EPOCHS):
                trainer.step()
                trainer.progress.epoch += 1
            if turn:  # the first one warms up
                times[name].append(1e3 * (time.perf_counter() - start) / EPOCHS)
    ratios = [a / b for a, b in zip(times["natural_gradient"], times["adam"], strict=True)]
    return {**{name: statistics.median(values) for name, values in times.items()}, "ratio": statistics.median(ratios)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=None)
    parser.add_argument("--seeds", type=int, default=10, help="paired seeds (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds run from this one (default 0)")
    parser.add_argument("--tune-seeds", type=int, default=2, help="seeds of each point of the grid (default 2)")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of a run (default 200)")
    parser.add_argument("--full", action="store_true", help="every case")
    parser.add_argument("--remember", type=Path, help="file that keeps every run, so that an interrupted benchmark goes on where it was")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for case in options.cases or (list(CASES) if options.full else QUICK):
        config = replace(CASES[case], seeds=options.seeds, seed=options.first_seed, tune_seeds=options.tune_seeds, epochs=options.epochs)
        data = runs.open_data(config)
        _, split = runs.split_data(config, data)
        print(f"\n{case}: {data.name}, {split}, {config.epochs} epochs, target {100 * config.target:g}% validation accuracy", flush=True)
        contestants = contest(config, data, lambda text: print("  " + text, flush=True), remembering(options.remember))
        cost = epoch_cost(config, data)
        print(table(contestants))
        print(
            f"cost of an epoch: natural gradient {cost['natural_gradient']:.1f} ms, Adam {cost['adam']:.1f} ms, ratio {cost['ratio']:.2f}"
        )
        found[case] = {
            "split": str(split),
            **{c.name: c.summary() for c in contestants},
            "paired_difference": paired(contestants[0], contestants[1]),
            "epoch_cost": cost,
        }
        if options.out is not None:  # after every case: a long run that is stopped leaves what it has
            options.out.write_text(json.dumps({"environment": environment(["torch", "torch-geometric"]), "cases": found}, indent=1))
    print(", ".join(f"{k} {v}" for k, v in environment(["torch", "torch-geometric", "numpy"]).items()))


if __name__ == "__main__":
    main()
