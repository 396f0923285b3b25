"""Every situation of `_situations`, against the dense Fisher of the whole computation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, Fisher, KLTrustRegion, NaturalGradient, Periodic, Preconditioner
from natgrad_apps.blocks import Block
from natgrad_apps.curvature import Curvature
from natgrad_apps.errors import UnsupportedLayerError, UnsupportedLayerWarning
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint
from tests._dense import Recorder, categorical_root, fisher, jacobian, kfac_factors, to_matrix
from tests._feed import factors
from tests.robustness._situations import EXACT, FALLBACK, Setup, convolution_called_on_two_sizes, module_called_twice

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

Make = Callable[[], Setup]
DRAWS = 250
Z = 5.0  # two-sided probability 6e-7 for each of at most about 700 entries

situations = pytest.mark.parametrize("make", [*EXACT, *FALLBACK], ids=lambda m: m.__name__)
fallbacks = pytest.mark.parametrize("make", FALLBACK, ids=lambda m: m.__name__)
exact = pytest.mark.parametrize("make", EXACT, ids=lambda m: m.__name__)


def expecting(setup: Setup) -> AbstractContextManager[Any]:
    """The one warning of a fallback situation; exact situations warn of nothing (warnings are errors)."""
    return pytest.warns(UnsupportedLayerWarning) if setup.fallback else contextlib.nullcontext()


def truth(setup: Setup, block: Block) -> Tensor:
    """The dense Fisher of the parameters of a block, from autograd Jacobians of the whole computation: ``[*K, D, D]``."""
    outputs = (setup.plain or setup.run)()
    parts = iter(jacobian(outputs, block.parameters))
    if block.layer is None:
        matrix = next(parts).flatten(1)
    else:
        weight, bias = (None if p is None else next(parts) for p in (block.layer.weight, block.layer.bias))
        matrix = to_matrix(block.layer.modules[0], weight, bias, lead=1).flatten(-2, -1)
    return fisher(matrix.reshape(-1, outputs.shape[-1], *matrix.shape[1:]), categorical_root(outputs))


@pytest.mark.usefixtures("float64")
@situations
def test_layers_have_the_dense_fisher(make: Make) -> None:
    setup = make()
    preconditioner = Preconditioner(setup.model, Exact(), fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    with expecting(setup) as caught:
        setup.feed(preconditioner)
    preconditioner.update()
    if setup.fallback:
        assert len(caught) == 1
        message = str(caught[0].message)
        assert all(name in message for name in setup.fallback)
    bare = {name for name, block in preconditioner.blocks.items() if block.layer is None}
    assert bare == set(setup.fallback)
    for block in preconditioner.blocks.values():
        if block.layer is None or setup.coupled:
            continue
        if any(p is q for p in block.parameters for n, q in setup.model.named_parameters() if n in setup.unused):
            assert not block.state.moments
            continue
        torch.testing.assert_close(block.state.moments["F"], truth(setup, block), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("float64")
@fallbacks
def test_fallback_is_the_dense_diagonal_in_expectation(make: Make) -> None:
    setup = make()
    preconditioner = Preconditioner(setup.model, KFAC(), fisher=Fisher("exact"), refresh=Periodic(inverse_period=10**9))
    draws: dict[str, list[Tensor]] = {name: [] for name in setup.fallback}
    with expecting(setup):
        for _ in range(DRAWS):
            for block in preconditioner.blocks.values():
                block.state.count.zero_()  # the next batch replaces the average
            setup.feed(preconditioner)
            preconditioner.update()
            for name, found in draws.items():
                found.append(preconditioner.blocks[name].state.moments["diagonal"].flatten().clone())
    for name, found in draws.items():
        expected = truth(setup, preconditioner.blocks[name]).diagonal()
        stacked = torch.stack(found)
        bound = Z * stacked.std(0) / DRAWS**0.5 + 1e-10
        error = (stacked.mean(0) - expected).abs()
        assert (error <= bound).all(), f"{name}: {(Z * error / bound).max().item():.1f} standard errors"


@fallbacks
def test_strict_makes_the_fallback_an_error(make: Make) -> None:
    setup = make()
    preconditioner = Preconditioner(setup.model, KFAC(), strict=True)
    with pytest.raises(UnsupportedLayerError, match=setup.fallback[0].replace(".", r"\.")):
        setup.feed(preconditioner)


CURVATURES: list[Curvature] = [KFAC(), EKFAC(), Diagonal(), Exact()]


@situations
@pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
def test_training_moves_every_parameter_that_is_used(make: Make, curvature: Curvature) -> None:
    """Five steps with sampled targets and gradients set to None between them: everything used moves, the loss falls, the rest stays."""
    setup = make()
    optimizer = NaturalGradient(setup.model, curvature, damping=0.1, step=KLTrustRegion(0.05), lr=0.5, momentum=0.5)
    y = torch.randint(2, (len(setup.run()),))
    before = {name: p.detach().clone() for name, p in setup.model.named_parameters()}
    losses = []
    with expecting(setup):
        for _ in range(5):
            setup.feed(optimizer.preconditioner)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(setup.run(), y)
            loss.backward()
            info = optimizer.step()
            assert not info.skipped
            losses.append(loss.item())
    assert F.cross_entropy(setup.run(), y).item() < losses[0]
    unused = {n.replace("_orig_mod.", "") for n in setup.unused}
    for name, p in setup.model.named_parameters():
        assert p.isfinite().all()
        moved = not torch.equal(p, before[name])
        assert moved == (p.requires_grad and name.replace("_orig_mod.", "") not in unused), name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("make", [module_called_twice, convolution_called_on_two_sizes], ids=lambda m: m.__name__)
def test_calls_count_as_further_positions_of_kronecker_factors(make: Make, sharing: str) -> None:
    setup = make()
    preconditioner = Preconditioner(setup.model, KFAC(), fisher=Fisher("exact", sharing=sharing))
    setup.feed(preconditioner)
    preconditioner.update()
    module = next(iter(setup.model.children()))
    recorder = Recorder(_Run(setup), torch.empty(0), [module])
    a, g = recorder.inputs(module), recorder.gradients(module, categorical_root(recorder.outputs))
    expected = kfac_factors(a, g, len(recorder.outputs), reduce=sharing == "reduce")
    for actual, matrix in zip(factors(preconditioner, next(iter(preconditioner.blocks))), expected, strict=True):
        torch.testing.assert_close(actual, matrix, rtol=1e-10, atol=1e-12)


class _Run(nn.Module):
    """Ignores its argument and runs a setup."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup

    def forward(self, _: Tensor) -> Tensor:
        return self.setup.run()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
def test_one_module_that_two_heads_reach_through_different_calls(curvature: Curvature) -> None:
    """A shared encoder: the first head depends on the first call only, the second head on both; the columns must not be mixed up."""
    encoder, classify, regress = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(8, 2)
    model = nn.ModuleDict({"encoder": encoder, "classify": classify, "regress": regress})
    x, z = torch.randn(6, 3), torch.randn(6, 3)

    def run() -> tuple[Tensor, Tensor]:
        first, second = encoder(x).tanh(), encoder(z).tanh()
        return classify(first), regress(torch.cat([first, second], 1))

    preconditioner = Preconditioner(model, curvature, fisher=Fisher("exact"))
    with preconditioner.capture():
        logits, mean = run()
        preconditioner.observe(Joint(Categorical(logits), Gaussian(mean)))
    preconditioner.update()
    logits, mean = run()
    F_encoder = torch.zeros(16, 16)
    for outputs, root in ((logits, categorical_root(logits)), (mean, torch.eye(2).expand(6, -1, -1))):
        matrix = to_matrix(encoder, *_two(jacobian(outputs, [encoder.weight, encoder.bias])), lead=1).flatten(-2, -1)
        F_encoder += fisher(matrix.reshape(6, -1, 16), root)
    state = preconditioner.blocks["encoder"].state
    if isinstance(curvature, Exact):
        torch.testing.assert_close(state.moments["F"], F_encoder, rtol=1e-10, atol=1e-12)
    elif isinstance(curvature, Diagonal):
        torch.testing.assert_close(state.moments["diagonal"].flatten(), F_encoder.diagonal(), rtol=1e-10, atol=1e-12)
    elif isinstance(curvature, EKFAC):
        torch.testing.assert_close(state.moments["s"].sum(), F_encoder.trace(), rtol=1e-10, atol=1e-12)
    else:
        a = torch.cat([x, z])
        a = torch.cat([a, torch.ones(12, 1)], 1)
        torch.testing.assert_close(state.moments["A0"], a.mT @ a / 12, rtol=1e-10, atol=1e-12)


def _two(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    first, second = parts
    return first, second


@pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
def test_bf16_autocast_agrees_with_float32(curvature: Curvature) -> None:
    """bf16 has 8 bits: entries agree to a few per cent of the largest. Statistics stay in float32, and the step is taken."""
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(64, 1, 3, 3), torch.randint(3, (64,))
    moments = []
    for enabled in (False, True):
        optimizer = NaturalGradient(model, curvature, damping=0.1, fisher="exact", lr=0.0, refresh=Periodic(inverse_period=1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            with optimizer.capture():
                logits = model(x)
                optimizer.observe(Categorical(logits))
            loss = F.cross_entropy(logits, y)
        assert logits.dtype == (torch.bfloat16 if enabled else torch.float32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moments.append({name: block.state.moments for name, block in optimizer.preconditioner.blocks.items()})
    for name, wide in moments[0].items():
        for key, expected in wide.items():
            actual = moments[1][name][key]
            assert actual.dtype == torch.float32
            if key != "s":  # in the eigenbasis of other factors
                assert (actual - expected).abs().max() < 0.03 * expected.abs().max()
    if isinstance(curvature, EKFAC):
        assert moments[1]["0"]["s"].sum().item() == pytest.approx(moments[0]["0"]["s"].sum().item(), rel=0.03)


def test_compiled_models_stay_compiled_and_are_not_compiled_again() -> None:
    """Inside `capture` the forward runs eagerly; where statistics are not due, and outside it, the graph that was compiled once is used."""
    import torch._dynamo.testing

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    fast = torch.compile(model, backend=counter)
    assert isinstance(fast, nn.Module)
    optimizer = NaturalGradient(fast, KFAC(), damping=0.1, refresh=Periodic(statistics_period=2))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    names = list(fast.state_dict())
    calls = []
    for _ in range(6):
        with optimizer.capture():
            logits = fast(x)
            optimizer.observe(Categorical(logits))
        calls.append(counter.frame_count)
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimizer.step()
    assert calls == [0, 1, 1, 1, 1, 1]
    assert list(fast.state_dict()) == names
