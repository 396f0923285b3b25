"""Link prediction and graph classification: the natural gradient beside Adam, both tuned by grids of one size in the same run.

    NATGRAD_DATA=... python benchmarks/graph_tasks.py                    # 3 seeds, about ten minutes
    NATGRAD_DATA=... python benchmarks/graph_tasks.py --seeds 10

Links: GCN of width 64 and codes of size 32 on Cora (features 0 and 1), dot products, 30 epochs of one step; 85 % of the links are trained
on, 5 % choose the epoch, 10 % are tested. Graphs: GIN of three layers and width 32 on the embedded motifs, sum pooling, 30 epochs of four
steps. Seeds: of the split, the weights, pairs without a link and sampled labels; those of the grid (one each) are others than those
reported. A point of a grid is chosen by its validation score, AUC or accuracy, and a tie by the validation loss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._timing import environment
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.config import DataConfig, GraphsConfig, LinksConfig, ModelConfig, OptimizerConfig, SamplingConfig, TrainConfig
from natgrad_apps.graphs.learning import Learner

TUNE_SEED = 100_000
LINKS = TrainConfig(
    task="links",
    dataset="Cora",
    data=DataConfig(normalize_features=False),
    model=ModelConfig(hidden=64, dropout=0.0),
    links=LinksConfig(width=32),
    epochs=30,
    select="accuracy",
    target=0.9,
    device="cpu",
    threads=1,
)
GRAPHS = TrainConfig(
    task="graphs",
    dataset="motifs",
    model=ModelConfig(name="gin", hidden=32, layers=3, dropout=0.0),
    graphs=GraphsConfig(pooling="sum"),
    sampling=SamplingConfig(batch_size=60),
    epochs=30,
    select="accuracy",
    target=0.95,
    device="cpu",
    threads=1,
)


def ours(damping: float, kl_clip: float, period: int) -> OptimizerConfig:
    """K-FAC with some damping."""
    return OptimizerConfig(
        curvature="kfac",
        damping={"name": "factored_tikhonov", "value": damping},
        step={"name": "kl_clip", "kl_clip": kl_clip},
        refresh={"name": "periodic", "statistics_period": period, "inverse_period": 2 * period},
    )


CASES = {"links": (LINKS, ours(0.01, 0.001, 1)), "graphs": (GRAPHS, ours(0.1, 0.001, 1))}
RATES = {"natural gradient": (0.02, 0.05), "Adam": (0.003, 0.01)}


def finished(config: TrainConfig) -> Learner:
    """A run with the weights of its chosen epoch."""
    trainer = runs.open_learner(config)
    while not trainer.done:
        trainer.advance()
    trainer.load_best()
    return trainer


def tuned(config: TrainConfig, optimizer: OptimizerConfig, rates: Sequence[float]) -> OptimizerConfig:
    """The optimizer with the rate of the best validation score."""
    found = []
    for rate in rates:
        own = replace(optimizer, lr=rate)
        val = finished(replace(config, optimizer=own, seed=TUNE_SEED)).evaluate()[1]
        assert val is not None
        found.append((val.score, -val.nll, rate))
    return replace(optimizer, lr=max(found)[2])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} +- {error:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of every run, for a trial")
    given = parser.parse_args(argv)
    for case in given.cases:
        config, natural = CASES[case]
        config = config if given.epochs is None else replace(config, epochs=given.epochs)
        table = Table("case", "optimizer", "lr", "test %", "test nll", "chosen epoch", "epochs to target", "s")
        adam = OptimizerConfig(name="adam")
        for name, optimizer in (("natural gradient", natural), ("Adam", adam)):
            chosen = tuned(config, replace(optimizer, weight_decay=0.0), RATES[name])
            scores, nlls, epochs, hits, seconds = [], [], [], [], []
            for seed in range(given.seeds):
                start = time.process_time()
                trainer = finished(replace(config, optimizer=chosen, seed=seed))
                seconds.append(time.process_time() - start)
                test = trainer.evaluate()[2]
                assert test is not None
                scores.append(100 * test.score)
                nlls.append(test.nll)
                epochs.append(float(trainer.progress.best_epoch))
                hits.append(trainer.progress.first_hit)
            reached = [float(hit) for hit in hits if hit is not None]
            to_target = f"{spread(reached, 1)} ({len(reached)} of {given.seeds})" if reached else "none"
            table.add_row(case, name, f"{chosen.lr:g}", spread(scores), spread(nlls, 3), spread(epochs, 1), to_target, spread(seconds, 1))
        Console(width=140).print(table)
    versions = environment(["torch", "torch-geometric"])
    print(", ".join(f"{name} {value}" for name, value in versions.items()), f"seeds 0-{given.seeds - 1}, threads 1")


if __name__ == "__main__":
    main()
