"""What `bayes_cost.py` measures: two networks on digits, and the optimizers and posteriors that train them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._models import Setting, Workload
from benchmarks._ours import likelihood
from natgrad_apps import EKFAC, KFAC, FactoredTikhonov, NaturalGradient, Periodic, Tikhonov
from natgrad_apps.bayes import IVON, SLANG, VOGN, Classification, NoisyAdam, NoisyEKFAC, NoisyKFAC, Samples, Vadam, Variational
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.curvature.base import Curvature

NUM_BATCHES = 4
NUM_DATA = 10_000
DAMPING = 0.1
"""Extrinsic damping of the posteriors on the core, damping of the core alone."""
ONE, PAIRS = Samples(), Samples(across_steps=True)


def workload(name: str, setting: Setting, batch_size: int) -> Workload:
    """A network with minibatches of digits.

    Args:
        name: ``mlp`` (784-400-400-10) or ``cnn`` (two strided convolutions and two linear layers, 80 202 weights).
        setting: Device and dtype.
        batch_size: Examples.
    """
    builders: Mapping[str, Callable[[], nn.Sequential]] = {"mlp": _mlp, "cnn": _cnn}

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return builders[name]()

    x, y = digits(batch_size * NUM_BATCHES)
    x, y = x.to(setting.device), y.to(setting.device)
    batches = tuple(zip(x.split(batch_size), y.split(batch_size), strict=True))
    return Workload(name, build, batches, nn.CrossEntropyLoss(), "categorical", setting)


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Images ``[count, 784]`` in [0, 1] and their classes: ``NATGRAD_DATA/mnist-10k`` if it is there, else random ones."""
    folder = Path(os.environ.get("NATGRAD_DATA", ".")) / "mnist-10k"
    if not (folder / "t10k-images-idx3-ubyte.gz").is_file():
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, 784, generator=generator), torch.randint(10, (count,), generator=generator)
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), dtype=np.uint8, offset=16).reshape(-1, 784)[:count]
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), dtype=np.uint8, offset=8)[:count]
    return torch.from_numpy(images.astype(np.float32) / 255.0), torch.from_numpy(labels.astype(np.int64))


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))


def _cnn() -> nn.Sequential:
    head = [nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)]
    convolutions = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()]
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *convolutions, *head)


class Adam:
    """`torch.optim.Adam` in the loop of torch's documentation.

    Args:
        made: The workload.
        fused: Its option.
        draws: Whether as many normal numbers as there are weights are drawn each step and not used: what noise costs at least.
    """

    def __init__(self, made: Workload, *, fused: bool | None = None, draws: bool = False) -> None:
        self._workload, self._stream = made, made.stream()
        self.model = made.model()
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=fused)
        like = next(self.model.parameters())
        self._noise = torch.empty(sum(p.numel() for p in self.model.parameters()) if draws else 0, device=like.device)

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        self._noise.normal_()
        loss: Tensor = self._workload.loss(self.model(x), target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Core:
    """`NaturalGradient` with the periods of a posterior.

    Args:
        made: The workload.
        curvature: Approximation.
        periods: Steps between statistics, and between factorizations.
    """

    def __init__(self, made: Workload, curvature: Curvature, periods: tuple[int, int]) -> None:
        self._workload, self._stream = made, made.stream()
        self.model = made.model()
        damping = Tikhonov(DAMPING) if isinstance(curvature, EKFAC) else FactoredTikhonov(DAMPING)
        self._optimizer = NaturalGradient(self.model, curvature, damping=damping, refresh=Periodic(*periods), lr=0.003, momentum=0.9)

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        with self._optimizer.capture():
            output = self.model(x)
            self._optimizer.observe(likelihood(output, self._workload.family))
        loss: Tensor = self._workload.loss(output, target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Bayes:
    """`Variational`; every step reports its ELBO.

    Args:
        made: The workload.
        method: How the posterior is found.
        samples: Of a step.
    """

    def __init__(self, made: Workload, method: Method, samples: Samples = ONE) -> None:
        self._stream = made.stream()
        self.model = made.model()
        self.inference = Variational(self.model, method=method, task=Classification(), num_data=NUM_DATA, num_samples=samples)

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        return self.inference.step(x, target).expected_nll / NUM_DATA


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: Label.
        make: Builds it.
        baseline: What its time is divided by: ``Adam``, ``K-FAC``, ``EKFAC``, or ``K-FAC 10/100``.
        bar: Largest ratio that was asked for, if one was.
        period: Steps of a block: a multiple of the contender's periods.
        workloads: Where it takes part.
    """

    name: str
    make: Callable[[Workload], Adam | Core | Bayes]
    baseline: str = "Adam"
    bar: float | None = None
    period: int = 10
    workloads: tuple[str, ...] = ("mlp", "cnn")


BASELINES: Mapping[str, Row] = {
    "Adam": Row("Adam", Adam),
    "K-FAC": Row("K-FAC 1/10", lambda w: Core(w, KFAC(), (1, 10))),
    "EKFAC": Row("EKFAC 1/10", lambda w: Core(w, EKFAC(), (1, 10))),
    "K-FAC 10/100": Row("K-FAC 10/100", lambda w: Core(w, KFAC(), (10, 100)), period=100),
}


def rows() -> list[Row]:
    """Every contender, by baseline."""
    long = NoisyKFAC(lr=0.03, damping=DAMPING, statistics_period=10, inverse_period=100)
    part = SLANG(8, 0.01, decay=0.9, statistics_period=10, subsample=4)
    return [
        Row("noisy K-FAC 1/10", lambda w: Bayes(w, NoisyKFAC(lr=0.03, damping=DAMPING)), "K-FAC", 1.3),
        Row("noisy K-FAC 1/10, pairs across steps", lambda w: Bayes(w, NoisyKFAC(lr=0.03, damping=DAMPING), PAIRS), "K-FAC", 1.3),
        Row("noisy EKFAC 1/10", lambda w: Bayes(w, NoisyEKFAC(lr=0.03, damping=DAMPING)), "EKFAC", 1.3),
        Row("noisy K-FAC 10/100", lambda w: Bayes(w, long), "K-FAC 10/100", period=100),
        Row("Vadam", lambda w: Bayes(w, Vadam(lr=1e-3)), bar=1.2),
        Row("Vadam, pairs across steps", lambda w: Bayes(w, Vadam(lr=1e-3), PAIRS), bar=1.2),
        Row("IVON", lambda w: Bayes(w, IVON(lr=0.1))),
        Row("VOGN", lambda w: Bayes(w, VOGN(lr=0.01))),
        Row("noisy Adam", lambda w: Bayes(w, NoisyAdam(lr=0.01, damping=1e-3))),
        Row("SLANG, L = 8, period 10, subsample 4", lambda w: Bayes(w, part), bar=3.0, workloads=("mlp",)),
        Row("SLANG, L = 8, every step, all examples", lambda w: Bayes(w, SLANG(8, 0.01)), workloads=("mlp",)),
        Row("Adam and a draw of as many normal numbers", lambda w: Adam(w, draws=True)),
        Row("Adam, fused", lambda w: Adam(w, fused=True)),
    ]
