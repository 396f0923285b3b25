"""Kronecker factors against curvlinops, an independent implementation, on random networks.

Its conventions: mean-reduced losses; factors ``A`` as here, ``G`` with the Hessian of the loss. Cross-entropy is the same in both.
The mean squared error over ``E`` outputs has the Hessian ``2/E`` where the Gaussian likelihood of unit scale has 1. For its empirical
Fisher it multiplies that loss by ``sqrt(E)``, so a gradient has ``2/sqrt(E)`` times the residual, and the factor ``4/E``.
"""

from __future__ import annotations

from itertools import pairwise

import curvlinops
import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, Fisher, Preconditioner
from natgrad_apps.likelihoods import Categorical, Gaussian
from tests._feed import factors, feed

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised inside that package and its dependencies
]

TYPES = {"exact": "type-2", "empirical": "empirical", "forward_only": "forward-only"}


class Tokens(nn.Module):
    """A network whose outputs ``[N, T, C]`` are one term for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def random_mlp() -> tuple[nn.Module, Tensor]:
    widths = [int(w) for w in torch.randint(2, 9, (4,))]
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        layers += [nn.Linear(inner, outer, bias=bool(i % 2)), nn.ReLU() if i % 2 else nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 5)), torch.randn(11, widths[0])


def random_cnn() -> tuple[nn.Module, Tensor]:
    channels = [int(c) for c in torch.randint(1, 5, (3,))]
    kernel, stride, padding = (int(torch.randint(low, high, ())) for low, high in ((1, 4), (1, 3), (0, 2)))
    body = nn.Sequential(
        nn.Conv2d(channels[0], channels[1], kernel, stride=stride, padding=padding),
        nn.ReLU(),
        nn.Conv2d(channels[1], channels[2], 2, padding="same", dilation=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
    )
    x = torch.randn(9, channels[0], 6, 5)
    with torch.no_grad():
        width = body(x).shape[1]
    return nn.Sequential(*body, nn.Linear(width, 5)), x


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [random_mlp, random_cnn])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", sorted(TYPES))
@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
def test_factors_agree(make: object, sharing: str, kind: str, loss: str, seed: int) -> None:
    torch.manual_seed(seed)
    assert callable(make)
    model, x = make()
    classes = loss == "cross_entropy"
    targets = torch.randint(5, (len(x),)) if classes else torch.randn(len(x), 5)
    theirs = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss() if classes else nn.MSELoss(),
        list(model.parameters()),
        [(x, targets)],
        check_deterministic=False,
        fisher_type=TYPES[kind],
        kfac_approx=sharing,
        separate_weight_and_bias=False,
    )
    theirs.compute_kronecker_factors()
    mine = Preconditioner(model, KFAC(), fisher=Fisher(kind, sharing=sharing))
    feed(mine, model, x, Categorical if classes else Gaussian, targets if kind == "empirical" else None)
    scale = 1.0 if classes else {"exact": 2 / 5, "empirical": 4 / 5, "forward_only": 1.0}[kind]
    for name in mine.blocks:
        A, G = factors(mine, name)
        torch.testing.assert_close(A, theirs._input_covariances[name], rtol=1e-10, atol=1e-12)
        if kind != "forward_only":
            torch.testing.assert_close(scale * G, theirs._gradient_covariances[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_factors_agree_with_a_term_for_each_token(kind: str) -> None:
    model, x = Tokens(), torch.randn(6, 5, 4)
    targets = torch.randint(3, (6, 5))

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = model

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.tokens(x).movedim(-1, 1)  # classes first, as the cross-entropy of torch wants them
            return y

    theirs = curvlinops.KFACLinearOperator(
        Flat(),
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, targets)],
        check_deterministic=False,
        fisher_type=TYPES[kind],
        separate_weight_and_bias=False,
    )
    theirs.compute_kronecker_factors()
    mine = feed(Preconditioner(model, KFAC(), fisher=Fisher(kind)), model, x, Categorical, targets if kind == "empirical" else None)
    for name in mine.blocks:
        A, G = factors(mine, name)
        torch.testing.assert_close(A, theirs._input_covariances[f"tokens.{name}"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(G, theirs._gradient_covariances[f"tokens.{name}"], rtol=1e-10, atol=1e-12)
