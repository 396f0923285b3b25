"""Recurrent layers against dense Jacobians: what is exact for sequences of every length, and what for a single step only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, Fisher, Preconditioner, Tikhonov
from natgrad_apps.curvature import Curvature
from natgrad_apps.likelihoods import Categorical, Gaussian
from tests._dense import categorical_root, fisher, full_jacobian, gaussian_root
from tests._feed import dense, feed

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
NETWORKS: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(2, 3),
    "lstm-deep": lambda: nn.LSTM(2, 2, num_layers=2, bidirectional=True),
    "lstm-projected": lambda: nn.LSTM(2, 3, proj_size=2),
    "gru": lambda: nn.GRU(2, 3),
    "rnn": lambda: nn.RNN(2, 3, num_layers=2),
}
every_network = pytest.mark.parametrize("kind", NETWORKS)


class Reader(nn.Module):
    """Classes or means from the last output of a sequence ``[T, N, d]``."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear((2 if recurrent.bidirectional else 1) * (recurrent.proj_size or recurrent.hidden_size), 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.recurrent(x)[0][-1])
        return outputs


def truth(model: Reader, x: Tensor) -> dict[str, Tensor]:
    """The exact Fisher block of every matrix, in the order of the canonical form: rows, then columns with the bias last."""
    outputs = model(x)
    found = {}
    for name, weight in model.recurrent.named_parameters():
        if not name.startswith("weight"):
            continue
        bias = getattr(model.recurrent, name.replace("weight", "bias"), None)
        jac = full_jacobian(outputs, [weight] if bias is None else [weight, bias])
        parts = [jac[..., : weight.numel()].unflatten(-1, weight.shape)]
        parts += [] if bias is None else [jac[..., weight.numel() :].unsqueeze(-1)]
        root = gaussian_root(outputs, 0.5) if model.head.out_features == 1 else categorical_root(outputs)
        found[f"recurrent.{name.removeprefix('weight_')}"] = fisher(torch.cat(parts, -1).flatten(-2), root)
    return found


def undamped(model: Reader, x: Tensor, curvature: Curvature) -> dict[str, Tensor]:
    likelihood = (lambda y: Gaussian(y, scale=0.5)) if model.head.out_features == 1 else Categorical
    preconditioner = feed(Preconditioner(model, curvature, damping=Tikhonov(LAMBDA), fisher=Fisher("exact")), model, x, likelihood)
    matrices = {name: dense(preconditioner, name) for name in preconditioner.blocks if name != "head"}
    return {name: matrix - LAMBDA * torch.eye(len(matrix)) for name, matrix in matrices.items()}


@every_network
def test_exact_blocks_hold_the_cross_terms_of_all_steps(kind: str) -> None:
    model, x = Reader(NETWORKS[kind]()), torch.randn(4, 5, 2)
    expected = truth(model, x)
    actual = undamped(model, x, Exact())
    assert set(actual) == set(expected)
    for name, block in expected.items():
        # float64, sums of 5 sequences, 4 steps and 2 columns
        torch.testing.assert_close(actual[name], block, rtol=1e-10, atol=1e-12)


@every_network
def test_the_diagonal_is_that_of_the_exact_block(kind: str) -> None:
    model, x = Reader(NETWORKS[kind]()), torch.randn(4, 5, 2)
    actual = undamped(model, x, Diagonal())
    for name, block in truth(model, x).items():
        torch.testing.assert_close(actual[name].diagonal(), block.diagonal(), rtol=1e-10, atol=1e-12)


@every_network
@pytest.mark.parametrize("curvature", [KFAC(), EKFAC()], ids=["kfac", "ekfac"])
def test_one_step_of_one_sequence_is_a_kronecker_product(kind: str, curvature: Curvature) -> None:
    """With one step and one sequence ``F = (sum_c g_c g_c^T) (x) a a^T``: nothing is taken for independent."""
    model, x = Reader(NETWORKS[kind]()), torch.randn(1, 1, 2)
    actual = undamped(model, x, curvature)
    for name, block in truth(model, x).items():
        torch.testing.assert_close(actual[name], block, rtol=1e-10, atol=1e-12)
