"""Bad input gets an error that says what was given, what is legal and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad_apps import (
    EKFAC,
    KFAC,
    Exact,
    FactoredTikhonov,
    Fisher,
    KLClip,
    KLTrustRegion,
    LevenbergMarquardt,
    NaturalGradient,
    Periodic,
    Preconditioner,
    Staggered,
    Subsample,
    Tikhonov,
)
from natgrad_apps.errors import CaptureError, ConfigError, ShapeError, UnsupportedLayerWarning
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def optimizer(**options: Any) -> NaturalGradient:
    return NaturalGradient(net(), **options)


CONSTRUCTION: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: optimizer(curvature="ekfc"), ConfigError, "unknown curvature 'ekfc'; available: .*ekfac.*; did you mean 'ekfac'"),
    (lambda: optimizer(curvature=3), ConfigError, "curvature must be .* got 3"),
    (lambda: optimizer(curvature={"decay": 0.9}), ConfigError, "no 'name'"),
    (
        lambda: optimizer(curvature={"name": "kfac", "dekay": 0.9}),
        ConfigError,
        "unknown option of curvature 'kfac': 'dekay'.*did you mean 'decay'",
    ),
    (lambda: optimizer(curvature={"name": "kfac", "decay": 1.5}), ConfigError, r"decay must be in \[0, 1\), got 1.5"),
    (lambda: KFAC(decay="0.9"), ConfigError, "decay must be a number, got '0.9'"),  # type: ignore[arg-type]
    (lambda: optimizer(curvature=KFAC), ConfigError, "curvature must be"),
    (lambda: optimizer(damping=-1e-3), ConfigError, "damping must be finite and > 0, got -0.001"),
    (lambda: optimizer(damping=0.0), ConfigError, "damping must be finite and > 0"),
    (lambda: optimizer(damping=float("nan")), ConfigError, "damping must be finite"),
    (lambda: optimizer(damping="tikonov"), ConfigError, "did you mean 'tikhonov'"),
    (lambda: optimizer(damping=None), ConfigError, "damping must be"),
    (lambda: Tikhonov("1e-3"), ConfigError, "damping must be a number, got '1e-3'"),  # type: ignore[arg-type]
    (lambda: FactoredTikhonov(float("inf")), ConfigError, "damping must be finite"),
    (lambda: LevenbergMarquardt(omega=1.0), ConfigError, "omega"),
    (lambda: LevenbergMarquardt(omega=0.0), ConfigError, "omega"),
    (lambda: LevenbergMarquardt(1.0, minimum=2.0), ConfigError, "outside"),
    (lambda: LevenbergMarquardt(period=0), ConfigError, "period must be an integer >= 1, got 0"),
    (lambda: optimizer(fisher="monte_carlo"), ConfigError, "unknown fisher 'monte_carlo'; available: empirical, exact, forward_only, mc"),
    (lambda: optimizer(fisher={"kind": "mc", "sample": 2}), ConfigError, "did you mean 'samples'"),
    (lambda: optimizer(fisher=7), ConfigError, "fisher must be"),
    (lambda: Fisher(samples=0), ConfigError, "samples must be an integer >= 1, got 0"),
    (lambda: Fisher("exact", samples=2), ConfigError, "samples=2 needs fisher kind 'mc'"),
    (lambda: Fisher(sharing="expnd"), ConfigError, "did you mean 'expand'"),
    (lambda: Subsample(units=0), ConfigError, "integer >= 1; got 0"),
    (lambda: Subsample(positions=1.5), ConfigError, "integer >= 1; got 1.5"),  # type: ignore[arg-type]
    (lambda: Periodic(inverse_period=0), ConfigError, "inverse_period must be an integer >= 1, got 0"),
    (lambda: Staggered(statistics_period=-1), ConfigError, "statistics_period must be an integer >= 1, got -1"),
    (lambda: optimizer(refresh="always"), ConfigError, "unknown refresh 'always'; available: periodic, staggered"),
    (lambda: KLTrustRegion(0.0), ConfigError, "radius must be finite and > 0, got 0.0"),
    (lambda: KLClip(-1.0), ConfigError, "kl_clip must be finite and > 0"),
    (lambda: optimizer(step="trust"), ConfigError, "unknown step 'trust'; available: .*kl_trust_region"),
    (lambda: optimizer(lr=-0.1), ConfigError, "lr must be finite and >= 0, got -0.1"),
    (lambda: optimizer(lr=float("nan")), ConfigError, "lr must be finite"),
    (lambda: optimizer(momentum=1.0), ConfigError, r"momentum must be in \[0, 1\), got 1.0"),
    (lambda: optimizer(weight_decay=-1.0), ConfigError, "weight_decay must be finite and >= 0"),
    (lambda: optimizer(learning_rate=0.1), ConfigError, "unknown option learning_rate; legal group options: lr, momentum, weight_decay"),
    (lambda: NaturalGradient(list(net().parameters())), ConfigError, "model must be a torch.nn.Module, got list"),  # type: ignore[arg-type]
    (lambda: NaturalGradient(nn.Tanh()), ConfigError, "no trainable parameter"),
    (lambda: NaturalGradient(nn.LazyLinear(3)), ConfigError, "run one forward pass before building"),
    (lambda: optimizer(groups=[{"params": list(net().parameters())}]), ConfigError, "do not belong to the model"),
    (lambda: NaturalGradient(nn.Linear(100, 100), Exact()), ConfigError, "10100 x 10100.*max_size=8192.*kfac"),
    (lambda: EKFAC(max_factor_size=0), ConfigError, "max_factor_size must be an integer >= 1"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize(("build", "error", "message"), CONSTRUCTION, ids=[f"{i}-{m[:24]}" for i, (_, _, m) in enumerate(CONSTRUCTION)])
def test_construction(build: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


class Use:
    """A model, an optimizer, and the ways of using them wrongly."""

    def __init__(self, **options: Any) -> None:
        self.model = net()
        self.optimizer = NaturalGradient(self.model, **{"fisher": "mc", **options})
        self.x, self.y = torch.randn(6, 4), torch.randint(3, (6,))

    def observe(self, likelihood: Any = None, targets: Any = None) -> None:
        with self.optimizer.capture():
            logits = self.model(self.x)
            self.optimizer.observe(Categorical(logits) if likelihood is None else likelihood(logits), targets)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()


def step_before_observing() -> None:
    use = Use()
    use.backward()
    use.optimizer.step()


def step_without_gradients() -> None:
    use = Use()
    use.observe()
    use.optimizer.step()


def observe_outside() -> None:
    use = Use()
    use.optimizer.observe(Categorical(use.model(use.x)))


def observe_after_leaving() -> None:
    use = Use()
    with use.optimizer.capture():
        logits = use.model(use.x)
    use.optimizer.observe(Categorical(logits))


def observe_without_a_forward_pass() -> None:
    use = Use()
    logits = use.model(use.x)
    with use.optimizer.capture():
        use.optimizer.observe(Categorical(logits))


def observe_a_forward_pass_without_gradients() -> None:
    use = Use()
    with use.optimizer.capture(), torch.no_grad():
        use.optimizer.observe(Categorical(use.model(use.x)))


def observe_detached_outputs() -> None:
    Use().observe(lambda logits: Categorical(logits.detach()))


def observe_another_model() -> None:
    use, other = Use(), net()
    with use.optimizer.capture():
        use.model(use.x)
        use.optimizer.observe(Categorical(other(use.x)))


def observe_twice() -> None:
    use = Use()
    with use.optimizer.capture():
        logits = use.model(use.x)
        use.optimizer.observe(Categorical(logits))
        use.optimizer.observe(Categorical(logits))


def nested_captures() -> None:
    use = Use()
    with use.optimizer.capture(), use.optimizer.capture():
        use.model(use.x)


def observe_a_distribution() -> None:
    Use().observe(lambda logits: td.Categorical(logits=logits))


def observe_a_tensor() -> None:
    Use().observe(lambda logits: logits)


def empirical_without_targets() -> None:
    Use(fisher="empirical").observe()


def targets_for_the_sampled_fisher() -> None:
    use = Use()
    use.observe(targets=use.y)


def targets_of_the_wrong_shape() -> None:
    Use(fisher="empirical").observe(targets=torch.zeros(5, dtype=torch.long))


def targets_out_of_range() -> None:
    Use(fisher="empirical").observe(targets=torch.full((6,), 3))


def integer_outputs() -> None:
    Use().observe(lambda logits: Categorical(logits.argmax(-1, keepdim=True)))


def heads_of_different_sizes() -> None:
    Use().observe(lambda logits: Joint(Categorical(logits), Gaussian(logits[:4, 0])))


def loss_of_an_unobserved_head() -> None:
    model = nn.ModuleDict({"trunk": nn.Linear(4, 5), "policy": nn.Linear(5, 3), "value": nn.Linear(5, 1)})
    use = NaturalGradient(model)
    with use.capture():
        h = model["trunk"](torch.randn(6, 4)).tanh()
        logits, value = model["policy"](h), model["value"](h)
        use.observe(Categorical(logits))
    (F.cross_entropy(logits, torch.randint(3, (6,))) + value.square().mean()).backward()
    use.step()


def input_changed_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    use = NaturalGradient(model)
    with use.capture():
        x = torch.randn(6, 4)
        logits = model(x)
        x.mul_(2)
        use.observe(Categorical(logits))


def reduce_with_different_units() -> None:
    encoder, head = nn.Linear(4, 4), nn.Linear(4, 3)
    model = nn.ModuleList([encoder, head])
    use = NaturalGradient(model, fisher=Fisher("exact", sharing="reduce"))
    with use.capture():
        first = encoder(torch.randn(6, 4))
        use.observe(Categorical(head(first + encoder(torch.randn(2, 4)).mean(0))))


def adaptive_damping_without_a_closure() -> None:
    use = Use(damping=LevenbergMarquardt())
    use.observe()
    use.backward()
    use.optimizer.step()


def closure_that_returns_no_loss() -> None:
    use = Use(damping=LevenbergMarquardt(period=1))
    use.observe()
    use.backward()
    use.optimizer.step(lambda: None)  # type: ignore[arg-type,return-value]


def spectrum_before_statistics() -> None:
    Use().optimizer.preconditioner.spectrum()


def product_before_statistics() -> None:
    core = Use().optimizer.preconditioner
    core.multiply_power({"0": torch.zeros(5, 5)}, -1.0)


USES: list[tuple[Callable[[], None], type[Exception], str]] = [
    (step_before_observing, CaptureError, r"observe\(\).*capture\(\).*before the first step"),
    (step_without_gradients, ConfigError, r"loss.backward\(\) before step\(\)"),
    (observe_outside, CaptureError, r"inside `with optimizer.capture\(\):`"),
    (observe_after_leaving, CaptureError, r"inside `with optimizer.capture\(\):`"),
    (observe_without_a_forward_pass, CaptureError, "found no forward pass.*inside"),
    (observe_a_forward_pass_without_gradients, CaptureError, "gradient"),
    (observe_detached_outputs, CaptureError, "without gradient history"),
    (observe_another_model, CaptureError, "does not depend on any trainable parameter"),
    (observe_twice, CaptureError, r"observed already.*Joint"),
    (nested_captures, CaptureError, "do not nest"),
    (observe_a_distribution, TypeError, "natgrad_apps.likelihoods object such as Categorical"),
    (observe_a_tensor, TypeError, "got Tensor"),
    (empirical_without_targets, ConfigError, r"fisher='empirical' needs the targets: observe\(likelihood, targets\)"),
    (targets_for_the_sampled_fisher, ConfigError, "fisher='mc' takes no targets"),
    (targets_of_the_wrong_shape, ShapeError, r"\(6,\).*got \(5,\)"),
    (targets_out_of_range, ConfigError, r"\[0, 3\)"),
    (integer_outputs, TypeError, "floating"),
    (heads_of_different_sizes, ShapeError, "same terms"),
    (loss_of_an_unobserved_head, CaptureError, r"the loss depends on value.*Joint"),
    (input_changed_in_place, CaptureError, "modified in place"),
    (reduce_with_different_units, ShapeError, r"\[2, 6\] units.*expand"),
    (adaptive_damping_without_a_closure, ConfigError, r"needs step\(closure\)"),
    (closure_that_returns_no_loss, ConfigError, "closure must return the loss"),
    (spectrum_before_statistics, CaptureError, "no statistics yet"),
    (product_before_statistics, ConfigError, r"observe a batch and call update\(\)"),
]


@pytest.mark.parametrize(("act", "error", "message"), USES, ids=[act.__name__ for act, _, _ in USES])
def test_use(act: Callable[[], None], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


def test_an_error_inside_observe_leaves_the_optimizer_usable() -> None:
    use = Use(fisher="empirical")
    with pytest.raises(ConfigError):
        use.observe()
    use.observe(targets=use.y)
    use.backward()
    assert not use.optimizer.step().skipped


def test_an_observed_head_without_a_loss_stays_where_it_is() -> None:
    """The converse of an unobserved head is legal: statistics without a gradient."""
    model = nn.ModuleDict({"trunk": nn.Linear(4, 5), "policy": nn.Linear(5, 3), "value": nn.Linear(5, 1)})
    use = NaturalGradient(model)
    before = model["value"].weight
    assert isinstance(before, Tensor)
    old = before.detach().clone()
    with use.capture():
        h = model["trunk"](torch.randn(6, 4)).tanh()
        logits, value = model["policy"](h), model["value"](h)
        use.observe(Joint(Categorical(logits), Gaussian(value)))
    F.cross_entropy(logits, torch.randint(3, (6,))).backward()
    use.step()
    assert torch.equal(old, before)


def test_one_warning_lists_every_uncovered_parameter_with_its_share() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3), nn.LayerNorm(3))
    core = Preconditioner(model)
    total = sum(p.numel() for p in model.parameters())

    def three_batches() -> None:
        for _ in range(3):
            with core.capture():
                core.observe(Categorical(model(torch.randn(6, 4))))
            core.update()

    with pytest.warns(UnsupportedLayerWarning) as caught:
        three_batches()
    assert len(caught) == 1
    message = str(caught[0].message)
    for part in ("1.weight", "1.bias", "3.weight", "3.bias", f"{100 * 16 / total:.3g}% of {total}", "strict=True"):
        assert part in message
