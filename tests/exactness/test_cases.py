"""Cases in which an approximation is exact, against dense Jacobians, and relations between approximations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, Fisher, Periodic, Preconditioner, Tikhonov
from natgrad_apps.curvature import Curvature
from natgrad_apps.likelihoods import Categorical, Gaussian, Likelihood
from tests._dense import Root, block_diagonal, categorical_root, fisher_block, gaussian_root
from tests._feed import dense, feed

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
Head = tuple[Callable[[Tensor], Likelihood], Callable[[Tensor], Root]]
CLASSES: Head = (Categorical, categorical_root)
REGRESSION: Head = (lambda y: Gaussian(y, scale=0.5), lambda y: gaussian_root(y, 0.5))


def undamped(
    model: nn.Module, x: Tensor, curvature: Curvature, head: Head, *, kind: str = "exact", sharing: str = "expand"
) -> dict[str, Tensor]:
    """The undamped dense form of every block."""
    refresh = Periodic(inverse_period=1)
    preconditioner = Preconditioner(model, curvature, damping=Tikhonov(LAMBDA), fisher=Fisher(kind, sharing=sharing), refresh=refresh)
    feed(preconditioner, model, x, head[0])
    matrices = {name: dense(preconditioner, name) for name in preconditioner.blocks}
    return {name: m - LAMBDA * torch.eye(len(m)) for name, m in matrices.items()}


def truth(model: nn.Module, x: Tensor, head: Head) -> dict[str, Tensor]:
    """The exact Fisher block of every layer of a sequential model."""
    outputs = model(x)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    return {name: block_diagonal(fisher_block(outputs, layer, head[1](outputs))) for name, layer in layers.items()}


def assert_exact(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, matrix in expected.items():
        torch.testing.assert_close(actual[name], matrix, rtol=1e-10, atol=1e-10)


class Last(nn.Module):
    """Channels last: every position of a feature map becomes a term."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class Mean(nn.Module):
    """Mean over the positions, which are all dimensions but the first and the given one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.channels, -1).reshape(x.shape[0], -1, x.shape[self.channels]).mean(1)


every_kronecker = pytest.mark.parametrize("curvature", [KFAC(), EKFAC()], ids=["kfac", "ekfac"])
with_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])


@every_kronecker
@with_bias
def test_one_linear_layer_with_a_gaussian(curvature: Curvature, bias: bool) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3, bias=bias)), torch.randn(9, 4)
    assert_exact(undamped(model, x, curvature, REGRESSION), truth(model, x, REGRESSION))


@every_kronecker
@pytest.mark.parametrize("head", [CLASSES, REGRESSION], ids=["classes", "regression"])
def test_one_example(curvature: Curvature, head: Head) -> None:
    """One example and one position: the block is a Kronecker product, whatever the network."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.Sigmoid(), nn.Linear(3, 3))
    x = torch.randn(1, 4)
    assert_exact(undamped(model, x, curvature, head), truth(model, x, head))


@every_kronecker
def test_one_example_through_a_convolution_with_one_output_position(curvature: Curvature) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(1, 2, 3, 3)
    assert_exact(undamped(model, x, curvature, CLASSES), truth(model, x, CLASSES))


@with_bias
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_with_one_output_position(bias: bool, groups: int) -> None:
    """The patch is the whole input and the output gradient does not depend on it: K-FAC of a linear layer on patches."""
    model = nn.Sequential(nn.Conv2d(2, 4, (2, 3), groups=groups, bias=bias), nn.Flatten())
    x = torch.randn(9, 2, 2, 3)
    expected = truth(model, x, REGRESSION)
    assert_exact(undamped(model, x, KFAC(), REGRESSION), expected)
    assert_exact(undamped(model, x, EKFAC(), REGRESSION), expected)


@with_bias
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda b: nn.Conv1d(2, 3, 3, stride=2, padding=1, bias=b), [4, 2, 7]),
        (lambda b: nn.Conv2d(2, 3, (1, 3), padding="same", dilation=(1, 2), bias=b), [4, 2, 4, 5]),
        (lambda b: nn.Conv2d(4, 4, 2, groups=2, bias=b), [4, 4, 3, 3]),
        (lambda b: nn.Conv3d(2, 2, 2, bias=b), [3, 2, 3, 3, 2]),
    ],
    ids=["conv1d", "conv2d_same_dilated", "conv2d_grouped", "conv3d"],
)
def test_convolution_with_a_term_for_each_position(make: Callable[[bool], nn.Module], shape: list[int], bias: bool) -> None:
    """Output gradients of different positions belong to different terms: white over positions, independent of the patches."""
    model, x = nn.Sequential(make(bias), Last()), torch.randn(shape)
    assert_exact(undamped(model, x, KFAC(), REGRESSION), truth(model, x, REGRESSION))


@with_bias
def test_deep_linear_network_with_a_term_for_each_position(bias: bool) -> None:
    """Expand is exact (Eschenhagen et al. 2023, section 3.2): the gradient at a position is the same for every example and position."""
    model = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Linear(5, 3, bias=bias), nn.Linear(3, 2, bias=bias))
    x = torch.randn(4, 3, 4)
    assert_exact(undamped(model, x, KFAC(), REGRESSION), truth(model, x, REGRESSION))
    reduced = undamped(model, x, KFAC(), REGRESSION, sharing="reduce")
    assert any((reduced[name] - matrix).norm() > 0.05 * matrix.norm() for name, matrix in truth(model, x, REGRESSION).items())


@with_bias
def test_deep_linear_network_with_pooled_outputs(bias: bool) -> None:
    """Reduce is exact (Eschenhagen et al. 2023, section 3.3), for every Kronecker curvature and for the diagonal; expand is not."""
    model = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Linear(5, 3, bias=bias), nn.Linear(3, 2, bias=bias), Mean(-1))
    x = torch.randn(6, 3, 4)
    expected = truth(model, x, REGRESSION)
    assert_exact(undamped(model, x, KFAC(), REGRESSION, sharing="reduce"), expected)
    assert_exact(undamped(model, x, EKFAC(), REGRESSION, sharing="reduce"), expected)
    assert_exact(undamped(model, x, Exact(), REGRESSION, sharing="reduce"), expected)
    diagonal = undamped(model, x, Diagonal(), REGRESSION, sharing="reduce")
    assert_exact(diagonal, {name: torch.diag(m.diagonal()) for name, m in expected.items()})
    expanded = undamped(model, x, KFAC(), REGRESSION)
    assert all((expanded[name] - matrix).norm() > 0.05 * matrix.norm() for name, matrix in expected.items())


@with_bias
def test_deep_linear_convolutions_with_pooled_outputs(bias: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2, bias=bias), nn.Conv2d(3, 4, 1, bias=bias), nn.Conv2d(4, 2, 1, bias=bias), Mean(1))
    x = torch.randn(6, 2, 3, 3)
    assert_exact(undamped(model, x, KFAC(), REGRESSION, sharing="reduce"), truth(model, x, REGRESSION))


def nonlinear_networks() -> list[tuple[nn.Module, Tensor]]:
    mlp = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    cnn = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    grouped = nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    return [(mlp, torch.randn(12, 4)), (cnn, torch.randn(12, 1, 4, 4)), (grouped, torch.randn(12, 2, 3))]


@pytest.mark.parametrize("index", range(3), ids=["mlp", "cnn", "grouped"])
def test_order_of_the_approximations(index: int) -> None:
    """In Frobenius norm EKFAC is never further from the Fisher than K-FAC; both are worse than the exact blocks; traces as stated."""
    model, x = nonlinear_networks()[index]
    expected = truth(model, x, CLASSES)
    exact, ekfac, kfac = (undamped(model, x, c, CLASSES) for c in (Exact(), EKFAC(), KFAC()))
    strictly = False
    for name, F in expected.items():
        errors = [(approximation[name] - F).norm().item() for approximation in (exact, ekfac, kfac)]
        assert errors[0] < 1e-10
        for nearer, further in pairwise(errors):
            assert nearer <= further + 1e-10
        strictly = strictly or errors[1] < 0.99 * errors[2]
        # diag(Q^T F Q) has the trace of F; the Kronecker product has it only if |a| and |g| are uncorrelated
        assert torch.trace(ekfac[name]).item() == pytest.approx(torch.trace(F).item(), rel=1e-10)
    assert strictly


@pytest.mark.parametrize("index", range(3), ids=["mlp", "cnn", "grouped"])
def test_ekfac_is_the_best_diagonal_in_its_basis(index: int) -> None:
    """The error is orthogonal to every matrix that is diagonal in the basis; K-FAC's eigenvalues are one such diagonal."""
    model, x = nonlinear_networks()[index]
    expected = truth(model, x, CLASSES)
    ekfac, kfac = (undamped(model, x, c, CLASSES) for c in (EKFAC(), KFAC()))
    for name, F in expected.items():
        error = F - ekfac[name]
        assert abs((error * kfac[name]).sum().item()) < 1e-10
        assert abs((error * ekfac[name]).sum().item()) < 1e-10
