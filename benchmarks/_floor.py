"""The flop floor of a K-FAC step: the matrix products and factorizations it cannot do without, timed alone on the same machine.

With ``F`` the statistics period, ``I`` the inverse period and all times in units of one SGD step (forward, backward, update),

    floor = 1 + (factor_A + factor_G + backward) / F + factorize / I + precondition

| piece | what is timed, for every layer with weight matrix ``[d_out, d_in]`` (bias included), ``N`` examples and ``S`` positions |
|---|---|
| ``factor_A`` | one general product ``X^T X``, ``X: [R, d_in]``; ``R = N S`` with *expand*, ``R = N`` with *reduce* |
| ``factor_G`` | one general product ``X^T X``, ``X: [R, d_out]`` |
| ``backward`` | Monte-Carlo Fisher only: one `torch.autograd.grad` from the sampled log-likelihood to the layers' outputs only |
| ``factorize`` | a Cholesky factorization and the inverse from it, for each of the two factors |
| ``precondition`` | two products, ``G^-1 V A^-1`` |

The operands lie ready in memory: no patches are extracted, nothing is averaged, damped, copied or called through Python hooks. It is a
floor for implementations that use general products on the whole minibatch. One that exploits symmetry, the overlap of patches, or fewer
examples, can pass it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._models import Workload, weight_layers
from benchmarks._timing import median_time


@dataclass(frozen=True)
class Floor:
    """Seconds of each piece, and of one SGD step."""

    sgd: float
    factor_A: dict[str, float]
    factor_G: dict[str, float]
    backward: float
    factorize: float
    precondition: float

    def ratio(self, statistics_period: int, inverse_period: int, *, sharing: str = "expand", monte_carlo: bool = True) -> float:
        """The floor as a ratio to SGD."""
        statistics_cost = self.factor_A[sharing] + self.factor_G[sharing] + (self.backward if monte_carlo else 0.0)
        return 1.0 + (statistics_cost / statistics_period + self.factorize / inverse_period + self.precondition) / self.sgd

    def as_dict(self) -> dict[str, float | dict[str, float]]:
        """For the JSON report, in seconds."""
        return asdict(self)


class FloorTimer:
    """Times the pieces for one workload; `measure` is called once a round, so that the pieces are interleaved with everything else."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._device = workload.setting.device
        self._shapes = workload.layer_shapes()
        self._times: dict[str, list[float]] = {}

    def measure(self, repeats: int = 3) -> None:
        """Time every piece once more."""
        generator = torch.Generator(self._device).manual_seed(0)

        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, device=self._device)

        for sharing in ("expand", "reduce"):
            for factor in ("d_in", "d_out"):
                # One layer at a time: the patches of all layers together would not fit in any cache, those of one may.
                total = 0.0
                for shape in self._shapes:
                    rows = shape.units * (shape.positions if sharing == "expand" else 1)
                    x = normal(rows, getattr(shape, factor))
                    total += self._time(lambda x=x: x.mT @ x, repeats)  # type: ignore[misc]
                self._add(f"{factor}:{sharing}", total)
        self._add("precondition", sum(self._precondition(s.d_out, s.d_in, normal, repeats) for s in self._shapes))
        self._add("factorize", sum(self._factorize(size, normal, repeats) for s in self._shapes for size in (s.d_in, s.d_out)))
        self._add("backward", self._backward(repeats))

    def result(self, sgd: float) -> Floor:
        """Medians over the rounds, given the seconds of one SGD step in the same rounds."""
        median = {name: statistics.median(times) for name, times in self._times.items()}
        return Floor(
            sgd=sgd,
            factor_A={sharing: median[f"d_in:{sharing}"] for sharing in ("expand", "reduce")},
            factor_G={sharing: median[f"d_out:{sharing}"] for sharing in ("expand", "reduce")},
            backward=median["backward"],
            factorize=median["factorize"],
            precondition=median["precondition"],
        )

    def _time(self, action: Callable[[], object], repeats: int) -> float:
        return median_time(action, self._device, repeats)

    def _add(self, name: str, seconds: float) -> None:
        self._times.setdefault(name, []).append(seconds)

    def _precondition(self, d_out: int, d_in: int, normal: Callable[[int, int], Tensor], repeats: int) -> float:
        left, vector, right = normal(d_out, d_out), normal(d_out, d_in), normal(d_in, d_in)
        return self._time(lambda: left @ vector @ right, repeats)

    def _factorize(self, size: int, normal: Callable[[int, int], Tensor], repeats: int) -> float:
        x = normal(size, size)
        matrix = x @ x.mT / size + torch.eye(size, device=self._device)
        return self._time(lambda: torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0]), repeats)

    def _backward(self, repeats: int) -> float:
        workload, model = self._workload, self._workload.model()
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs.append(output)

        for layer in weight_layers(model):
            layer.register_forward_hook(keep)
        x, _ = workload.batches[0]
        with workload.setting.autocast():
            prediction = model(x)
            log_likelihood = sampled_log_likelihood(prediction, workload.family)
        return self._time(lambda: torch.autograd.grad(log_likelihood, outputs, retain_graph=True), repeats)


def sampled_log_likelihood(prediction: Tensor, family: str) -> Tensor:
    """Sum over the minibatch of ``log p(y | prediction)`` with ``y`` drawn from the prediction."""
    detached = prediction.detach().float()
    if family == "gaussian":
        return -0.5 * (prediction - (detached + torch.randn_like(detached))).square().sum()
    return -F.cross_entropy(prediction, torch.distributions.Categorical(logits=detached).sample(), reduction="sum")
