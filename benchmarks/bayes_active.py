"""Active learning: labels that the model asks for against labels at random, on several sets in one run.

    python benchmarks/bayes_active.py                                   # boston, yacht, breast_cancer, seeds 0-4
    python benchmarks/bayes_active.py --sets concrete --seeds 0-9 --methods noisy_kfac noisy_adam

In the manner of section 5.3 of Zhang et al. (noisy K-FAC): 20 labelled rows, a pool of 100 candidates, 100 test rows; ten times one label
is asked for, and the model is trained anew. Training is that of `natgrad-bayes active` with 200 epochs, nothing was tuned for this. Both
acquisitions see the same rows and first weights with a seed, so differences are paired.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from natgrad_apps.bayes.acquiring import Acquisition, Rounds, draw_pool, learn_actively
from natgrad_apps.bayes.config import FitConfig, RecipeConfig
from natgrad_apps.bayes.data import load
from natgrad_apps.bayes.study_config import parse_splits
from natgrad_apps.bayes.uci import summary

SETS = ("boston", "yacht", "breast_cancer")
START, POOL, TEST, ROUNDS, EPOCHS = 20, 100, 100, 10, 200
ACQUISITIONS: tuple[Acquisition, ...] = ("mutual_information", "random")
Curve = list[dict[str, Any]]


def curves(name: str, recipe: RecipeConfig, seed: int) -> dict[Acquisition, Curve]:
    """A learning curve of each acquisition.

    Args:
        name: Of the data set.
        recipe: Of every model.
        seed: Of rows, first weights and samples.
    """
    table = load(name)
    pool = draw_pool(table, (START, POOL, TEST), seed)
    return {a: learn_actively(table, pool, recipe, Rounds(a, ROUNDS, 1), seed) for a in ACQUISITIONS}


def rows(name: str, method: str, found: Sequence[dict[Acquisition, Curve]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = []
    for metric in ("accuracy" if "accuracy" in found[0]["random"][0] else "rmse", "loglik_pointwise"):
        ends = [_text([c[a][-1][metric] for c in found]) for a in ACQUISITIONS]
        own, base = ([sum(p[metric] for p in c[a][1:]) / ROUNDS for c in found] for a in ACQUISITIONS)
        start = _text([c["random"][0][metric] for c in found])
        paired = _text([x - y for x, y in zip(own, base, strict=True)])
        lines.append(f"| {name} | {method} | {metric} | {start} | {' | '.join(ends)} | {paired} |")
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
    parser.add_argument("--methods", nargs="+", default=["noisy_kfac"])
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"seeds {given.seeds}, {given.epochs} epochs; torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    heads = (f"{START} labels", f"{START + ROUNDS}, chosen", f"{START + ROUNDS}, random", "chosen - random, whole curve")
    print("| set | method | metric | " + " | ".join(heads) + " |\n|---|---|---|---|---|---|---|", flush=True)
    for name in given.sets:
        for method in given.methods:
            recipe = RecipeConfig(method=method, training=FitConfig(epochs=given.epochs))
            print("\n".join(rows(name, method, [curves(name, recipe, seed) for seed in parse_splits(given.seeds)])), flush=True)


if __name__ == "__main__":
    main()
