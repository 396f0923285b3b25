"""Noisy K-FAC on a convolutional network of ten million weights, beside Adam: peak memory, loss over the steps, held-out accuracy.

    NATGRAD_DATA=... python benchmarks/bayes_large.py --write       # some eight minutes on a free core

The network has six convolutions and three linear layers, 10.7 million weights, begins at He's initialization and sees the 28 x 28 images of
``$NATGRAD_DATA/mnist-10k`` enlarged to 32 x 32: rows 0-7,999 train in random minibatches, the first `HELD_OUT` of the others test. Both
methods have the same first weights and minibatches, and a learning rate that falls to 0 along a cosine. Noisy K-FAC has factors of at most
4,096 rows (wider ones are diagonal blocks), statistics every step and inverses every ten, and a prior precision of half a layer's number of
inputs, under which He's initialization is a draw of the prior. No setting was searched: this shows that it trains and what it takes.

The loss is that of the minibatches, averaged over fifths of the run: at the weights for Adam, at one draw of the posterior for noisy K-FAC.
Held-out numbers before are those of the first weights; after, those of the trained weights, and for noisy K-FAC of the mean of `SAMPLES`
draws. Memory is the peak of the whole process; Adam runs first, so its peak is its own.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._digits import Images, load_mnist
from benchmarks._pages import write_block, write_json
from benchmarks._timing import ROOT, environment
from natgrad_apps import KLTrustRegion
from natgrad_apps.bayes import Classification, NoisyKFAC, Prior, Variational
from natgrad_apps.bayes.metrics import accuracy
from natgrad_apps.bayes.prediction import ClassificationPrediction, predict

DOCUMENT = ROOT / "docs" / "bayes-methods.md"
BEGIN, END = "<!-- results of bayes_large.py: begin -->", "<!-- results of bayes_large.py: end -->"
HELD_OUT, SAMPLES, EVALUATED = 512, 5, 128
PARTS = 5
ADAM_LR = 1e-3
Stepper = Callable[[Tensor, Tensor, float], float]
Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Of noisy K-FAC, and of both trainings.

    Attributes:
        steps: Number of steps.
        batch: Images of a minibatch.
        lr: First learning rate of noisy K-FAC.
        damping: Extrinsic damping.
        radius: Largest KL divergence of a step, in nats a term.
        temperature: Weight of the KL divergence to the prior.
        seed: Of everything.
    """

    steps: int = 40
    batch: int = 64
    lr: float = 0.1
    damping: float = 0.01
    radius: float = 0.01
    temperature: float = 0.01
    seed: int = 0


def large_network() -> nn.Sequential:
    """Six convolutions and three linear layers, 10.7 million weights, for images ``[N, 1, 28, 28]``."""
    modules: list[nn.Module] = [nn.Upsample(size=(32, 32))]
    channels = 1
    for width in (64, 128, 256, 384, 512, 512):
        modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        modules += [nn.MaxPool2d(2)] if width != 384 else []
        channels = width
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))


def initialize(model: nn.Module) -> dict[str, float]:
    """He's initialization of every layer: weights of variance ``2 / fan_in``, biases of 0.

    Returns:
        The prior precision ``fan_in / 2`` of each layer, by name.
    """
    precisions = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            precisions[name] = module.weight[0].numel() / 2
    return precisions


def start_adam(model: nn.Module) -> tuple[Stepper, None]:
    """Cross-entropy by Adam.

    Args:
        model: Trained in place.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_LR)

    def step(x: Tensor, y: Tensor, factor: float) -> float:
        optimizer.param_groups[0]["lr"] = ADAM_LR * factor
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, None


def start_noisy_kfac(model: nn.Module, precisions: dict[str, float], rows: int, settings: Settings) -> tuple[Stepper, Variational]:
    """The posterior; it pays little for the KL divergence, because so few steps see little of the data.

    Args:
        model: Its weights are the first mean.
        precisions: Of the prior, by layer.
        rows: Number of training images.
        settings: Of the method.
    """
    method = NoisyKFAC(settings.lr, decay=0.9, damping=settings.damping, initial_batches=0, step=KLTrustRegion(settings.radius))
    task, prior = Classification(), Prior(precisions)
    vi = Variational(model, method=method, task=task, num_data=rows, prior=prior, temperature=settings.temperature, seed=settings.seed)

    def step(x: Tensor, y: Tensor, factor: float) -> float:
        vi.set_lr(settings.lr * factor)
        return float(vi.step(x, y).expected_nll) / rows

    return step, vi


def run(network: Callable[[], nn.Module], images: Images, settings: Settings) -> list[Record]:
    """Train with both methods and measure.

    Args:
        network: Makes the network.
        images: Training and held-out ones.
        settings: See `Settings`.
    """
    torch.manual_seed(settings.seed)
    first = network()
    precisions = initialize(first)
    before = _quality(_probabilities(first, images.test_x), images.test_y)
    records = []
    for name in ("Adam", "noisy K-FAC 1/10"):
        model = copy.deepcopy(first)
        step, vi = start_adam(model) if name == "Adam" else start_noisy_kfac(model, precisions, len(images.train_x), settings)
        generator, losses, start = torch.Generator().manual_seed(settings.seed), [], time.process_time()
        for i in range(settings.steps):
            rows = torch.randint(len(images.train_x), (settings.batch,), generator=generator)
            losses.append(step(images.train_x[rows], images.train_y[rows], 0.5 * (1 + math.cos(math.pi * i / settings.steps))))
            print(f"{name}: step {i + 1}, loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
        seconds = (time.process_time() - start) / settings.steps
        record: Record = {"method": name, "weights": sum(p.numel() for p in model.parameters()), "cpu_seconds": seconds, "losses": losses}
        record |= {"before": before, "after": _quality(_probabilities(model, images.test_x), images.test_y), "drawn": None}
        if vi is not None:
            found = predict(vi, images.test_x, SAMPLES, torch.Generator().manual_seed(settings.seed), EVALUATED)
            assert isinstance(found, ClassificationPrediction)
            record["drawn"] = _quality(found.mean, images.test_y)
        records.append(record | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
    return records


@torch.no_grad()
def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(EVALUATED)]).double().softmax(-1)


def _quality(p: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy in percent and NLL in nats."""
    return 100 * accuracy(p, y), float(F.nll_loss(p.log(), y))


def table(records: Sequence[Record]) -> str:
    """Markdown.

    Args:
        records: Of `run`.
    """
    steps = len(records[0]["losses"])
    edges = [round(i * steps / PARTS) for i in range(PARTS + 1)]
    ranges = [f"{a + 1}-{b}" for a, b in itertools.pairwise(edges)]
    head = [
        "method",
        "weights",
        "peak memory, GiB",
        "CPU s a step",
        *(f"loss, steps {r}" for r in ranges),
        "held-out accuracy, %, NLL, nats",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in records:
        means = [sum(r["losses"][a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
        held = f"{_pair(r['before'])} -> {_pair(r['after'])}" + (f"; {SAMPLES} draws {_pair(r['drawn'])}" if r["drawn"] else "")
        cells = [r["method"], f"{r['weights'] / 1e6:.1f} million", f"{r['peak_gib']:.2f}", f"{r['cpu_seconds']:.1f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{m:.3f}' for m in means), held])} |")
    return "\n".join(lines)


def _pair(quality: tuple[float, float]) -> str:
    return f"{quality[0]:.1f}, {quality[1]:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--write", action="store_true", help="put the table into docs/bayes-methods.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    images = load_mnist(0, validation=False)
    held_out = Images(images.train_x, images.train_y, images.test_x[:HELD_OUT], images.test_y[:HELD_OUT], {})
    settings = Settings(options.steps, options.batch)
    records = run(large_network, held_out, settings)
    setup = {**environment(("torch", "numpy", "natgrad-apps")), "threads": 1, **asdict(settings), "held-out images": HELD_OUT}
    described = ", ".join(f"{key} {value}" for key, value in setup.items())
    command = f"python benchmarks/bayes_large.py --steps {options.steps} --batch {options.batch}"
    text = f"command: `{command}`   {described}\n\n{table(records)}"
    print(text)
    write_json(setup, records, options.out)
    if options.write:
        write_block(text, document=DOCUMENT, marks=(BEGIN, END))


if __name__ == "__main__":
    main()
