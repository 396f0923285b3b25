"""The scale of the factors: B copies of one datum under a mean loss, for every kind of layer.

With one position ``trace(A) trace(G) = |gradient of one example|^2``. With S positions the approximations drop or merge cross terms, so the
product is ``(sum_s |a_s|^2 / S)(sum_s |g_s|^2)`` for expand and ``|mean_s a_s|^2 |sum_s g_s|^2`` for reduce; for S = 1 all three agree.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, Diagonal, Exact, Fisher, Periodic, Preconditioner
from natgrad_apps.likelihoods import Categorical
from tests._dense import Recorder, categorical_root
from tests._feed import factors, feed

pytestmark = pytest.mark.usefixtures("float64")

Make = Callable[[], tuple[nn.Module, list[int]]]
LAYERS: dict[str, Make] = {
    "linear": lambda: (nn.Linear(4, 3), [4]),
    "linear_no_bias": lambda: (nn.Linear(4, 3, bias=False), [4]),
    "linear_sequence": lambda: (nn.Linear(4, 3), [5, 4]),
    "linear_grid": lambda: (nn.Linear(4, 3), [2, 3, 4]),
    "conv1d": lambda: (nn.Conv1d(2, 3, 3, stride=2, padding=1), [2, 7]),
    "conv2d": lambda: (nn.Conv2d(2, 3, 3, padding=1), [2, 4, 5]),
    "conv2d_one_location": lambda: (nn.Conv2d(2, 3, (4, 5)), [2, 4, 5]),
    "conv2d_same_dilated": lambda: (nn.Conv2d(2, 3, 3, padding="same", dilation=2, bias=False), [2, 5, 5]),
    "conv2d_circular": lambda: (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), [2, 4, 4]),
    "conv2d_grouped": lambda: (nn.Conv2d(4, 6, 2, groups=2), [4, 3, 3]),
    "conv2d_depthwise": lambda: (nn.Conv2d(3, 3, 2, groups=3, bias=False), [3, 3, 3]),
    "conv3d": lambda: (nn.Conv3d(2, 2, 2), [2, 3, 3, 2]),
}


def build(name: str, batch: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A network that starts with the layer, the layer, copies of one example, and their label."""
    layer, shape = LAYERS[name]()
    x = torch.randn(1, *shape)
    with torch.no_grad():
        width = layer(x).numel()
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 4))
    return model, layer, x.repeat(batch, *([1] * len(shape))), torch.full((batch,), 2)


def traces(matrix: Tensor) -> Tensor:
    """Trace of the matrix of every group, ``[K]`` or ``[1]``."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1).reshape(-1)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_factors_of_copies_of_one_datum(name: str, sharing: str, batch: int) -> None:
    model, layer, x, y = build(name, batch)
    preconditioner = feed(Preconditioner(model, KFAC(), fisher=Fisher("empirical", sharing=sharing)), model, x, Categorical, y)
    A, G = factors(preconditioner, "0")
    product = traces(A) * traces(G)

    recorder = Recorder(model, x[:1], [layer])
    score = (torch.nn.functional.one_hot(y[:1], 4) - recorder.outputs.softmax(-1)).detach().unsqueeze(-1)
    a, g = recorder.inputs(layer).squeeze(-3), recorder.gradients(layer, score)[0].squeeze(-3)  # [*K, S, d]
    positions = a.shape[-2]
    if sharing == "expand":
        expected = (a.square().sum((-2, -1)) / positions) * g.square().sum((-2, -1))
    else:
        expected = a.mean(-2).square().sum(-1) * g.sum(-2).square().sum(-1)
    torch.testing.assert_close(product, expected.reshape(-1), rtol=1e-12, atol=1e-14)

    if positions == 1:
        loss = nn.functional.cross_entropy(model(x), y)  # the mean over copies of one example is that example
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        squared = sum(gradient.square().sum() for gradient in gradients)
        torch.testing.assert_close(product.sum(), squared, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_trace_of_the_exact_block_is_the_squared_gradient(name: str, batch: int) -> None:
    """Also with several positions: the exact block and the diagonal keep the cross terms."""
    model, layer, x, y = build(name, batch)
    loss = nn.functional.cross_entropy(model(x), y)
    squared = sum(gradient.square().sum() for gradient in torch.autograd.grad(loss, list(layer.parameters())))
    assert isinstance(squared, Tensor)
    exact = feed(Preconditioner(model, Exact(), fisher=Fisher("empirical")), model, x, Categorical, y)
    torch.testing.assert_close(traces(exact.blocks["0"].state.moments["F"]).sum(), squared, rtol=1e-10, atol=1e-14)
    diagonal = feed(Preconditioner(model, Diagonal(), fisher=Fisher("empirical")), model, x, Categorical, y)
    torch.testing.assert_close(diagonal.blocks["0"].state.moments["diagonal"].sum(), squared, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "conv2d_one_location", "conv2d_grouped"])
def test_exact_kind_sums_over_the_columns(name: str) -> None:
    model, layer, x, _ = build(name, 8)
    _, G = factors(feed(Preconditioner(model, KFAC(), fisher=Fisher("exact")), model, x, Categorical), "0")
    recorder = Recorder(model, x[:1], [layer])
    g = recorder.gradients(layer, categorical_root(recorder.outputs))
    torch.testing.assert_close(traces(G), g.square().sum((0, -3, -2, -1)).reshape(-1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
def test_scale_does_not_depend_on_the_batch_size(kind: str) -> None:
    """The same examples twice in the batch give the same factors (for Monte Carlo: the same expectation, with the z-bound of 400 draws)."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(5, 3)
    y = torch.randint(3, (5,))

    def moments(copies: int, count: int) -> Tensor:
        preconditioner = Preconditioner(model, KFAC(), fisher=Fisher(kind), refresh=Periodic(inverse_period=10**9))
        targets = y.repeat(copies) if kind == "empirical" else None
        found = []
        for _ in range(count):
            preconditioner.blocks["0"].state.count.zero_()  # the next batch replaces the average
            found.append(factors(feed(preconditioner, model, x.repeat(copies, 1), Categorical, targets), "0")[1].clone())
        return torch.stack(found)

    if kind != "mc":
        torch.testing.assert_close(moments(1, 1), moments(6, 1), rtol=1e-12, atol=1e-14)
        return
    once, often = moments(1, 400), moments(6, 400)
    error = once.mean(0) - often.mean(0)
    bound = 5 * (once.var(0) / 400 + often.var(0) / 400).sqrt()
    assert (error.abs() <= bound).all()
    # the variance of a mean over six times as many terms is six times smaller: 400 draws estimate the ratio to about 10 %
    assert 4 < (once.var(0).sum() / often.var(0).sum()).item() < 9
