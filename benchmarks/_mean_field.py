"""What `bayes_mean_field.py` compares: the mean-field methods of the package, and Bayes by backprop as Pyro has it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

from natgrad_apps import KLTrustRegion
from natgrad_apps.bayes import VOGN, NoisyAdam, Prior, Regression, Vadam, Variational
from natgrad_apps.bayes.data import Scaling, load_uci
from natgrad_apps.bayes.methods.base import Method

NOISE_STD, HIDDEN, SAMPLES = 0.3, 50, 2
FIRST_STD = 0.05
RADIUS = 0.01
"""Largest KL divergence of a step of noisy Adam, in nats a term; its steps are bounded as in the runner."""


@dataclass(frozen=True)
class Data:
    """Standardized rows of one split, float32.

    Attributes:
        x: Training inputs ``[N, d]``.
        y: Training targets ``[N, 1]``.
        test_x: Test inputs.
        test_y: Test targets in their own unit, ``[T]``.
        scale: Standard deviation of the training targets.
        shift: Their mean.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    scale: float
    shift: float

    @staticmethod
    def load(name: str, split: int) -> Data:
        """A published split of a UCI set."""
        table = load_uci(name)
        rows = table.splits[split]
        inputs, targets = Scaling.fit(table.x[rows.train]), Scaling.fit(table.y[rows.train])
        x, test_x = (torch.as_tensor(inputs.apply(table.x[part]), dtype=torch.float32) for part in (rows.train, rows.test))
        y = torch.as_tensor(targets.apply(table.y[rows.train]), dtype=torch.float32).reshape(-1, 1)
        test_y = torch.as_tensor(table.y[rows.test], dtype=torch.float64)
        return Data(x, y, test_x, test_y, float(np.std(table.y[rows.train])), float(np.mean(table.y[rows.train])))


def network(data: Data, seed: int) -> nn.Sequential:
    """The network, the same first weights for every method."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(data.x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


class Ours:
    """A method of the package.

    Args:
        data: The rows.
        method: With its learning rate.
        seed: Of weights and noise.
    """

    def __init__(self, data: Data, method: Method, seed: int) -> None:
        task = Regression(NOISE_STD**-2)
        self.vi = Variational(
            network(data, seed), method=method, task=task, num_data=len(data.x), prior=Prior(1.0), num_samples=SAMPLES, seed=seed
        )
        self._rate = self.vi.lr

    def step(self, x: Tensor, y: Tensor, factor: float) -> None:
        """One step at a share of the first learning rate."""
        self.vi.set_lr(self._rate * factor)
        self.vi.step(x, y)

    def kl(self) -> float:
        """``KL(q || prior)``."""
        return float(self.vi.posterior.kl(self.vi.prior))

    def outputs(self, x: Tensor, samples: int) -> Tensor:
        """Outputs ``[samples, N, 1]`` at posterior samples, from a generator of their own."""
        generator = torch.Generator().manual_seed(1)
        found = []
        for _ in range(samples):
            with self.vi.sample_weights(generator), torch.no_grad():
                found.append(self.vi.model(x))
        return torch.stack(found)


class Backprop:
    """Bayes by backprop as Pyro has it.

    Args:
        data: The rows.
        guide: Makes the autoguide.
        elbo: Class of the objective.
        lr: First learning rate of Adam.
        seed: Of weights and noise.
    """

    def __init__(self, data: Data, guide: Callable[..., Any], elbo: Callable[..., Any], lr: float, seed: int) -> None:
        pyro.clear_param_store()
        self._net, self._count = network(data, seed), len(data.x)
        self._values = {name: p.detach().clone() for name, p in self._net.named_parameters()}
        pyro.set_rng_seed(seed)
        self._guide = guide(self._model, init_scale=FIRST_STD, init_loc_fn=lambda site: self._values[site["name"]])
        self._guide(data.x, data.y)  # makes its parameters
        self._factor = 1.0
        optimizer = pyro.optim.PyroLRScheduler(
            torch.optim.lr_scheduler.LambdaLR,
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}, "lr_lambda": lambda _: self._factor},
        )
        self._optimizer = optimizer
        inference: Any = SVI
        self._svi = inference(self._model, self._guide, optimizer, elbo(num_particles=SAMPLES))

    def _model(self, x: Tensor, y: Tensor) -> None:
        weights = {}
        for name, value in self._values.items():
            prior: Any = dist.Normal(torch.zeros_like(value), 1.0)
            weights[name] = pyro.sample(name, prior.to_event(value.dim()))
        mean = torch.func.functional_call(self._net, weights, (x,))
        with pyro.plate("rows", self._count, subsample_size=len(x), dim=-2):
            pyro.sample("obs", dist.Normal(mean, NOISE_STD), obs=y)

    def step(self, x: Tensor, y: Tensor, factor: float) -> None:
        """One step at a share of the first learning rate."""
        self._factor = factor
        if self._optimizer.optim_objs:
            self._optimizer.step()
        self._svi.step(x, y)

    def _normals(self) -> list[tuple[Tensor, Tensor]]:
        if isinstance(self._guide, AutoDiagonalNormal):
            return [(_get(self._guide, "loc").detach(), _get(self._guide, "scale").detach())]
        named = self._values
        return [(_get(self._guide.locs, name).detach(), _get(self._guide.scales, name).detach()) for name in named]

    def kl(self) -> float:
        """``KL(q || prior)``."""
        return sum(float((s.square() + m.square() - 1 - 2 * s.log()).sum()) / 2 for m, s in self._normals())

    @torch.no_grad()
    def outputs(self, x: Tensor, samples: int) -> Tensor:
        """Outputs ``[samples, N, 1]`` at posterior samples, from a generator of their own."""
        generator, found = torch.Generator().manual_seed(1), []
        shapes = [v.shape for v in self._values.values()]
        for _ in range(samples):
            drawn = [m + s * torch.empty_like(m).normal_(generator=generator) for m, s in self._normals()]
            flat = torch.cat([d.flatten() for d in drawn]).split([shape.numel() for shape in shapes])
            values = {name: part.reshape(shape) for name, part, shape in zip(self._values, flat, shapes, strict=True)}
            found.append(torch.func.functional_call(self._net, values, (x,)))
        return torch.stack(found)


def _get(module: Any, name: str) -> Tensor:
    value: Tensor = functools.reduce(getattr, name.split("."), module)
    return value


def build(name: str, data: Data, lr: float, seed: int) -> Ours | Backprop:
    """A contender by name."""
    if name == "pyro_diagonal":
        return Backprop(data, AutoDiagonalNormal, Trace_ELBO, lr, seed)
    if name == "pyro_mean_field":
        return Backprop(data, AutoNormal, TraceMeanField_ELBO, lr, seed)
    first = (FIRST_STD**-2 - 1) / len(data.x)
    methods: Mapping[str, Callable[[], Method]] = {
        "vadam": lambda: Vadam(lr, betas=(0.9, 0.99), initial_curvature=first),
        "vogn": lambda: VOGN(lr, decay=0.9, damping=1e-3, initial_curvature=first),
        "noisy_adam": lambda: NoisyAdam(lr, decay=0.99, damping=1e-3, initial_curvature=first, step=KLTrustRegion(RADIUS)),
    }
    return Ours(data, methods[name](), seed)
