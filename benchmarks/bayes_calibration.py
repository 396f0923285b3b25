"""Calibration of small convolutional nets: noisy K-FAC beside the same net by the core's K-FAC and by Adam, in one run.

    NATGRAD_DATA=... python benchmarks/bayes_calibration.py --sets digits --seeds 5
    NATGRAD_DATA=... python benchmarks/bayes_calibration.py --sets mnist --seeds 3 --figures pictures

``digits``: scikit-learn's 1,797 images of 8 x 8 pixels, 1,000 train and 797 test, another split for each seed. ``mnist``: the 10,000
images of ``$NATGRAD_DATA/mnist-10k``, rows 0-7,999 train and 8,000-9,999 test. Every method has the same network, first weights, batches of
100 and number of steps, and a learning rate that falls to 0 along a cosine. The deterministic nets are maximum a posteriori: weight decay
``1/N`` is a prior precision of 1. Noisy K-FAC begins at a prior precision of 1 for every layer and learns it, at temperature 1; the column
``noisy_kfac_cold`` has the temperature of the set (0.05 for digits, 0.1 for mnist), and for mnist a first precision of half a layer's
number of inputs. These were chosen with ``--validation`` (a fifth of the training rows tests) at other seeds than those reported.

Prints mean and standard error over seeds of accuracy, NLL (nats), ECE (15 bins of equal width), the ECE that predictions with these
confidences would have if they were perfectly calibrated (what the number of test images leaves), mean confidence minus accuracy (negative:
underconfident) and Brier score of the test images; AUROC and FPR95 by predictive entropy of images turned by a quarter, of uniform noise
and, for mnist, of USPS threes and fives (shifted: known classes from another source). Results are kept in ``--out`` seed by seed, and a run
goes on from there. ``--write`` puts the tables into docs/bayes.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._calibration_figures import draw
from benchmarks._digits import Images, load_digits, load_mnist
from benchmarks._pages import mean_and_error, write_block
from benchmarks.bayes_uci import DOCUMENT
from natgrad_apps import KFAC, FactoredTikhonov, KLTrustRegion, NaturalGradient
from natgrad_apps.bayes import Classification, NoisyKFAC, Prior, Variational, WarmUp
from natgrad_apps.bayes.metrics import accuracy, auroc, brier, calibration_error, calibration_floor, fpr95
from natgrad_apps.bayes.prediction import ClassificationPrediction, predict
from natgrad_apps.bayes.uci import summary
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.runner import atomic, provenance

BEGIN, END = "<!-- results of bayes_calibration.py: begin -->", "<!-- results of bayes_calibration.py: end -->"
SAMPLES = 50
BATCH = 100
ADAM_LR, KFAC_LR, NOISY_LR = 5e-3, 0.05, 0.1
Row = dict[str, float]
Predictor = Callable[[Tensor], ClassificationPrediction]


@dataclass(frozen=True)
class Setup:
    """What differs between the data sets.

    Attributes:
        load: The images of a seed; with true, only from its training rows.
        epochs: Passes over the training rows.
        cold: Temperature of the column ``noisy_kfac_cold``.
        by_inputs: Whether the first prior precision of a layer is half its number of inputs there; else it is 1.
    """

    load: Callable[[int, bool], Images]
    epochs: int
    cold: float = 0.05
    by_inputs: bool = False


SETS = {"digits": Setup(load_digits, 100), "mnist": Setup(load_mnist, 10, cold=0.1, by_inputs=True)}


def network(images: Images, seed: int) -> nn.Sequential:
    """Two convolutions and a linear layer.

    Args:
        images: Say how large.
        seed: Of the first weights.
    """
    torch.manual_seed(seed)
    stride = 1 if images.size < 16 else 2
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3 if stride == 1 else 5, stride=stride, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    width = body(torch.zeros(1, 1, images.size, images.size)).shape[1]
    return nn.Sequential(*body, nn.Linear(width, 10))


def batches(images: Images, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Inputs, classes and the share of the first learning rate, for every step of a training.

    Args:
        images: The training set.
        epochs: Passes.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    count = max(round(len(images.train_x) / BATCH), 1)
    for step in range(epochs * count):
        if step % count == 0:
            parts = torch.randperm(len(images.train_x), generator=generator).tensor_split(count)
        rows = parts[step % count]
        yield images.train_x[rows], images.train_y[rows], 0.5 * (1 + math.cos(math.pi * step / (epochs * count)))


def fit_adam(images: Images, setup: Setup, seed: int) -> Predictor:
    """Cross-entropy by Adam with weight decay."""
    model = network(images, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_LR, weight_decay=1 / len(images.train_x))
    for x, y, factor in batches(images, setup.epochs, seed):
        optimizer.param_groups[0]["lr"] = ADAM_LR * factor
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return _deterministic(model)


def fit_kfac(images: Images, setup: Setup, seed: int) -> Predictor:
    """Cross-entropy by the core's K-FAC with weight decay."""
    model = network(images, seed)
    decay = 1 / len(images.train_x)
    damping, step = FactoredTikhonov(1e-2), KLTrustRegion(1e-3)
    optimizer = NaturalGradient(model, KFAC(), damping=damping, step=step, lr=KFAC_LR, momentum=0.9, weight_decay=decay)
    for x, y, factor in batches(images, setup.epochs, seed):
        optimizer.param_groups[0]["lr"] = KFAC_LR * factor
        with optimizer.capture():
            logits = model(x)
            optimizer.observe(Categorical(logits))
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimizer.step()
    return _deterministic(model)


def fit_noisy_kfac(images: Images, setup: Setup, seed: int, *, cold: bool) -> Predictor:
    """The posterior, with a warm-up over the first half and a prior precision of each layer that is learned."""
    model = network(images, seed)
    count, temperature, precision = len(images.train_x), setup.cold if cold else 1.0, {"": 1.0}
    if cold and setup.by_inputs:
        precision = {name: m.weight[0].numel() / 2 for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    steps = setup.epochs * max(round(count / BATCH), 1)
    vi = Variational(
        model,
        method=NoisyKFAC(lr=NOISY_LR, damping=1e-3, step=KLTrustRegion(1e-3)),
        task=Classification(),
        num_data=count,
        prior=Prior(precision, learn=True, rate=0.001),
        temperature=WarmUp(0.1 * temperature, steps // 2, temperature),
        seed=seed,
    )
    for x, y, factor in batches(images, setup.epochs, seed):
        vi.set_lr(NOISY_LR * factor)
        vi.step(x, y)

    def found(x: Tensor) -> ClassificationPrediction:
        drawn = predict(vi, x, SAMPLES, torch.Generator().manual_seed(seed))
        assert isinstance(drawn, ClassificationPrediction)
        return drawn

    return found


def _deterministic(model: nn.Module) -> Predictor:
    @torch.no_grad()
    def found(x: Tensor) -> ClassificationPrediction:
        return ClassificationPrediction(model(x).double().softmax(-1)[None])

    return found


METHODS: dict[str, Callable[[Images, Setup, int], Predictor]] = {
    "adam": fit_adam,
    "kfac": fit_kfac,
    "noisy_kfac": partial(fit_noisy_kfac, cold=False),
    "noisy_kfac_cold": partial(fit_noisy_kfac, cold=True),
}


def quality(p: Tensor, y: Tensor) -> Row:
    """Accuracy, ECE, its floor, and mean confidence minus accuracy in percent; NLL in nats; Brier score.

    Args:
        p: Probabilities ``[N, C]``.
        y: Classes ``[N]``.
    """
    nll = float(F.nll_loss(p.log(), y))
    ece, floor, gap = calibration_error(p, y), calibration_floor(p), float(p.amax(1).mean()) - accuracy(p, y)
    return {"accuracy": 100 * accuracy(p, y), "nll": nll, "ece": 100 * ece, "floor": 100 * floor, "gap": 100 * gap, "brier": brier(p, y)}


def run(setup: Setup, method: str, seed: int, validation: bool) -> tuple[Row, dict[str, ClassificationPrediction]]:
    """Train and measure once.

    Args:
        setup: Data set.
        method: A key of `METHODS`.
        seed: Of everything.
        validation: Whether a part of the training rows tests.

    Returns:
        Numbers, and the predictions of the test images (``"test"``) and of each foreign set.
    """
    images, start = setup.load(seed, validation), time.process_time()
    predictor = METHODS[method](images, setup, seed)
    seconds = time.process_time() - start
    inside, y = predictor(images.test_x), images.test_y
    found = {"test": inside}
    row = {**quality(inside.mean, y), "cpu_seconds": seconds}
    for name, x in images.foreign.items():
        found[name] = outside = predictor(x)
        row |= {f"auroc {name}": auroc(inside.entropy, outside.entropy), f"fpr95 {name}": 100 * fpr95(inside.entropy, outside.entropy)}
    if images.shifted_y is not None:
        shifted = found["USPS"].mean
        row |= {
            "shifted accuracy": 100 * accuracy(shifted, images.shifted_y),
            "shifted nll": float(F.nll_loss(shifted.log(), images.shifted_y)),
        }
        row |= {"shifted ece": 100 * calibration_error(shifted, images.shifted_y)}
    return row, found


def tables(results: dict[str, Row]) -> str:
    """Markdown of every set: rows are quantities, columns methods, and the paired difference to the better deterministic net.

    Args:
        results: By ``"set seed method"``.
    """
    parts = []
    for name in dict.fromkeys(key.split()[0] for key in results):
        seeds = sorted({int(key.split()[1]) for key in results if key.startswith(f"{name} ")})
        whole = [s for s in seeds if all(f"{name} {s} {m}" in results for m in METHODS)]
        if not whole:
            continue
        keys = [k for k in results[f"{name} {whole[0]} adam"] if k != "cpu_seconds"] + ["cpu_seconds"]
        lines = [f"**{name}**, seeds {', '.join(map(str, whole))}", "", f"| | {' | '.join(METHODS)} |", "|---|" + "---|" * len(METHODS)]
        for key in keys:
            cells = [_cell([results[f"{name} {s} {m}"][key] for s in whole]) for m in METHODS]
            lines.append(f"| {_label(key)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _label(key: str) -> str:
    names = {"accuracy": "accuracy, %", "nll": "NLL, nats", "ece": "ECE, %", "brier": "Brier", "auroc": "AUROC", "fpr95": "FPR95, %"}
    names |= {"floor": "ECE if it were calibrated, %", "gap": "mean confidence minus accuracy, %"}
    return " ".join(names.get(word, word) for word in key.replace("_", " ").split())


def _cell(values: Sequence[float]) -> str:
    return mean_and_error(values, 2 if abs(summary(values)["mean"]) >= 5 else 4)


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["digits"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="test on a fifth of the training rows instead")
    parser.add_argument("--out", type=Path, default=Path("bayes_calibration.json"), help="JSON file of all results; a run goes on from it")
    parser.add_argument("--figures", type=Path, help="folder for the pictures of the first seed")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/bayes.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Row] = json.loads(options.out.read_text())["results"] if options.out.is_file() else {}
    for name in options.sets:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            drawn: dict[str, Any] = {}
            for method in options.methods:
                key = f"{name} {seed} {method}"
                picture = options.figures is not None and seed == options.first_seed
                if key in results and not picture:
                    continue
                results[key], drawn[method] = run(SETS[name], method, seed, options.validation)
                atomic.write_json(options.out, {"results": results})
                print(key, " ".join(f"{k} {v:.4g}" for k, v in results[key].items()), flush=True)
            if options.figures is not None and seed == options.first_seed:
                draw(drawn, SETS[name].load(seed, options.validation).test_y, options.figures / f"{name}.png")
    versions = provenance.package_versions(("torch", "numpy", "scikit-learn", "natgrad-apps"))
    note = f"{os.cpu_count()} cores shared with other work; {', '.join(f'{k} {v}' for k, v in versions.items())}"
    command = f"python benchmarks/bayes_calibration.py --sets {' '.join(options.sets)} --seeds {options.seeds}"
    text = f"command: `{command}`   {note}\n\n{tables(results)}"
    print("\n" + text)
    if options.write:
        write_block(text, document=DOCUMENT, marks=(BEGIN, END))


if __name__ == "__main__":
    main()
