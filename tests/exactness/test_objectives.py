"""Several objectives: each step bounded apart, against dense computations."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from natgrad_apps import Exact, Info, KLClip, KLTrustRegion, NaturalGradient, Plain
from natgrad_apps.errors import ConfigError, NonFiniteWarning
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint

pytestmark = pytest.mark.usefixtures("float64")

RADII = {"actor": 1e-3, "critic": 1e-2}


class ActorCritic(nn.Module):
    """A shared trunk with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.policy, self.value = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Joint:
        """Policy and critic."""
        h = torch.tanh(self.trunk(x))
        return Joint(Categorical(self.policy(h)), Gaussian(self.value(h)))


def losses(heads: Joint, weight: float) -> dict[str, Tensor]:
    policy, critic = heads.heads
    actions, returns = torch.arange(16) % 3, torch.arange(16.0).reshape(16, 1) * weight
    advantages = torch.linspace(-1, 1, 16)
    return {"actor": -(advantages * policy.log_prob(actions)).mean(), "critic": -critic.log_prob(returns).mean()}


def make(model: nn.Module, **kwargs: Any) -> NaturalGradient:
    options: dict[str, Any] = {"step": {name: KLTrustRegion(r) for name, r in RADII.items()}, "lr": 1.0, "momentum": 0.0, **kwargs}
    return NaturalGradient(model, Exact(), damping=0.1, fisher="exact", **options)


def take(model: nn.Module, optimizer: NaturalGradient, weight: float = 1.0) -> Info:
    x = torch.sin(torch.arange(64.0)).reshape(16, 4)
    with optimizer.capture():
        heads = model(x)
        optimizer.observe(heads)
    for name, loss in losses(heads, weight).items():
        loss.backward(retain_graph=True)
        optimizer.collect(name)
    return optimizer.step()


def moved(model: ActorCritic, *args: Any, **kwargs: Any) -> tuple[Tensor, Info, ActorCritic]:
    changed = copy.deepcopy(model)
    info = take(changed, make(changed, **kwargs), *args)
    return parameters_to_vector(changed.parameters()).detach() - parameters_to_vector(model.parameters()).detach(), info, changed


def test_the_step_is_the_sum_of_the_bounded_natural_gradients() -> None:
    model = ActorCritic()
    reference = copy.deepcopy(model)
    optimizer = make(reference)
    take(reference, optimizer)  # for its curvature
    x = torch.sin(torch.arange(64.0)).reshape(16, 4)
    core, expected = optimizer.preconditioner, torch.zeros(sum(p.numel() for p in model.parameters()))
    quadratics = {}
    for name, loss in losses(model(x), 1.0).items():
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
        given = {p: torch.zeros_like(p) if g is None else g for p, g in zip(reference.parameters(), gradients, strict=True)}
        direction = core.from_blocks(core.multiply_power(core.to_blocks(given), -1))
        quadratic = torch.stack(list(core.quadratic(core.to_blocks(direction)).values())).sum()
        assert quadratic > 2 * RADII[name], "the bound must act for this to test anything"
        expected -= math.sqrt(2 * RADII[name] / quadratic) * torch.cat([direction[p].flatten() for p in reference.parameters()])
        quadratics[name] = quadratic
    step, info, _ = moved(model)
    torch.testing.assert_close(step, expected, rtol=2e-6, atol=0)  # the rule stays a millionth below its bound
    for name, radius in RADII.items():
        assert info.objectives[name].predicted_kl.item() == pytest.approx(radius, rel=1e-5)
        assert info.objectives[name].scale.item() == pytest.approx(math.sqrt(2 * radius / quadratics[name]), rel=1e-5)
    whole = core.quadratic(core.to_blocks(_as_parameters(reference, step)))
    assert info.predicted_kl.item() == pytest.approx(sum(whole.values()).item() / 2, rel=1e-9)  # type: ignore[union-attr]
    assert info.predicted_kl.item() <= (math.sqrt(RADII["actor"]) + math.sqrt(RADII["critic"])) ** 2
    assert info.scale.item() == min(bound.scale.item() for bound in info.objectives.values())


def _as_parameters(model: nn.Module, flat: Tensor) -> dict[nn.Parameter, Tensor]:
    parameters = list(model.parameters())
    return {p: part.view_as(p) for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True)}


def test_a_large_critic_gradient_takes_nothing_from_the_actor() -> None:
    """With one radius for the sum, the policy's outputs hardly move; with two, its own step is the same for any value loss."""
    model = ActorCritic()
    small, large = (moved(model, weight)[1].objectives["actor"] for weight in (1.0, 1e4))
    assert small.scale.item() == large.scale.item()
    (_, _, one), (_, _, other) = moved(model, 1.0), moved(model, 1e4)
    torch.testing.assert_close(one.policy.weight, other.policy.weight, rtol=1e-12, atol=0)
    joint = copy.deepcopy(model)
    optimizer = make(joint, step=KLTrustRegion(sum(RADII.values())))
    x = torch.sin(torch.arange(64.0)).reshape(16, 4)
    with optimizer.capture():
        heads = joint(x)
        optimizer.observe(heads)
    torch.stack(list(losses(heads, 1e4).values())).sum().backward()
    optimizer.step()
    assert (joint.policy.weight - model.policy.weight).norm() < 1e-2 * (one.policy.weight - model.policy.weight).norm()


def test_without_bounds_several_objectives_step_like_their_sum() -> None:
    model = ActorCritic()
    parts, whole = copy.deepcopy(model), copy.deepcopy(model)
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "groups": None}
    several = make(parts, **{**options, "step": {"actor": Plain(), "critic": "plain"}})
    single = make(whole, **{**options, "step": Plain()})
    x = torch.sin(torch.arange(64.0)).reshape(16, 4)
    for _ in range(4):
        take(parts, several)
        with single.capture():
            heads = whole(x)
            single.observe(heads)
        single.zero_grad()
        torch.stack(list(losses(heads, 1.0).values())).sum().backward()
        single.step()
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_momentum_is_kept_for_each_objective_and_resumes_exactly() -> None:
    model = ActorCritic()
    optimizer = make(model, momentum=0.9)
    take(model, optimizer)
    assert set(optimizer.state[model.trunk.weight]) == {"velocity/actor", "velocity/critic"}
    assert set(optimizer.state[model.policy.weight]) == {"velocity/actor"}
    again = copy.deepcopy(model)
    other = make(again, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        take(model, optimizer)
        take(again, other)
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_gradients_of_one_objective_add_up_over_micro_batches() -> None:
    model = ActorCritic()
    x = torch.sin(torch.arange(64.0)).reshape(16, 4)
    results = []
    for split in (False, True):
        copied = copy.deepcopy(model)
        optimizer = make(copied)
        with optimizer.capture():
            heads = copied(x)
            optimizer.observe(heads)
        parts = losses(heads, 1.0)
        for name, loss in parts.items():
            for share in (0.25, 0.75) if split else (1.0,):
                (share * loss).backward(retain_graph=True)
                optimizer.collect(name)
        optimizer.step()
        results.append(parameters_to_vector(copied.parameters()))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-15)


def test_a_non_finite_objective_rejects_the_whole_step() -> None:
    model = ActorCritic()
    optimizer = make(model)
    take(model, optimizer)
    before = parameters_to_vector(model.parameters()).clone()
    with pytest.warns(NonFiniteWarning, match="skipped"):
        info = take(model, optimizer, math.nan)
    assert info.skipped
    assert set(info.objectives) == set(RADII)
    assert torch.equal(before, parameters_to_vector(model.parameters()))
    take(model, optimizer)
    assert not torch.equal(before, parameters_to_vector(model.parameters()))


def test_mistakes_are_named() -> None:
    model = ActorCritic()
    optimizer = make(model)
    x = torch.sin(torch.arange(64.0)).reshape(16, 4)
    with optimizer.capture():
        heads = model(x)
        optimizer.observe(heads)
    with pytest.raises(ConfigError, match=r"collect\('actor'\): no parameter has a gradient"):
        optimizer.collect("actor")
    parts = losses(heads, 1.0)
    parts["actor"].backward(retain_graph=True)
    with pytest.raises(ConfigError, match=r"critik.*critic"):
        optimizer.collect("critik")
    optimizer.collect("actor")
    with pytest.raises(ConfigError, match="nothing was collected for critic"):
        optimizer.step()
    parts["critic"].backward()
    with pytest.raises(ConfigError, match="nothing was collected for critic"):
        optimizer.step()
    optimizer.collect("critic")
    optimizer.step()  # what was collected before the mistakes is not lost
    with pytest.raises(ConfigError, match="name"):
        NaturalGradient(model, step={"radius": 0.1})
    with pytest.raises(ConfigError, match="name"):
        NaturalGradient(model, step={"actor": KLClip()})
