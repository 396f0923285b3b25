"""What every curvature promises, for everything that the folder holds, every damping and every kind of layer."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.curvature import available
from natgrad_apps.damping import Damping
from natgrad_apps.damping.levenberg_marquardt import LevenbergMarquardt
from natgrad_apps.damping.tikhonov import FactoredTikhonov, Tikhonov
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.preconditioner import Preconditioner
from natgrad_apps.statistics import Fisher
from tests._dense import dense_power
from tests._feed import dense, feed

LAMBDA = 0.0625  # exact in binary
DAMPINGS: list[Damping] = [Tikhonov(LAMBDA), FactoredTikhonov(LAMBDA), LevenbergMarquardt(LAMBDA)]

LayerCase = Callable[[], tuple[nn.Module, Tensor]]


def linear() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 3), torch.randn(7, 4)


def linear_without_bias() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 3, bias=False), torch.randn(7, 4)


def linear_on_sequences() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 3), torch.randn(5, 2, 4)


def wide_linear() -> tuple[nn.Module, Tensor]:
    """One row fewer than columns in each batch, which makes the average of the two batches regular."""
    return nn.Linear(5, 3), torch.randn(5, 5)


def conv2d() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(2, 3, 2, stride=2), torch.randn(5, 2, 4, 4)


def conv2d_without_bias() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(1, 3, 2, padding=1, bias=False), torch.randn(5, 1, 2, 2)


def grouped_conv2d() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(4, 4, 2, groups=2), torch.randn(5, 4, 3, 3)


LAYERS: list[LayerCase] = [linear, linear_without_bias, linear_on_sequences, wide_linear, conv2d, conv2d_without_bias, grouped_conv2d]

contract = pytest.mark.parametrize("name", sorted(available()))
damped = pytest.mark.parametrize("damping", DAMPINGS, ids=lambda d: type(d).__name__)
layered = pytest.mark.parametrize("case", LAYERS, ids=lambda c: c.__name__)


def logits(output: Tensor) -> Categorical:
    """Classes are the outputs of a layer; the positions are pooled into one term for each unit."""
    flat = output.flatten(2).mean(2) if output.ndim == 4 else output.mean(1) if output.ndim == 3 else output
    return Categorical(flat)


def build(
    name: str, damping: Damping, case: LayerCase, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Preconditioner, nn.Module, Tensor]:
    """A refreshed preconditioner over one layer, with two batches in its averages."""
    torch.manual_seed(1)
    layer, x = case()
    model, x = nn.Sequential(layer).to(dtype), x.to(dtype)
    preconditioner = Preconditioner(
        model, name, damping=damping, fisher=Fisher("exact"), refresh={"name": "periodic", "inverse_period": 1}, **options
    )
    feed(preconditioner, model, x, logits)
    feed(preconditioner, model, 0.5 * x + 0.1, logits)
    return preconditioner, model, x


def vector_of(preconditioner: Preconditioner) -> Tensor:
    spec = preconditioner.blocks["0"].spec
    return torch.randn(spec.shape, dtype=spec.dtype)


def apply(preconditioner: Preconditioner, v: Tensor, power: float) -> Tensor:
    return preconditioner.multiply_power({"0": v}, power)["0"]


@contract
@damped
@layered
def test_dense_form_is_symmetric_positive_definite(name: str, damping: Damping, case: LayerCase) -> None:
    matrix = dense(build(name, damping, case)[0], "0")
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-14)
    # every damping adds at least lambda to every eigenvalue: (G + gamma/pi)(A + pi gamma) >= gamma^2
    assert torch.linalg.eigvalsh(matrix).min() >= LAMBDA * (1 - 1e-10)


@contract
@damped
@layered
@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0])
def test_powers_equal_dense_powers(name: str, damping: Damping, case: LayerCase, power: float) -> None:
    preconditioner = build(name, damping, case)[0]
    v = vector_of(preconditioner)
    expected = (dense_power(dense(preconditioner, "0"), power) @ v.flatten()).reshape(v.shape)
    # float64; condition numbers are below 1e3
    torch.testing.assert_close(apply(preconditioner, v, power), expected, rtol=1e-10, atol=1e-10)


@contract
@damped
@layered
def test_logdet_equals_dense_logdet(name: str, damping: Damping, case: LayerCase) -> None:
    preconditioner = build(name, damping, case)[0]
    actual = preconditioner.logdet()["0"]
    assert actual.ndim == 0
    torch.testing.assert_close(actual, torch.linalg.slogdet(dense(preconditioner, "0"))[1], rtol=1e-10, atol=1e-10)


def undamped(name: str, case: LayerCase) -> Tensor:
    """Tikhonov damping is exactly ``F + lambda I`` for every curvature."""
    matrix = dense(build(name, Tikhonov(LAMBDA), case)[0], "0")
    return matrix - LAMBDA * torch.eye(len(matrix), dtype=matrix.dtype)


@contract
@damped
@layered
def test_quadratic_is_the_undamped_form(name: str, damping: Damping, case: LayerCase) -> None:
    preconditioner = build(name, damping, case)[0]
    v = vector_of(preconditioner)
    actual = preconditioner.quadratic({"0": v})["0"]
    assert actual.ndim == 0
    torch.testing.assert_close(actual, v.flatten() @ undamped(name, case) @ v.flatten(), rtol=1e-10, atol=1e-12)


@contract
def test_damping_is_not_rounded_below_the_precision_of_the_statistics(name: str) -> None:
    """0.05 has no exact float32: rounding it shifts every eigenvalue by 7e-10, more than the 1e-10 that float64 statistics promise."""
    traces = [torch.trace(dense(build(name, Tikhonov(value), linear)[0], "0")) for value in (0.05, 0.1)]
    torch.testing.assert_close(traces[1] - traces[0], torch.tensor(0.05 * 15, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@contract
@damped
@layered
def test_spectrum_bounds_are_the_extreme_eigenvalues_of_the_undamped_form(name: str, damping: Damping, case: LayerCase) -> None:
    low, high = build(name, damping, case)[0].spectrum()
    values = torch.linalg.eigvalsh(undamped(name, case))
    # the smallest eigenvalue may be zero; products of rounded zeros are good to eps times the largest
    torch.testing.assert_close(torch.stack([low, high]), torch.stack([values.min(), values.max()]), rtol=1e-8, atol=1e-12)


@contract
@damped
@layered
def test_state_survives_saving(name: str, damping: Damping, case: LayerCase) -> None:
    preconditioner, model, x = build(name, damping, case)
    buffer = io.BytesIO()
    torch.save(preconditioner.state_dict(), buffer)
    buffer.seek(0)
    restored = Preconditioner(model, name, damping=damping, fisher=Fisher("exact"), refresh={"name": "periodic", "inverse_period": 1})
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    v = vector_of(preconditioner)
    for power in (-1.0, -0.5, 1.0):
        assert torch.equal(apply(preconditioner, v, power), apply(restored, v, power))
    assert torch.equal(preconditioner.logdet()["0"], restored.logdet()["0"])
    for one in (preconditioner, restored):
        feed(one, model, 2 * x, logits)
    assert torch.equal(apply(preconditioner, v, -1.0), apply(restored, v, -1.0))
    assert torch.equal(preconditioner.quadratic({"0": v})["0"], restored.quadratic({"0": v})["0"])


@contract
@damped
@layered
def test_float32_agrees_with_float64(name: str, damping: Damping, case: LayerCase) -> None:
    single, double = build(name, damping, case, torch.float32)[0], build(name, damping, case)[0]
    v = vector_of(double)
    for power in (-1.0, -0.5, 0.5, 1.0):
        actual = apply(single, v.float(), power)
        assert actual.dtype == torch.float32
        # float32 eps 6e-8 times a condition number below 1e3, relative to the largest entry
        expected = apply(double, v, power)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=3e-4 * expected.abs().max().item())


@contract
@damped
def test_same_seed_gives_the_same_bits(name: str, damping: Damping) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
        preconditioner = feed(Preconditioner(model, name, damping=damping, fisher=Fisher("mc", seed=9)), model, x, logits)
        results.append(apply(preconditioner, torch.ones(3, 5), -1.0))
    assert torch.equal(results[0], results[1])


def zero_inputs() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 3), torch.zeros(7, 4)


def zero_inputs_without_bias() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 3, bias=False), torch.zeros(7, 4)


def one_example() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 3), torch.randn(1, 4)


def saturated() -> tuple[nn.Module, Tensor]:
    """Probabilities of 0 and 1 in floating point: every gradient is zero."""
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([2000.0, 0.0, 0.0]))
    return layer, torch.randn(7, 4)


@contract
@damped
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [zero_inputs, zero_inputs_without_bias, one_example, saturated], ids=lambda c: c.__name__)
def test_singular_statistics_give_a_finite_state(name: str, damping: Damping, case: LayerCase, dtype: torch.dtype) -> None:
    preconditioner, _, _ = build(name, damping, case, dtype)
    v = vector_of(preconditioner)
    state = preconditioner.blocks["0"].state
    for tensor in (*state.moments.values(), *state.cache.values()):
        assert tensor.isfinite().all()
    for power in (-1.0, -0.5, 0.5, 1.0):
        assert apply(preconditioner, v, power).isfinite().all()
    assert preconditioner.logdet()["0"].isfinite()
    # (F + lambda I)^-1 is at most 1/lambda
    assert apply(preconditioner, v, -1.0).norm() <= v.norm() / LAMBDA * (1 + 1e-3)


@contract
@damped
@layered
def test_inverse_undoes_the_product(name: str, damping: Damping, case: LayerCase) -> None:
    preconditioner = build(name, damping, case)[0]
    v = vector_of(preconditioner)
    torch.testing.assert_close(apply(preconditioner, apply(preconditioner, v, 1.0), -1.0), v, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        apply(preconditioner, apply(preconditioner, v, -0.5), -0.5), apply(preconditioner, v, -1.0), rtol=1e-10, atol=1e-10
    )


@contract
def test_averages_are_plain_means_at_first_and_exponential_later(name: str) -> None:
    """Weight of batch t: max(1 - decay, 1/t). With decay 0.6 the first two batches have equal weight, then 0.4 for the new one."""
    torch.manual_seed(2)
    layer = nn.Linear(3, 2, dtype=torch.float64)
    model = nn.Sequential(layer)
    batches = [torch.randn(6, 3, dtype=torch.float64) for _ in range(4)]
    spec = {"name": name, "decay": 0.6}
    # refreshed once only, so that the averages of a curvature that works in a basis stay in one basis
    options: dict[str, Any] = {"fisher": Fisher("exact"), "refresh": {"name": "periodic", "inverse_period": 100}}
    averaged = Preconditioner(model, spec, damping=Tikhonov(LAMBDA), **options)
    feed(averaged, model, batches[0], logits)
    start = averaged.state_dict()
    start = {k: v for k, v in torch.load(_saved(start), weights_only=True).items()}
    measured = []
    for batch in batches:
        single = Preconditioner(model, spec, damping=Tikhonov(LAMBDA), **options)
        single.load_state_dict(start)
        block = single.blocks["0"]
        single.blocks["0"].state.count.zero_()  # the next batch replaces the average
        feed(single, model, batch, logits)
        measured.append({k: v.clone() for k, v in block.state.moments.items()})
    for batch in batches[1:]:
        feed(averaged, model, batch, logits)
    weights = [1.0]
    for t in range(2, 5):
        new = max(1 - 0.6, 1 / t)
        weights = [w * (1 - new) for w in weights] + [new]
    assert math.isclose(sum(weights), 1.0)
    for key, value in averaged.blocks["0"].state.moments.items():
        expected = torch.stack([w * m[key] for w, m in zip(weights, measured, strict=True)]).sum(0)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def _saved(state: dict[str, Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer
