"""Continual learning on split digits: an earlier posterior as the next prior, against going on without it.

    python benchmarks/bayes_continual.py                      # seeds 0-4, a few minutes
    python benchmarks/bayes_continual.py --seeds 100 --methods noisy_kfac

Scikit-learn's digits (1,797 images of 8 x 8, a fifth tests) in five tasks: 0 or 1, 2 or 3, ..., 8 or 9. One network, 64-100-10 with
rectified units, reads for each task the two outputs of its digits; which task a row belongs to is known, in training and in test (the split
protocol of Nguyen et al., ICLR 2018). Tasks are trained one after another, and no row of an earlier one is seen again.

* ``previous posterior``: the posterior of the tasks so far is the prior of the next.
* ``fine-tuning``: the weights go on, the prior is N(0, 1) each time.
* ``all at once``: every task in one training, the ceiling; batches have rows of one task.

Prints the test accuracy of all tasks after the last one, and of the first task, mean and standard error over seeds (of split, first
weights and samples). Settings were chosen with seed 100.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from natgrad_apps.bayes import Classification, Posterior, Prior, Variational
from natgrad_apps.bayes.data import Scaling, load, random_split
from natgrad_apps.bayes.prediction import predict
from natgrad_apps.bayes.recipes import build_method
from natgrad_apps.bayes.study_config import parse_splits
from natgrad_apps.bayes.uci import summary

TASKS, EPOCHS, BATCH, SAMPLES = 5, 60, 50, 20
MODES = ("previous posterior", "fine-tuning", "all at once")
METHODS = ("noisy_adam", "noisy_kfac", "noisy_ekfac")
CURVATURE = {"decay": 0.95, "initial_curvature": 0.01}
"""The first curvature is forgotten within a task: what is left of it would count as data in the next prior."""
Rows = tuple[Tensor, Tensor]


class Heads(nn.Module):
    """Two outputs for each task; `task` says which are read.

    Args:
        hidden: Width of the hidden layer.
    """

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.first, self.last, self.task = nn.Linear(64, hidden), nn.Linear(hidden, 2 * TASKS), 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the two digits of the task."""
        outputs: Tensor = self.last(self.first(x).relu())
        return outputs[:, 2 * self.task : 2 * self.task + 2]


def split_digits(seed: int) -> list[tuple[Rows, Rows]]:
    """Training and test rows of each task; digit ``2 t + c`` has the class ``c``."""
    table = load("digits")
    rows = random_split(table, 0.2, seed)
    scaling = Scaling.fit(table.x[rows.train])
    x, y = torch.as_tensor(scaling.apply(table.x), dtype=torch.float32), torch.as_tensor(table.y)

    def of_task(part: Tensor, task: int) -> Rows:
        chosen = part[y[part] // 2 == task]
        return x[chosen], y[chosen] % 2

    train, test = torch.as_tensor(rows.train), torch.as_tensor(rows.test)
    return [(of_task(train, t), of_task(test, t)) for t in range(TASKS)]


def train(vi: Variational, model: Heads, tasks: Sequence[tuple[int, Rows]], epochs: int, generator: torch.Generator) -> None:
    """Train on the rows of some tasks; every batch is of one task, in random order."""
    first = vi.lr
    for epoch in range(epochs):
        vi.set_lr(first * (1 - epoch / epochs))
        batches = [(t, part) for t, (x, _) in tasks for part in torch.randperm(len(x), generator=generator).split(BATCH)]
        rows = dict(tasks)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            model.task, part = batches[i]
            x, y = rows[model.task]
            vi.step(x[part], y[part])


def accuracies(vi: Variational, model: Heads, data: Sequence[tuple[Rows, Rows]]) -> list[float]:
    """Test accuracy of each task."""
    found = []
    for task, (_, (x, y)) in enumerate(data):
        model.task = task
        prediction: Any = predict(vi, x, SAMPLES, torch.Generator().manual_seed(task))
        found.append(float((prediction.mean.argmax(1) == y).double().mean()))
    return found


def run(method: str, mode: str, seed: int, lr: float, epochs: int = EPOCHS) -> list[float]:
    """Test accuracy of each task after the last.

    Args:
        method: A key of `natgrad_apps.bayes.recipes.methods`.
        mode: One of `MODES`.
        seed: Of split, first weights, order and samples.
        lr: First learning rate of every task; it falls linearly to zero.
        epochs: Passes over the rows of a task.
    """
    data = split_digits(seed)
    torch.manual_seed(seed)
    model, generator = Heads(), torch.Generator().manual_seed(seed)
    whole = list(enumerate(train_rows for train_rows, _ in data))
    prior: Prior | Posterior = Prior(1.0)
    for part in [whole] if mode == "all at once" else [[task] for task in whole]:
        rows = sum(len(x) for _, (x, _) in part)
        chosen = build_method(method, {"lr": lr, "damping": 1e-3, **CURVATURE})
        vi = Variational(model, method=chosen, task=Classification(), num_data=rows, prior=prior, seed=seed)
        train(vi, model, part, epochs, generator)
        prior = vi.posterior if mode == "previous posterior" else prior
    return accuracies(vi, model, data)


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print.

    Args:
        argv: Words of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(
        f"seeds {given.seeds}, lr {given.lr}, {given.epochs} epochs; torch {torch.__version__}, Python {platform.python_version()}",
        flush=True,
    )
    print("| method | training | all tasks, % | first task, % | last task, % | CPU s a run |\n|---|---|---|---|---|---|", flush=True)
    for method in given.methods:
        for mode in given.modes:
            start = time.process_time()
            found = [run(method, mode, seed, given.lr, given.epochs) for seed in parse_splits(given.seeds)]
            seconds = (time.process_time() - start) / len(found)
            columns = [[100 * sum(f) / TASKS for f in found], [100 * f[0] for f in found], [100 * f[-1] for f in found]]
            cells = " | ".join(f"{s['mean']:.1f} ± {s['se']:.1f}" for s in map(summary, columns))
            print(f"| {method} | {mode} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
