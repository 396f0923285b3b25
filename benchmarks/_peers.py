"""Adapters for other K-FAC packages, each driven as its own documentation drives it, all with the same network, data and loss.

An adapter is a `Contender`. Packages are imported when an adapter is made, so that one that is missing costs a line of the table and no
more.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks._models import Workload
from benchmarks._timing import Contender

MOMENTUM = 0.9
DAMPING = 0.1
"""Of the pi-split kind, for BackPACK's loop, curvlinops and the package's own rows."""


@dataclass(frozen=True)
class Periods:
    """How often the curvature is renewed, in steps.

    Attributes:
        statistics: Steps between two estimates of the factors.
        inverse: Steps between two inversions, a multiple of `statistics`.
    """

    statistics: int
    inverse: int

    def __str__(self) -> str:
        return f"{self.statistics}/{self.inverse}"


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    Attributes:
        name: Label.
        make: Builds the contender.
        install: How to get the package.
        supports: Whether the adapter has this configuration.
    """

    name: str
    make: Callable[[Workload, Periods], Contender]
    install: str
    supports: Callable[[Workload, Periods], bool] = lambda workload, periods: True


def _rate(workload: Workload, autoencoder: float, cnn: float) -> float:
    """Learning rate at which this contender's loss falls, found by trying powers of ten."""
    return autoencoder if workload.name == "autoencoder" else cnn


class SGD:
    """The baseline: `torch.optim.SGD` with momentum."""

    def __init__(self, workload: Workload) -> None:
        self._workload, self._stream = workload, workload.stream()
        self.model = workload.model()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=_rate(workload, 0.3, 0.03), momentum=MOMENTUM)

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        with self._workload.setting.autocast():
            loss: Tensor = self._workload.loss(self.model(x), target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Asdl:
    """``asdl.KfacGradientMaker`` with its Monte-Carlo or empirical Fisher (Osawa et al. 2023); it replaces forward and backward."""

    def __init__(self, workload: Workload, periods: Periods, fisher: str) -> None:
        _stub_nvtx()
        with _their_warnings():
            from asdl import precondition  # noqa: PLC0415

        self._workload, self._stream = workload, workload.stream()
        self.model = workload.model()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=_rate(workload, 3e-3, 0.03), momentum=MOMENTUM)
        config = precondition.PreconditioningConfig(
            data_size=workload.batch_size,
            damping=1.0,
            ema_decay=0.05,
            curvature_upd_interval=periods.statistics,
            preconditioner_upd_interval=periods.inverse,
        )
        loss_type = "mse" if workload.family == "gaussian" else "cross_entropy"
        with _their_warnings():
            self._maker = precondition.KfacGradientMaker(self.model, config, fisher_type=fisher, loss_type=loss_type)

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        output = self._maker.setup_model_call(self.model, x)
        self._maker.setup_loss_call(self._workload.loss, output, target)
        self._optimizer.zero_grad()
        with self._workload.setting.autocast():
            _, loss = self._maker.forward_and_backward()
        self._optimizer.step()
        assert isinstance(loss, Tensor)
        return loss.detach()


class Backpack:
    """BackPACK's ``KFAC(mc_samples=1)`` factors (Dangel et al. 2020) with the shortest sensible loop round them.

    BackPACK computes factors and leaves averaging, damping, inverses and the update to the user; here: exponential averages, pi-split
    damping, Cholesky inverses. Its bias blocks ``G`` are inverted once, together with the weight's.
    """

    def __init__(self, workload: Workload, periods: Periods) -> None:
        with _their_warnings():
            from backpack import backpack, extend, extensions  # noqa: PLC0415

        self._context, self._kfac = backpack, extensions.KFAC
        self._workload, self._periods, self._stream = workload, periods, workload.stream()
        self.model = extend(workload.model())
        self._loss = extend(workload.loss.__class__())
        self._layers = [m for m in self.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=_rate(workload, 0.1, 1e-3), momentum=MOMENTUM)
        self._averages: dict[nn.Module, list[Tensor]] = {}
        self._inverses: dict[nn.Module, list[Tensor]] = {}
        self._count = 0

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        due = self._count % self._periods.statistics == 0
        with self._workload.setting.autocast():
            loss: Tensor = self._loss(self.model(x), target)
        self._optimizer.zero_grad()
        with self._context(self._kfac(mc_samples=1)) if due else contextlib.nullcontext():
            loss.backward()
        with torch.no_grad():
            for layer in self._layers:
                weight = layer.weight
                assert isinstance(weight, Tensor)
                if due:
                    self._accumulate(layer, [factor.detach() for factor in weight.kfac])  # type: ignore[attr-defined]
                if self._count % self._periods.inverse == 0:
                    G, A = self._averages[layer]
                    self._inverses[layer] = damped_inverses(G, A, DAMPING)
                self._precondition(layer)
        self._optimizer.step()
        self._count += 1
        return loss.detach()

    def _accumulate(self, layer: nn.Module, new: list[Tensor]) -> None:
        old = self._averages.get(layer)
        self._averages[layer] = new if old is None else [a.mul_(0.95).add_(b, alpha=0.05) for a, b in zip(old, new, strict=True)]

    def _precondition(self, layer: nn.Module) -> None:
        G_inverse, A_inverse = self._inverses[layer]
        for parameter in layer.parameters():
            gradient = parameter.grad
            assert gradient is not None
            product = G_inverse @ gradient.reshape(gradient.shape[0], -1)
            parameter.grad = (product if gradient.ndim == 1 else product @ A_inverse).reshape(gradient.shape)


class Curvlinops:
    """``curvlinops.KFACLinearOperator`` and its inverse (Dangel et al. 2025); factors take a forward and a backward pass of their own."""

    def __init__(self, workload: Workload, periods: Periods, sharing: str) -> None:
        with _their_warnings():
            import curvlinops  # noqa: PLC0415

        self._library = curvlinops
        self._workload, self._periods, self._stream, self._sharing = workload, periods, workload.stream(), sharing
        self.model = workload.model()
        self._parameters = list(self.model.parameters())
        self._optimizer = torch.optim.SGD(self._parameters, lr=_rate(workload, 0.1, 1e-3), momentum=MOMENTUM)
        self._averages: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._count = 0

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        if self._count % self._periods.statistics == 0:
            self._factors(x, target)
        with self._workload.setting.autocast():
            loss: Tensor = self._workload.loss(self.model(x), target)
        self._optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self._parameters]
        with torch.no_grad():
            for parameter, direction in zip(self._parameters, self._inverse @ gradients, strict=True):
                parameter.grad = direction
        self._optimizer.step()
        self._count += 1
        return loss.detach()

    def _factors(self, x: Tensor, target: Tensor) -> None:
        operator = self._library.KFACLinearOperator(
            self.model,
            self._workload.loss,
            self._parameters,
            [(x, target)],
            fisher_type="mc",
            kfac_approx=self._sharing,
            check_deterministic=False,
            separate_weight_and_bias=False,
            num_data=x.shape[0],
            num_per_example_loss_terms=1,
            seed=self._count,
        )
        with self._workload.setting.autocast():
            operator.compute_kronecker_factors()
        # The library keeps no running average; its factors are averaged in place and put back.
        for average, factors in zip(self._averages, (operator._input_covariances, operator._gradient_covariances), strict=True):
            for name, factor in factors.items():
                factors[name] = average[name] = average[name].mul_(0.95).add_(factor, alpha=0.05) if name in average else factor
        if self._count % self._periods.inverse == 0:
            self._inverse = self._library.KFACInverseLinearOperator(operator, damping=DAMPING, use_heuristic_damping=True)


class Singd:
    """``singd.SINGD``, dense (Lin et al. 2024): empirical Fisher, no inverses; ``T`` is the period of its preconditioner."""

    def __init__(self, workload: Workload, periods: Periods, sharing: str) -> None:
        with _their_warnings():
            from singd.optim.optimizer import SINGD  # noqa: PLC0415

        self._workload, self._stream = workload, workload.stream()
        self.model = workload.model()
        rate = _rate(workload, 1.0, 0.03)
        self._optimizer = SINGD(
            self.model, lr=rate, momentum=MOMENTUM, damping=1e-2, T=periods.statistics, kfac_approx=sharing, lr_cov=1e-2
        )

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        with self._workload.setting.autocast():
            loss: Tensor = self._workload.loss(self.model(x), target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def peers() -> list[Peer]:
    """The peers, most important first."""
    asdl, singd = "pip install --pre asdfghjkl", "pip install singd"
    # SINGD has one period T for everything: T = 1 stands at 1/1, T = 10 at 10/100.
    return [
        Peer("asdl KFAC, MC", lambda w, p: Asdl(w, p, "fisher_mc"), asdl),
        Peer("BackPACK KFAC, MC, own loop", Backpack, "pip install backpack-for-pytorch"),
        Peer("asdl KFAC, empirical", lambda w, p: Asdl(w, p, "fisher_emp"), asdl),
        Peer("curvlinops KFAC, MC", lambda w, p: Curvlinops(w, p, "expand"), "pip install curvlinops-for-pytorch"),
        Peer("SINGD, empirical", lambda w, p: Singd(w, p, "expand"), singd, lambda w, p: p != Periods(1, 10)),
        Peer("SINGD reduce, empirical", lambda w, p: Singd(w, p, "reduce"), singd, lambda w, p: w.name == "cnn" and p != Periods(1, 10)),
    ]


def damped_inverses(G: Tensor, A: Tensor, damping: float) -> list[Tensor]:
    """``(G + sqrt(damping) / pi)^-1`` and ``(A + pi sqrt(damping))^-1`` (Martens and Grosse 2015, section 6.3)."""
    mean_A, mean_G = A.diagonal().mean(), G.diagonal().mean()
    pi = (mean_A / mean_G.clamp_min(1e-30)).sqrt()
    inverses = []
    for factor, amount in ((G, math.sqrt(damping) / pi), (A, math.sqrt(damping) * pi)):
        damped = factor.clone()
        damped.diagonal().add_(amount)
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(damped)))
    return inverses


def _stub_nvtx() -> None:
    """Make NVTX ranges do nothing on a build without CUDA: asdl opens them unconditionally and would fail."""
    if not torch.cuda.is_available():

        @contextlib.contextmanager
        def no_range(*arguments: object, **options: object) -> Iterator[None]:
            del arguments, options
            yield

        torch.cuda.nvtx.range = no_range


@contextlib.contextmanager
def _their_warnings() -> Iterator[None]:
    """Hide deprecation warnings of packages that are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
