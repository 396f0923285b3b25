"""Sampled against linearized predictions of the same posteriors.

    python benchmarks/bayes_predictions.py                  # yacht, boston, concrete, breast_cancer, digits; splits 0-4
    python benchmarks/bayes_predictions.py --sets digits --splits 0-9

Each posterior is trained once with the preset ``uci`` (embedded sets: 100 epochs) and predicts its test rows in both ways, with the same
number of draws. Prints mean and standard error over splits, and the seconds of a prediction of all test rows.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from natgrad_apps.bayes.config import FitConfig, TrainConfig
from natgrad_apps.bayes.data import EMBEDDED
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.prediction import Kind
from natgrad_apps.bayes.run_data import open_data
from natgrad_apps.bayes.study_config import parse_splits
from natgrad_apps.bayes.uci import summary

KINDS: tuple[Kind, ...] = ("sampled", "linearized")
SETS = ("yacht", "boston", "concrete", "breast_cancer", "digits")


def fit_one(name: str, split: int, method: str) -> Fit:
    """A trained posterior.

    Args:
        name: Of the data set.
        split: Number of the published split, or seed of a random one.
        method: Such as ``noisy_kfac``.
    """
    training = FitConfig(epochs=100, batch_size=100) if name in EMBEDDED else FitConfig()
    config = TrainConfig(method=method, dataset=name, split=split, seed=split, training=training)
    table, rows = open_data(config)
    fit = Fit(table, rows, config, config.seed)
    while fit.steps_done < fit.steps_total:
        fit.step()
    return fit


def compare(name: str, splits: Sequence[int], method: str) -> list[str]:
    """Lines of a Markdown table."""
    found: dict[Kind, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for split in splits:
        fit = fit_one(name, split, method)
        for kind in KINDS:
            start = time.perf_counter()
            values = fit.evaluate(kind=kind)
            found[kind].append({**values, "seconds": time.perf_counter() - start})
    lines = []
    for kind in KINDS:
        runs = found[kind]
        names = (*(("accuracy", "ece") if "ece" in runs[0] else ("rmse", "crps")), "loglik_pointwise", "loglik_joint", "seconds")
        lines.append(f"| {name} | {kind} | " + " | ".join(f"{n} {_text([r[n] for r in runs])}" for n in names) + " |")
    return lines


def _text(values: Sequence[float]) -> str:
    found = summary(values)
    return f"{found['mean']:.4g} ± {found['se']:.2g}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print.

    Args:
        argv: Words of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--splits", default="0-4")
    parser.add_argument("--method", default="noisy_kfac")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{given.method}, splits {given.splits}; torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    print("| set | predictions | | | | | |\n|---|---|---|---|---|---|---|", flush=True)
    for name in given.sets:
        print("\n".join(compare(name, parse_splits(given.splits), given.method)), flush=True)


if __name__ == "__main__":
    main()
