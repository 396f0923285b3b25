"""The package's own rows: which options each one has, the contender that trains with them, and the error of sub-sampled factors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._models import Workload
from benchmarks._peers import DAMPING, MOMENTUM, Periods
from natgrad_apps import EKFAC, KFAC, FactoredTikhonov, Fisher, KLTrustRegion, NaturalGradient, Periodic, Plain, Subsample, Tikhonov
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.damping.base import Damping
from natgrad_apps.likelihoods import Categorical, Gaussian, Likelihood
from natgrad_apps.steps.base import StepRule


def learning_rate(workload: Workload) -> float:
    """A rate at which the loss falls, so that the run shows that the steps work; no tuning."""
    if workload.family == "gaussian":
        # The loss is a mean over pixels, the likelihood a sum over them: the gradient is 2 / pixels times that of -log p.
        return 0.005 * workload.batches[0][1].shape[1] / 2
    return 0.001


@dataclass(frozen=True)
class Row:
    """One configuration of `NaturalGradient`.

    Attributes:
        name: Label.
        periods: Statistics and inverse periods.
        curvature: Approximation.
        damping: Rule; a factored one makes K-FAC use Cholesky inverses.
        step: Step rule.
        fisher: Fisher estimate.
        has_floor: Whether the flop floor of `_floor.py` is that of this configuration.
    """

    name: str
    periods: Periods
    curvature: Curvature = field(default_factory=KFAC)
    damping: Damping = field(default_factory=lambda: FactoredTikhonov(DAMPING))
    step: StepRule = field(default_factory=Plain)
    fisher: Fisher = field(default_factory=Fisher)
    has_floor: bool = True

    @property
    def subsampled(self) -> bool:
        """Whether statistics come from a part of the minibatch."""
        return self.fisher.subsample != Subsample()


class Ours:
    """`NaturalGradient` in the loop of the documentation."""

    def __init__(self, workload: Workload, row: Row) -> None:
        self._workload, self._empirical, self._stream = workload, row.fisher.kind == "empirical", workload.stream()
        self.model = workload.model()
        self.optimizer = NaturalGradient(
            self.model,
            row.curvature,
            damping=row.damping,
            step=row.step,
            refresh=Periodic(row.periods.statistics, row.periods.inverse),
            fisher=row.fisher,
            lr=learning_rate(workload),
            momentum=MOMENTUM,
        )

    def step(self) -> Tensor:
        """One step."""
        x, target = next(self._stream)
        with self.optimizer.capture():
            with self._workload.setting.autocast():
                output = self.model(x)
                loss: Tensor = self._workload.loss(output, target)
            self.optimizer.observe(likelihood(output, self._workload.family), *([target] if self._empirical else []))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @property
    def skipped(self) -> int:
        """Steps that were refused because a gradient or a statistic was not finite."""
        return int(self.optimizer.preconditioner.skipped_steps)


def likelihood(output: Tensor, family: str) -> Likelihood:
    """The likelihood that belongs to the workload's loss, in float32 under autocast too."""
    return Gaussian(output.float()) if family == "gaussian" else Categorical(output.float())


def main_rows(workload: Workload) -> list[Row]:
    """The rows that have a bar."""
    rows = []
    for periods in (Periods(1, 10), Periods(1, 1), Periods(10, 100)):
        rows.append(Row("K-FAC", periods))
        if workload.name == "cnn":
            rows.append(Row("K-FAC reduce", periods, fisher=Fisher("mc", sharing="reduce")))
    return rows


def extra_rows(workload: Workload) -> list[Row]:
    """Other members of the family, at 1/10."""
    base = Row("", Periods(1, 10), has_floor=False)
    return [
        replace(base, name="K-FAC, empirical", fisher=Fisher("empirical")),
        replace(base, name="K-FAC, KL trust region", step=KLTrustRegion(1e-2)),
        replace(base, name="K-FAC, exact Tikhonov (eigh)", damping=Tikhonov(DAMPING)),
        replace(base, name="EKFAC", curvature=EKFAC(), damping=Tikhonov(DAMPING)),
    ]


def subsampled_rows(workload: Workload) -> list[Row]:
    """Statistics from a part of the minibatch, at 1/10."""
    strides = [(2, 1), (4, 1)] if workload.name == "autoencoder" else [(4, 1), (4, 4)]
    rows = []
    for units, positions in strides:
        share = " ".join([f"1/{units} of the examples"] * (units > 1) + [f"1/{positions} of the positions"] * (positions > 1))
        rows.append(Row(f"K-FAC, {share}", Periods(1, 10), fisher=Fisher("mc", subsample=Subsample(units, positions)), has_floor=False))
    return rows


@dataclass(frozen=True)
class FactorError:
    """Relative Frobenius error ``||X_sub - X|| / ||X||`` of the factors of one minibatch, over the layers.

    Attributes:
        mean_A: Mean over layers for the input factors.
        max_A: Largest.
        mean_G: Mean over layers for the gradient factors.
        max_G: Largest.
    """

    mean_A: float
    max_A: float
    mean_G: float
    max_G: float


def factor_error(workload: Workload, row: Row) -> FactorError:
    """Error of the row's factors against those of the whole minibatch with the *same sampled targets*, the mean over the minibatches.

    Both networks are the same and both generators start from the same seed, and a Monte-Carlo sample is drawn for every example whether
    or not it is used afterwards; so the difference is due to the sub-sample alone.
    """
    whole = replace(row, fisher=replace(row.fisher, subsample=Subsample()))
    found: dict[str, list[list[float]]] = {"A": [], "G": []}
    errors = [_moments(workload, version) for version in (row, whole)]
    for part, full in zip(*errors, strict=True):
        for letter, values in found.items():
            values.append([float((part[n] - full[n]).norm() / full[n].norm()) for n in full if n[1].startswith(letter)])
    A, G = (torch.tensor(found[letter]).mean(0) for letter in "AG")
    return FactorError(float(A.mean()), float(A.max()), float(G.mean()), float(G.max()))


def _moments(workload: Workload, row: Row) -> list[dict[tuple[str, str], Tensor]]:
    """The factors of each minibatch alone, by block and name of the moment."""
    model, result = workload.model(), []
    for i, (x, _) in enumerate(workload.batches):
        options: dict[str, Any] = {"refresh": Periodic(1, 1), "fisher": replace(row.fisher, seed=i)}
        optimizer = NaturalGradient(model, row.curvature, damping=row.damping, **options)
        core = optimizer.preconditioner
        with core.capture():
            core.observe(likelihood(model(x), workload.family))
        core.update()
        result.append({(name, key): value for name, block in core.blocks.items() for key, value in block.state.moments.items()})
    return result
