"""The joint model behind ACKTR's Fisher, and the update against dense calculations."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.func import functional_call, jacrev

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.heads import Heads, measure_change
from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint
from tests.agents._environments import Chain, continuous, discrete, vectorized

DENSE: dict[str, Any] = {"curvature": {"name": "exact", "decay": 0.0}, "fisher": "exact", "step": "plain", "momentum": 0.0, "damping": 0.02}


class Outputs(torch.nn.Module):
    """Everything that the joint likelihood is made of, as one differentiable function of the parameters."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.policy.extract_features(observations)
        assert isinstance(features, Tensor)
        latent_pi, latent_vf = self.policy.mlp_extractor(features)
        spread = self.policy.log_std if hasattr(self.policy, "log_std") else observations.new_zeros(0)
        return self.policy.action_net(latent_pi), self.policy.value_net(latent_vf), spread.expand(len(observations), -1)


def dense_fisher(model: ACKTR, parameters: dict[str, Tensor], observations: Tensor, scale: float) -> Tensor:
    """``1/N sum_n J_n^T F_n J_n`` over all parameters, with the output Fishers written down by hand."""
    outputs = Outputs(model.policy)

    def run(values: dict[str, Tensor], observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        named = {f"policy.{name}": v for name, v in values.items()}
        policy_out, value, log_std = functional_call(outputs, named, (observation.unsqueeze(0),))
        return policy_out, value, log_std

    total = torch.zeros(sum(p.numel() for p in parameters.values()), sum(p.numel() for p in parameters.values()))
    for observation in observations:
        policy_out, _, log_std = run(parameters, observation)
        jacobians = [
            torch.cat([j.flatten(2).squeeze(0) if j.ndim > 2 else j.reshape(j.shape[1], -1) for j in jac.values()], -1)
            for jac in jacrev(run)(parameters, observation)
        ]
        if isinstance(model.action_space, spaces.Discrete):
            p = policy_out[0].softmax(-1)
            total += jacobians[0].T @ (p.diag() - p.outer(p)) @ jacobians[0]
        else:
            total += jacobians[0].T @ (-2 * log_std[0]).exp().diag() @ jacobians[0] + 2 * jacobians[2].T @ jacobians[2]
        total += jacobians[1].T @ jacobians[1] / scale**2
    return total / len(observations)


@pytest.mark.parametrize("make", [discrete, continuous])
def test_linear_policy_takes_the_dense_natural_gradient_step(make: Any) -> None:
    """Without hidden layers the blocks (policy head, value head, log_std) do not interact, so ACKTR is exact natural policy gradient."""
    model = ACKTR(
        "MlpPolicy", make(), natural_gradient=DENSE, n_steps=16, seed=0, device="cpu", policy_kwargs={"net_arch": []}, learning_rate=0.5
    )
    model.learn(32 * 3)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}

    class StopError(Exception):
        """Ends training after the rollout, before its update."""

    original = model.train
    model.train = functools.partial(_raise, StopError)  # type: ignore[method-assign]
    with pytest.raises(StopError):
        model.learn(32, reset_num_timesteps=False)
    model.train = original  # type: ignore[method-assign]
    original()

    (batch,) = model.rollout_buffer.get(batch_size=None)
    actual = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.policy.named_parameters()])
    scale = model._value_variance**0.5  # type: ignore[operator]
    F = dense_fisher(model, before, batch.observations, scale)

    leaves = {name: p.clone().requires_grad_() for name, p in before.items()}
    out, values, log_std = functional_call(Outputs(model.policy), {f"policy.{n}": v for n, v in leaves.items()}, (batch.observations,))
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    if isinstance(model.action_space, spaces.Discrete):
        log_prob = out.log_softmax(-1).gather(1, batch.actions.long()).squeeze(1)
    else:
        log_prob = torch.distributions.Normal(out, log_std.exp()).log_prob(batch.actions).sum(-1)
    loss = -(advantages * log_prob).mean() + 0.5 * (values.flatten() - batch.returns).square().mean() / scale**2
    g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(leaves.values()))])
    expected = -0.5 * torch.linalg.solve((F + 0.02 * torch.eye(len(F))).double(), g.double()).float()
    # float32 sums over 32 states in another order, divided by a damping of 0.02
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-6)


def _raise(error: type[Exception]) -> None:
    raise error


def test_predicted_kl_is_the_measured_one_for_a_small_exact_step() -> None:
    """The exact curvature of this batch makes the quadratic form exact; the KL's cubic term is left, of relative order sqrt(radius)."""
    options = {**DENSE, "step": {"name": "kl_trust_region", "radius": 1e-6}, "damping": 1e-4}
    model = ACKTR("MlpPolicy", continuous(), natural_gradient=options, n_steps=32, seed=1, device="cpu", policy_kwargs={"net_arch": []})
    model.learn(64 * 2, log_interval=1)
    logged = model.logger.name_to_value
    assert logged["train/predicted_kl"] == pytest.approx(1e-6, rel=1e-4)
    assert logged["train/measured_kl"] + logged["train/measured_critic_kl"] == pytest.approx(1e-6, rel=2e-2)


def heads(mean: Tensor, log_std: Tensor, values: Tensor, scale: float) -> Heads:
    return Heads(Gaussian(mean, log_std=log_std), Gaussian(values, scale=scale))


def test_change_of_the_critic_only() -> None:
    mean, log_std, values = torch.zeros(5, 2, requires_grad=True), torch.nn.Parameter(torch.zeros(2)), torch.zeros(5, 1, requires_grad=True)
    before = heads(mean, log_std, values, 2.0).detach()
    change = measure_change(before, heads(mean, log_std, values + 0.4, 2.0))
    assert change.critic_kl.item() == pytest.approx(0.4**2 / (2 * 2.0**2))
    assert (change.actor_kl.item(), change.actor_share.item(), change.critic_share.item()) == (0.0, 0.0, 1.0)


def test_change_of_a_parameter_without_a_layer_counts_for_the_actor() -> None:
    """d^T F d = 2 sum_i d_i^2 for log_std, mean^2/std^2 for the mean, (dV/scale)^2 for the critic."""
    mean, log_std, values = (
        torch.zeros(4, 2, requires_grad=True),
        torch.nn.Parameter(torch.full((2,), 0.5)),
        torch.zeros(4, 1, requires_grad=True),
    )
    before = heads(mean, log_std, values, 0.5).detach()
    with torch.no_grad():
        log_std.add_(torch.tensor([0.01, -0.02]))
    change = measure_change(before, heads(mean + 0.03, log_std, values + 0.01, 0.5))
    actor = 2 * (0.01**2 + 0.02**2) + 2 * 0.03**2 / np.exp(1.0)
    critic = (0.01 / 0.5) ** 2
    assert change.actor_share.item() == pytest.approx(actor / (actor + critic), rel=1e-4)
    assert change.actor_kl.item() == pytest.approx(actor / 2, rel=0.05)  # the KL has cubic terms in log_std


def test_nothing_moved() -> None:
    logits, values = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 1, requires_grad=True)
    same = Heads(Categorical(logits), Gaussian(values))
    change = measure_change(same.detach(), same)
    assert [x.item() for x in (change.actor_kl, change.critic_kl, change.actor_share, change.critic_share)] == [0, 0, 0, 0]


def test_shares_of_a_shared_trunk_are_those_of_the_outputs() -> None:
    """Weights of a shared trunk belong to both heads; the outputs' quadratic forms still add up to twice the joint KL of a small change."""
    image = spaces.Box(0, 255, (1, 40, 40), np.uint8)
    options = {"step": {"name": "kl_trust_region", "radius": 1e-5}}
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    env = vectorized(lambda: Chain(spaces.Discrete(3), image))
    model = ACKTR("CnnPolicy", env, natural_gradient=options, n_steps=16, seed=0, device="cpu", policy_kwargs=kwargs)
    model.learn(32 * 3, log_interval=1)
    logged = model.logger.name_to_value
    actor, critic = logged["train/measured_kl"], logged["train/measured_critic_kl"]
    assert logged["train/actor_share"] == pytest.approx(actor / (actor + critic), abs=0.02)


def test_multi_discrete_is_a_joint_without_its_certain_dimensions() -> None:
    model = ACKTR("MlpPolicy", vectorized(lambda: Chain(spaces.MultiDiscrete([3, 1, 2]))), n_steps=4, seed=0, device="cpu")
    values, _, _ = model.policy.evaluate_actions(torch.zeros(5, 3), torch.zeros(5, 3))
    found = Heads.of(model.policy, values, 1.0)
    assert isinstance(found.actor, Joint)
    assert [tuple(head.outputs[0].shape) for head in found.actor.heads] == [(5, 3), (5, 2)]
    assert found.joint.num_terms == 5


def test_an_unknown_distribution_is_refused() -> None:
    model = ACKTR("MlpPolicy", discrete(), n_steps=4, device="cpu")
    model.policy.action_dist = object()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="not of object; use an action space Discrete"):
        Heads.of(model.policy, torch.zeros(2), 1.0)
