"""Training: limits that are other optimizers, exact resume, the sampling context, and bad input."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, FactoredTikhonov, NaturalGradient, Periodic
from natgrad_apps.bayes import (
    IVON,
    SLANG,
    VOGN,
    VON,
    Classification,
    DataSize,
    FullGaussian,
    NoisyAdam,
    NoisyEKFAC,
    NoisyKFAC,
    Prior,
    Regression,
    Vadam,
    Variational,
    Vprop,
)
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.errors import ConfigError, NonFiniteWarning
from natgrad_apps.likelihoods import Gaussian

pytestmark = pytest.mark.filterwarnings("ignore:.*have no layer adapter")
METHODS: list[Method] = [
    NoisyAdam(inverse_period=2),
    NoisyKFAC(inverse_period=2),
    NoisyEKFAC(inverse_period=2),
    Vadam(),
    Vprop(),
    VOGN(),
    FullGaussian(),
    SLANG(rank=2),
    IVON(),
    VON(),
]


def ids(method: Method) -> str:
    return type(method).__name__


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    return [(torch.randn(6, 3, generator=generator), torch.randn(6, generator=generator)) for _ in range(count)]


def build(method: Method, layers: Sequence[nn.Module] = (), **options: Any) -> Variational:
    torch.manual_seed(4)
    settings: dict[str, Any] = {"task": Regression(learn=True), "num_data": 30, "prior": Prior(learn=True), "num_samples": 3, **options}
    model = nn.Sequential(*map(copy.deepcopy, layers)) if layers else network()
    return Variational(model, method=method, **settings)


def values(vi: Variational) -> list[Tensor]:
    return [p.detach().clone() for p in vi.model.parameters()]


@pytest.mark.usefixtures("float64")
def test_noisy_kfac_without_noise_is_the_cores_kfac() -> None:
    """``lambda -> 0``: no noise, no prior, and the extrinsic damping is the core's damping."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    method = NoisyKFAC(lr=0.1, momentum=0.0, damping=0.03, decay=0.9, inverse_period=2, initial_batches=0)
    vi = Variational(models[0], method=method, task=Regression(), num_data=30, temperature=1e-30)
    optimizer = NaturalGradient(models[1], KFAC(decay=0.9), damping=FactoredTikhonov(0.03), refresh=Periodic(1, 2), lr=0.1, momentum=0.0)
    for x, y in batches(5):
        vi.step(x.double(), y.double())
        with optimizer.capture():
            likelihood = Gaussian(models[1](x.double()))
            optimizer.observe(likelihood)
        optimizer.zero_grad()
        (-likelihood.log_prob(y.double().unsqueeze(1)).mean()).backward()
        optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # noise of standard deviation below 1e-14, float64 rounding of five steps
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("float64")
def test_vadam_without_noise_and_prior_is_adam() -> None:
    """``gamma = lambda p / N = 1e-8`` stands for Adam's epsilon; the noise ``1/sqrt(p)`` and the prior's gradient ``gamma mu`` vanish."""
    precision = 1e24
    vi = build(Vadam(lr=0.05), task=Regression(), prior=Prior(precision), temperature=1e-8 * 30 / precision, num_samples=1)
    torch.manual_seed(4)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, eps=1e-8)
    for x, y in batches(20):
        vi.step(x.double(), y.double())
        optimizer.zero_grad()
        (-Gaussian(model(x.double())).log_prob(y.double().unsqueeze(1)).mean()).backward()
        optimizer.step()
    for p, q in zip(vi.model.parameters(), model.parameters(), strict=True):
        # gamma mu is 1e-8 of the weights, added to gradients of order 1e-2, over 20 steps of 0.05
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("samples", [1, 3])
def test_vadam_counts_squares_by_example_where_the_mean_gradient_vanishes(samples: int) -> None:
    """At the least-squares solution, without noise: the mean over all batches of two of ``M g^2`` is that of ``g_i^2``, but for pairs
    without replacement, whose mean has the variance ``(n - 2) / (n - 1) / 2`` of one with replacement."""
    n = 6
    x, y = torch.randn(n, 3), torch.randn(n, 1)
    rows = (x @ torch.linalg.lstsq(x, y).solution - y) * x
    found = {"example": torch.zeros(3), "batch": torch.zeros(3)}
    for squares, total in found.items():
        for pair in torch.combinations(torch.arange(n)):
            model = nn.Linear(3, 1, bias=False)
            model.weight.data = torch.linalg.lstsq(x, y).solution.mT.clone()
            method = Vadam(lr=0.0, betas=(0.0, 0.0), squares=squares)
            vi = Variational(model, method=method, task=Regression(), num_data=n, temperature=1e-30, num_samples=samples)
            vi.step(x[pair], y[pair])
            total += 1e-30 / n / vi.posterior.variances()["weight"].flatten() / (n * (n - 1) / 2)
    expected = rows.square().mean(0) * (n - 2) / (n - 1)
    # float64; gamma is 1e-31
    torch.testing.assert_close(found["example"], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found["batch"], expected / 2, rtol=1e-9, atol=0)


@pytest.mark.usefixtures("float64")
def test_vogn_has_true_squares_of_every_parameter() -> None:
    """Against one backward pass an example: convolution with bias, shared weights and normalization included."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv1d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Linear(6, 6)
            self.middle, self.head = nn.Linear(12, 4), nn.Linear(4, 1)
            self.read = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(self.linear(self.norm(self.conv(x))).tanh())
            h = self.read(self.middle(h.flatten(1)).tanh())
            outputs: Tensor = self.head(h @ self.read.weight)  # called, and read as well
            return outputs

    model = Shared()
    vi = Variational(model, method=VOGN(lr=0.0, decay=0.0), task=Regression(4.0), num_data=10, temperature=1e-30)
    x, y = torch.randn(5, 1, 6), torch.randn(5, 1)
    vi.step(x, y)
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(5):
        model.zero_grad()
        (2.0 * (model(x[i : i + 1]) - y[i]).square()).sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            squares[name] += p.grad.square() / 5
    precision = {name: 1 / v for name, v in vi.posterior.variances().items()}
    for name, square in squares.items():
        # N/lambda (s + lambda/N): the prior is 1 of 1e31 (s)
        torch.testing.assert_close(precision[name] * 1e-30 / 10, square + 1e-31, rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_resumed_run_is_bit_equal(method: Method) -> None:
    data = batches(7)
    through = build(method)
    for x, y in data:
        last = through.step(x, y)
    first = build(method)
    for x, y in data[:3]:
        first.step(x, y)
    saved = first.state_dict()
    for x, y in data[3:5]:  # a state dict must not follow what comes after it
        first.step(x, y)
    second = build(method, seed=1)
    second.load_state_dict(saved)
    assert second.steps == 3
    for x, y in data[3:]:
        resumed = second.step(x, y)
    assert torch.equal(resumed.nelbo, last.nelbo)
    assert all(torch.equal(a, b) for a, b in zip(values(through), values(second), strict=True))
    assert through.task.state_dict() == second.task.state_dict()
    assert all(torch.equal(v, second.prior.precision[n]) for n, v in through.prior.precision.items())


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_global_randomness_is_left_alone_and_the_seed_decides(method: Method) -> None:
    before = None
    results = []
    for seed in (0, 0, 1):
        vi = build(method, seed=seed)
        before = torch.get_rng_state()
        for x, y in batches(2):
            vi.step(x, y)
        with vi.sample_weights():
            results.append(values(vi))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_samples_inside_and_the_mean_outside() -> None:
    vi = build(NoisyKFAC())
    vi.step(*batches(1)[0])
    mean = values(vi)
    with vi.sample_weights(torch.Generator().manual_seed(0)):
        outer = values(vi)
        assert not torch.equal(outer[0], mean[0])
        assert torch.equal(vi.posterior.mean["0.weight"], mean[0]), "the posterior keeps its mean"
        with vi.sample_weights(torch.Generator().manual_seed(1)):
            assert not torch.equal(values(vi)[0], outer[0])
        assert all(torch.equal(a, b) for a, b in zip(values(vi), outer, strict=True))
        with pytest.raises(ConfigError, match="leave the context first"):
            vi.step(*batches(1)[0])
        with pytest.raises(ConfigError, match="leave the context first"):
            vi.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(values(vi), mean, strict=True))
    with pytest.raises(KeyError), vi.sample_weights(), vi.sample_weights():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(values(vi), mean, strict=True))
    with vi.sample_weights(torch.Generator().manual_seed(0)):
        assert all(torch.equal(a, b) for a, b in zip(values(vi), outer, strict=True))


def test_samples_differ_under_autocast() -> None:
    """Autocast keeps half-precision copies of the weights of linear layers, which must not outlive a sample."""
    vi = Variational(nn.Linear(3, 4), method=NoisyKFAC(), task=Classification(), num_data=6)
    x = torch.randn(4, 3)
    outputs = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for seed in range(2):
            with vi.sample_weights(torch.Generator().manual_seed(seed)):
                outputs.append(vi.model(x))
    assert not torch.equal(outputs[0], outputs[1])


def test_a_backward_pass_that_comes_too_late_is_an_error() -> None:
    """Its gradients would be those of other weights."""
    vi = build(NoisyKFAC())
    with vi.sample_weights():
        loss = vi.model(torch.randn(2, 3)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("method", [NoisyAdam(), NoisyKFAC(), NoisyEKFAC(), Vadam()], ids=ids)
def test_batch_normalization(method: Method) -> None:
    """Running statistics follow the training passes at sampled weights; prediction leaves no trace; gains are Bayesian."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    vi = Variational(model, method=method, task=Regression(), num_data=30, num_samples=2)
    vi.step(*batches(1)[0])
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 2, "once a sample"
    before = norm.running_mean.clone()
    with vi.sample_weights():
        model(torch.randn(5, 3))
        assert not torch.equal(norm.running_mean, before)
    assert torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 2
    assert float(vi.posterior.variances()["1.weight"].min()) > 0


@pytest.mark.parametrize("method", [VOGN(), FullGaussian(), SLANG(rank=2)], ids=ids)
@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(4), lambda: nn.Dropout(0.5)])
def test_per_example_methods_refuse_what_couples_examples(method: Method, layer: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), layer(), nn.Linear(4, 1))
    vi = Variational(model, method=method, task=Regression(), num_data=30)
    before = values(vi)
    with pytest.raises(ConfigError, match=r"per-example gradients are not defined with .* '1' in training mode"):
        vi.step(*batches(1)[0])
    assert all(torch.equal(a, b) for a, b in zip(values(vi), before, strict=True))
    model.eval()
    vi.step(*batches(1)[0])


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_failed_step_changes_nothing(method: Method) -> None:
    vi, twin = build(method), build(method)
    x, y = batches(1)[0]
    with pytest.raises(ConfigError, match="a regression target is NaN or infinite"):
        vi.step(x, torch.full_like(y, torch.nan))
    with pytest.raises(ConfigError, match="60 likelihood terms, more than num_data=30"):
        vi.step(x.repeat(10, 1), y.repeat(10))
    assert torch.equal(vi.step(x, y).nelbo, twin.step(x, y).nelbo)
    assert all(torch.equal(a, b) for a, b in zip(values(vi), values(twin), strict=True))


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.filterwarnings("ignore::natgrad_apps.errors.NonFiniteWarning")
def test_a_step_that_is_not_finite_is_skipped(method: Method) -> None:
    vi = build(method)
    x, y = batches(1)[0]
    vi.step(x, y)
    before = values(vi)
    assert vi.step(torch.full_like(x, torch.inf), y).skipped
    assert all(torch.equal(a, b) for a, b in zip(values(vi), before, strict=True))
    assert not vi.step(x, y).skipped
    assert NonFiniteWarning is not None


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, VON)], ids=ids)
def test_micro_batches_are_the_whole_batch(method: Method) -> None:
    """Six rows at once, and as 4 + 2; an exact Fisher and no bare parameters, where other random numbers would be drawn."""
    if hasattr(method, "fisher"):
        method = dataclasses.replace(method, fisher="exact")  # type: ignore[type-var]
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)]
    whole, parts = build(method, layers), build(method, layers)
    for i, (x, y) in enumerate(batches(4)):
        # EKFAC's first basis is that of the first rows it sees
        expected, found = whole.step(x.double(), y.double()), parts.step(x.double(), y.double(), micro_batch=4 if i else None)
        torch.testing.assert_close(found.nelbo, expected.nelbo, rtol=1e-9, atol=0)
    for p, q in zip(values(whole), values(parts), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)  # float64, sums of six rows


def test_micro_batches_that_cannot_be_cut() -> None:
    vi = build(Vadam())
    x, y = batches(1)[0]
    with pytest.raises(ConfigError, match=r"need inputs that are tensors with 6 rows, as many as targets, got \[5, 3\]"):
        vi.step(x[:5], y, micro_batch=2)
    with pytest.raises(ConfigError, match="micro_batch must be an integer >= 1, got 0"):
        vi.step(x, y, micro_batch=0)
    with pytest.raises(ConfigError, match="60 likelihood terms, more than num_data=30"):
        vi.step(x.repeat(10, 1), y.repeat(10), micro_batch=7)


def test_gradients_add_up_in_the_sampling_context() -> None:
    """`backward` on two halves at one sample leaves the gradient of the whole there, and the memory of the parameters where it was."""
    vi = build(NoisyKFAC())
    vi.step(*batches(1)[0])
    parameters = list(vi.model.parameters())
    x, addresses = torch.randn(6, 3), [p.data_ptr() for p in parameters]
    gradients = []
    for parts in ([x], [x[:2], x[2:]]):
        vi.model.zero_grad()
        with vi.sample_weights(torch.Generator().manual_seed(0)):
            for part in parts:
                vi.model(part).square().sum().backward()
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)  # float32, sums of six rows
    assert len(gradients[0]) == len(parameters)
    assert [p.data_ptr() for p in parameters] == addresses


class Recurrent(nn.Module):
    """Its last state's linear readout; inputs ``[N, T, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.gru(x)[0][:, -1])
        return outputs


@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, VON)], ids=ids)
def test_recurrent_layers(method: Method) -> None:
    vi = Variational(Recurrent(), method=method, task=Regression(), num_data=30)
    before = values(vi)
    for _ in range(2):
        info = vi.step(torch.randn(6, 5, 3), torch.randn(6))
    assert info.nelbo.isfinite()
    assert not info.skipped
    assert all(not torch.equal(a, b) for a, b in zip(values(vi), before, strict=True)), "every parameter learns"


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_autocast_is_for_the_model_only(method: Method) -> None:
    """The step of a half-precision forward pass is near that in full precision; posterior and averages stay in full precision."""
    x, y = batches(1)[0]
    plain, half = build(method), build(method)
    before, seen = torch.cat([v.flatten() for v in values(plain)]), []
    handle = next(half.model.children()).register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    plain.step(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half.step(x, y)
        assert half.posterior.sample()["0.weight"].dtype == torch.float32
    handle.remove()
    assert seen[0] == torch.bfloat16
    assert all(v.dtype == torch.float32 for v in half.posterior.variances().values())
    full, low = (torch.cat([v.flatten() for v in values(vi)]) for vi in (plain, half))
    # bfloat16 has 8 bits: an error of some percent in the gradients. (Autocast's own copies of the weights of another sample: 50%.)
    assert float((low - full).norm()) < 0.2 * float((full - before).norm())


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_unused_and_frozen_parameters(method: Method) -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(3, 1), nn.Linear(2, 2), nn.Linear(1, 1)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.frozen(self.used(x))
            return outputs

    model = Spare()
    frozen = model.frozen.weight.clone()
    vi = Variational(model, method=method, task=Regression(), num_data=30)
    for x, y in batches(3):
        info = vi.step(x, y)
    assert info.nelbo.isfinite()
    assert not info.skipped
    assert torch.equal(model.frozen.weight, frozen)
    assert "frozen.weight" not in vi.posterior.mean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_data": 0}, "num_data must be an integer >= 1, got 0"),
        ({"num_data": 1.5}, "num_data must be an integer >= 1, got 1.5"),
        ({"num_data": DataSize(10, 0.0)}, "augmentation must be finite and > 0"),
        ({"temperature": 0.0}, "temperature must be finite and > 0"),
        ({"num_samples": 0}, "num_samples must be an integer >= 1"),
        ({"method": "noisy_kfac"}, "method must be an object such as NoisyKFAC"),
        ({"task": "regression"}, "task must be an object such as Regression"),
        ({"prior": Prior({"0": 1.0})}, r"no prior precision for parameter '3.weight'"),
        ({"prior": Prior({"": 1.0, "7": 2.0})}, r"unknown parameter or module in the prior's precision '7'"),
        ({"prior": Prior({"": 1.0, "0.bias": 2.0})}, "needs one prior precision for 0.weight, 0.bias"),
        ({"method": FullGaussian(max_size=5)}, "the limit is 5 weights"),
    ],
)
def test_illegal_arguments(options: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"method": NoisyKFAC(), "task": Regression(), "num_data": 30, **options}
    with pytest.raises(ConfigError, match=message):
        Variational(network(), **settings)


def test_states_of_something_else_are_refused() -> None:
    vi = build(NoisyKFAC())
    with pytest.raises(ConfigError, match="no state of Variational"):
        vi.load_state_dict({"model": 1})
    with pytest.raises(ConfigError, match="build the same method"):
        vi.load_state_dict(build(Vadam()).state_dict())
    with pytest.raises(ConfigError, match="num_data=31"):
        vi.load_state_dict(build(NoisyKFAC(), num_data=31).state_dict())


def test_classification_shapes() -> None:
    x = torch.randn(6, 3)
    for width, y in ((1, torch.randint(2, (6,))), (1, torch.randint(2, (6, 1))), (4, torch.randint(4, (6,)))):
        vi = Variational(nn.Linear(3, width), method=NoisyKFAC(), task=Classification(), num_data=6)
        assert vi.step(x, y).nelbo.isfinite()
    with pytest.raises(ConfigError, match=r"classes must be integers 0 \.\. 3"):
        vi.step(x, torch.randn(6))
