"""Calibration of node classifiers on Cora's public split: a GCN by Adam beside the same GCN with a noisy K-FAC posterior, in one run.

    NATGRAD_DATA=... python benchmarks/graph_uncertainty.py            # 3 seeds, some minutes
    NATGRAD_DATA=... python benchmarks/graph_uncertainty.py --full     # 10 seeds

Every seed: weights, dropout and posterior samples. Adam: learning rate 0.01, weight decay 5e-4, 200 epochs, the epoch of the lowest
validation loss. Noisy K-FAC: `PosteriorOptions` but for what the grid chooses, the last epoch, 100 weight samples. The grid is three pairs
of temperature and prior precision; the one with the lowest negative log-likelihood of the validation nodes after scaling, mean of two seeds
from 100000, is taken for all seeds. ``+ T`` divides the logits (log-probabilities of the mixture) by one temperature fitted on the 500
validation nodes. ECE has 15 equal bins of confidence.

Left-out class: the training nodes of one class (the seed modulo 7) are removed and the network has six outputs; AUROC of telling that
class's test nodes from the others by predictive entropy, and by the mutual information of class and weights.

Conformal: sets at 90 % from half of the validation nodes, where the temperature comes from the other half.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._timing import environment
from natgrad_apps.bayes.metrics import auroc
from natgrad_apps.bayes.prediction import ClassificationPrediction
from natgrad_apps.graphs.calibration import calibrate
from natgrad_apps.graphs.config import OptimizerConfig, TrainConfig
from natgrad_apps.graphs.data import GraphData, load_public
from natgrad_apps.graphs.measures import measure
from natgrad_apps.graphs.models import ModelOptions, build_model
from natgrad_apps.graphs.splits import Split, SplitOptions, make_split, without_class
from natgrad_apps.graphs.trainer import Trainer, seed_all
from natgrad_apps.graphs.uncertainty import GraphPosterior, PosteriorOptions

Row = dict[str, float]
Point = tuple[float, float]
GRID = ((0.05, 10.0), (0.02, 20.0), (0.01, 33.3))
TUNE_SEED = 100_000
SAMPLES = 100
ADAM_EPOCHS = 200
ROWS = ("GCN, Adam", "GCN, Adam + T", "noisy K-FAC, mean weights", "noisy K-FAC, mixture", "noisy K-FAC, mixture + T")


def adam(data: GraphData, split: Split, seed: int) -> Tensor:
    """Log-probabilities ``[N, C]`` of the epoch with the lowest validation loss."""
    seed_all(seed)
    optimizer = OptimizerConfig(name="adam", lr=0.01)
    config = TrainConfig(dataset="Cora", split="public", optimizer=optimizer, epochs=ADAM_EPOCHS, seed=seed, device="cpu")
    trainer = Trainer(config, data, split, torch.device("cpu"))
    while not trainer.done:
        trainer.run_epoch()
    trainer.load_best()
    return trainer.predict().double().log_softmax(-1)


def posterior(data: GraphData, split: Split, seed: int, point: Point) -> tuple[Tensor, ClassificationPrediction]:
    """Log-probabilities with the mean weights, and the mixture over samples."""
    seed_all(seed)
    net = build_model(ModelOptions(), data.x.shape[1], data.classes)
    options = PosteriorOptions(temperature=point[0], prior_precision=point[1], num_samples=SAMPLES)
    fitted = GraphPosterior(net, data, split.train, options, seed=seed)
    fitted.fit()
    return fitted.predict_mean(), fitted.predict(torch.Generator().manual_seed(seed))


def choose(data: GraphData, split: Split, seeds: int, say: Callable[[str], None]) -> Point:
    """The point of the grid with the lowest scaled negative log-likelihood of the validation nodes."""
    scores = {}
    for point in GRID:
        found = []
        for k in range(seeds):
            log_p = posterior(data, split, TUNE_SEED + k, point)[1].mean.log()
            found.append(calibrate(log_p, data.y, split.val, 0.1).log_p)
        nll = [measure(log_p[split.val], data.y[split.val]).nll for log_p in found]
        scores[point] = statistics.mean(nll)
        say(f"grid: temperature {point[0]:g}, prior precision {point[1]:g}: validation NLL {scores[point]:.4f} nats")
    return min(scores, key=scores.__getitem__)


def numbers(log_p: Tensor, data: GraphData, split: Split) -> Row:
    """Accuracy and ECE in percent, NLL in nats, Brier score of the test nodes."""
    found = measure(log_p[split.test], data.y[split.test])
    return {"accuracy": 100 * found.accuracy, "ece": 100 * found.ece, "nll": found.nll, "brier": found.brier}


def run(data: GraphData, split: Split, seed: int, point: Point, *, left_out: bool) -> dict[str, Row]:
    """All rows of one seed; without the left-out class if not asked for."""
    y, val, test = data.y, split.val, split.test
    plain = adam(data, split, seed)
    start = time.perf_counter()
    mean, prediction = posterior(data, split, seed, point)
    seconds = time.perf_counter() - start
    mixture = prediction.mean.log()
    found = {"GCN, Adam": numbers(plain, data, split), "noisy K-FAC, mean weights": numbers(mean, data, split)}
    found["noisy K-FAC, mixture"] = {**numbers(mixture, data, split), "seconds": seconds}
    for name, log_p in (("GCN, Adam", plain), ("noisy K-FAC, mixture", mixture)):
        scaled = calibrate(log_p, y, val, 0.1)
        found[f"{name} + T"] = {**numbers(scaled.log_p, data, split), "temperature": scaled.temperature}
        sets = scaled.sets[test]
        covered = sets.gather(1, y[test].unsqueeze(1)).double().mean()
        found[f"{name} + T"] |= {"coverage": 100 * float(covered), "set_size": float(sets.double().sum(1).mean())}
    if not left_out:
        return found
    smaller, fewer, outside = without_class(data, split, seed % data.classes)
    entropy = torch.special.entr(adam(smaller, fewer, seed).exp()).sum(-1)[test]
    found["GCN, Adam"]["auroc_entropy"] = auroc(entropy[~outside], entropy[outside])
    _, open_set = posterior(smaller, fewer, seed, point)
    for name, score in (("auroc_entropy", open_set.entropy[test]), ("auroc_mutual_information", open_set.epistemic[test])):
        found["noisy K-FAC, mixture"][name] = auroc(score[~outside], score[outside])
    return found


def table(results: Sequence[dict[str, Row]]) -> Table:
    """Mean and standard error over seeds."""
    columns = {
        "accuracy": "accuracy %",
        "ece": "ECE %",
        "nll": "NLL, nats",
        "brier": "Brier",
        "auroc_entropy": "left-out AUROC, entropy",
        "auroc_mutual_information": "AUROC, mutual inf.",
        "coverage": "coverage % at 90",
        "set_size": "classes a set",
    }
    made = Table(title=f"Cora, public split (140/500/1000), {len(results)} seeds", title_justify="left")
    made.add_column("method")
    for text in columns.values():
        made.add_column(text, justify="right")
    for name in ROWS:
        cells = []
        for key in columns:
            values = [result[name][key] for result in results if key in result[name]]
            if not values:
                cells.append("")
                continue
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            digits = 3 if key in {"nll", "brier"} or key.startswith("auroc") else 2
            cells.append(f"{statistics.mean(values):.{digits}f} +- {error:.{digits}f}")
        made.add_row(name, *cells)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="10 seeds")
    parser.add_argument("--tune-seeds", type=int, default=2, help="seeds of each point of the grid (default 2)")
    parser.add_argument("--left-out-seeds", type=int, help="seeds with a left-out class (default: every one)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 180)
    data, split = make_split(load_public("Cora"), "public", SplitOptions(), 0)
    count = 10 if options.full else options.seeds
    point = choose(data, split, options.tune_seeds, console.print)
    console.print(f"taken: temperature {point[0]:g}, prior precision {point[1]:g}")
    open_sets = count if options.left_out_seeds is None else options.left_out_seeds
    results = []
    for seed in track(range(count), "seeds", console=console):
        results.append(run(data, split, seed, point, left_out=seed < open_sets))
        if options.out is not None:  # after every seed: a long run that is stopped leaves what it has
            options.out.write_text(json.dumps({"point": point, "results": results}, indent=1))
    console.print(table(results))
    versions = environment(["torch", "torch-geometric", "natgrad-apps", "numpy"])
    console.print(", ".join(f"{k} {v}" for k, v in versions.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({"environment": versions, "point": point, "results": results}, indent=1))


if __name__ == "__main__":
    main()
