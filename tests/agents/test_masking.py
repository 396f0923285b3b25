"""Policies over legal actions: their Fisher, what they draw, and the whole way from collecting to resuming."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from natgrad_apps import Fisher, NaturalGradient
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.collecting import Batch
from natgrad_apps.agents.context import Context
from natgrad_apps.agents.evaluation import evaluate
from natgrad_apps.agents.heads import actor_likelihood
from natgrad_apps.agents.masking import MaskableMlpPolicy, choices
from natgrad_apps.agents.video import _frames
from natgrad_apps.errors import ConfigError
from tests.agents._environments import Chain, discrete, vectorized
from tests.agents.test_acktr import SMALL, record, weights

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(2),
}


class Guarded(Chain):
    """Draws a new mask for every step and fails on an illegal action; the last legal action of the first dimension is rewarded."""

    def __init__(self, space: spaces.Space[Any], **kwargs: Any) -> None:
        super().__init__(space, **kwargs)
        self._masks: list[np.ndarray[Any, Any]] = []

    def action_masks(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self._masks)

    def _observe(self) -> Any:
        self._masks = []
        for size in choices(self.action_space):
            mask = self.np_random.random(size) < 0.5
            mask[self.np_random.integers(size)] = True
            self._masks.append(mask)
        return super()._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        parts = np.atleast_1d(action).astype(int)
        if not all(mask[part] for mask, part in zip(self._masks, parts, strict=True)):
            raise AssertionError(f"illegal action {action}")
        best = float(parts[0] == np.flatnonzero(self._masks[0])[-1])
        result = super().step(action)
        return (result[0], best, *result[2:])


def guarded(kind: str = "discrete", count: int = 2, **kwargs: Any) -> DummyVecEnv:
    return vectorized(lambda: Guarded(ACTIONS[kind], **kwargs), count)


def policy_and_masks(kind: str, rows: int = 40) -> tuple[MaskableMlpPolicy, torch.Tensor, torch.Tensor]:
    policy = MaskableMlpPolicy(spaces.Box(-1.0, 1.0, (3,), np.float32), ACTIONS[kind], lambda _: 0.1, net_arch=[])
    torch.nn.init.normal_(policy.action_net.get_parameter("weight"))
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(rows, sum(choices(ACTIONS[kind])), generator=generator) < 0.5
    for part in masks.split(choices(ACTIONS[kind]), 1):
        part[:, 0] |= ~part.any(1)
    return policy, torch.randn(rows, 3, generator=generator), masks


@pytest.mark.parametrize("kind", ACTIONS)
def test_probabilities_are_the_softmax_over_legal_actions(kind: str) -> None:
    policy, x, masks = policy_and_masks(kind)
    with policy.given(Context(masks)), torch.no_grad():
        policy(x)
    logits = policy.action_net(x).detach()
    sizes = choices(ACTIONS[kind])
    distribution: Any = policy.action_dist.distribution
    parts = distribution if isinstance(distribution, list) else [distribution]
    for part, z, m in zip(parts, logits.split(sizes, 1), masks.split(sizes, 1), strict=True):
        expected = z.exp() * m
        # float32, sums of at most 4 terms
        torch.testing.assert_close(part.probs, expected / expected.sum(1, keepdim=True), rtol=1e-5, atol=1e-7)
        assert (part.probs[~m] == 0).all()


@pytest.mark.parametrize("kind", ACTIONS)
def test_fresh_actions_of_the_fisher_are_legal(kind: str) -> None:
    policy, x, masks = policy_and_masks(kind)
    with policy.given(Context(masks)):
        policy(x)
    likelihood = actor_likelihood(policy)
    for _ in range(50):
        draw = likelihood.sample()
        for actions, m in zip(draw if isinstance(draw, tuple) else (draw,), masks.split(choices(ACTIONS[kind]), 1), strict=True):
            assert m.gather(1, actions.reshape(-1, 1)).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ACTIONS)
def test_illegal_logits_drop_out_of_the_fisher(kind: str) -> None:
    """The exact block of the linear policy is ``mean_n (diag(pi_n) - pi_n pi_n^T) (x) x_n x_n^T``, block diagonal over dimensions."""
    policy, x, masks = policy_and_masks(kind)
    policy = policy.double()
    x, sizes = torch.cat([x.double(), x.new_ones(len(x), 1)], 1), choices(ACTIONS[kind])
    optimizer = NaturalGradient(policy, "exact", damping=1e-3, fisher=Fisher("exact"))
    with optimizer.capture(), policy.given(Context(masks)):
        policy._get_action_dist_from_latent(x[:, :3])
        optimizer.observe(actor_likelihood(policy))
    optimizer.preconditioner.update()
    block = optimizer.preconditioner.blocks["action_net"]
    logits = policy.action_net(x[:, :3]).detach()
    fisher = torch.zeros(block.spec.d_out * 4, block.spec.d_out * 4)
    for row, z, mask in zip(x, logits, masks, strict=True):
        parts = []
        for zi, mi in zip(z.split(sizes), mask.split(sizes), strict=True):
            e = zi.exp() * mi
            pi = e / e.sum()
            parts.append(pi.diag() - pi.outer(pi))
        fisher += torch.kron(torch.block_diag(*parts), row.outer(row)) / len(x)
    # float64, sums of 40 terms
    dense = block.curvature.to_dense(block.state)
    torch.testing.assert_close(dense, fisher + 1e-3 * torch.eye(len(fisher)), rtol=1e-9, atol=1e-10)


def test_a_logit_that_is_never_legal_does_not_move() -> None:
    class Never(Guarded):
        def _observe(self) -> Any:
            seen = super()._observe()
            self._masks = [np.array([True, False, True, True])]
            return seen

    model = ACKTR("MaskableMlpPolicy", vectorized(lambda: Never(ACTIONS["discrete"])), ent_coef=0.01, **SMALL)
    before = copy.deepcopy(model.policy.action_net.state_dict())
    rows = record(model, 64)
    for name, after in model.policy.action_net.state_dict().items():
        change = (after - before[name]).reshape(4, -1).norm(dim=1)
        # zero but for the float32 rounding of the eigenvectors of G, whose row of this logit is zero
        assert change[1] < 1e-4 * change[[0, 2, 3]].min()
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name.startswith("train/"))


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("kind", ACTIONS)
def test_training_takes_legal_actions_only_and_learns(kind: str, fisher: str) -> None:
    env = guarded(kind, 4)
    model = ACKTR("MaskableMlpPolicy", env, natural_gradient={"fisher": fisher}, ent_coef=0.001, **SMALL)
    rows = record(model, 320)
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name.startswith("train/"))
    assert rows[-1]["train/skipped_updates"] == 0
    assert all(row["train/measured_kl"] >= 0 for row in rows)
    result = evaluate(model, env, 4, seed=1, deterministic=False)
    assert len(result.returns) == 4


def test_it_learns_to_rank_the_legal_actions() -> None:
    env = guarded(count=4)
    model = ACKTR("MaskableMlpPolicy", env, **SMALL)
    untrained = evaluate(model, env, 20, seed=1, deterministic=True).mean
    trained = evaluate(model.learn(640), env, 20, seed=1, deterministic=True).mean
    # at most 10; untrained ranks are arbitrary
    assert trained > max(8.5, untrained)


def test_rows_of_a_rollout_belong_together() -> None:
    """Log-probabilities of the ordered batch under the kept masks are those that were recorded while collecting."""
    env = guarded("multi_discrete", 3)
    model = ACKTR("MaskableMlpPolicy", env, learning_rate=1e-9, **SMALL).learn(24)
    buffer, policy = model.rollout_buffer, model.policy
    assert model._context is not None
    assert isinstance(policy, MaskableMlpPolicy)
    batch = Batch.in_order(buffer)
    with torch.no_grad(), policy.given(model._context):
        values, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
    # the weights have moved by 1e-9 of a step
    torch.testing.assert_close(log_prob.numpy(), buffer.log_probs.ravel(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values.numpy().ravel(), buffer.values.ravel(), rtol=1e-4, atol=1e-5)


def test_masks_pass_through_wrappers() -> None:
    env = VecFrameStack(VecNormalize(guarded()), 2)
    model = ACKTR("MaskableMlpPolicy", env, **SMALL).learn(32)
    assert model._context is not None
    masks = model._context.masks
    assert masks is not None
    assert not masks.all()
    actions = torch.as_tensor(model.rollout_buffer.actions).reshape(-1, 1).long()
    assert masks.reshape(len(actions), -1).gather(1, actions).all()


def test_training_goes_on_exactly(tmp_path: Path) -> None:
    env = guarded()
    model = ACKTR("MaskableMlpPolicy", env, **SMALL)
    model.learn(64)
    model.save(tmp_path / "agent")
    copied = copy.deepcopy(env)
    model.learn(64, reset_num_timesteps=False)
    again = ACKTR.load(tmp_path / "agent", env=copied, device="cpu", force_reset=False)
    again.learn(64, reset_num_timesteps=False)
    assert torch.equal(weights(model), weights(again))


def test_prediction_needs_masks() -> None:
    env = guarded()
    model = ACKTR("MaskableMlpPolicy", env, **SMALL)
    observation = env.reset()
    assert isinstance(observation, np.ndarray)
    only = np.zeros((2, 4), bool)
    only[0, 2] = only[1, 1] = True
    for deterministic in (True, False):
        actions, state = model.predict(observation, deterministic=deterministic, action_masks=only)
        np.testing.assert_array_equal(actions, [2, 1])
        assert state is None
    single, _ = model.predict(observation[0], action_masks=only[0])
    assert single == 2
    with pytest.raises(ConfigError, match=r"needs action_masks for 2 observations, 4 booleans each"):
        model.predict(observation)
    with pytest.raises(ConfigError, match=r"must be 2 x 4 booleans.*got bool of shape \(2, 3\)"):
        model.predict(observation, action_masks=only[:, :3])
    with pytest.raises(ConfigError, match=r"environment 1 has no legal action"):
        model.predict(observation, action_masks=np.array([[True] * 4, [False] * 4]))
    with pytest.raises(ConfigError, match=r"needs their masks: predict"), torch.no_grad():
        model.policy(torch.as_tensor(observation))


class Drawn(Guarded):
    """With pictures."""

    render_mode = "rgb_array"

    def render(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)


def test_films_show_legal_actions() -> None:
    env = vectorized(lambda: Drawn(ACTIONS["multi_discrete"]), 1)
    frames = _frames(ACKTR("MaskableMlpPolicy", env, **SMALL), env, deterministic=False)
    film = [next(frames) for _ in range(33)]
    assert [i for i, frame in enumerate(film) if frame is None] == [10, 21, 32]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no method action_masks\(\); add one that returns 3 booleans"):
        ACKTR("MaskableMlpPolicy", discrete(), **SMALL)
    with pytest.raises(ConfigError, match=r"masks need an action space Discrete, MultiDiscrete or MultiBinary"):
        ACKTR("MaskableMlpPolicy", vectorized(lambda: Chain(spaces.Box(-1.0, 1.0, (2,), np.float32))), **SMALL)
    with pytest.warns(UserWarning, match=r"says by action_masks\(\) which actions are legal, but ActorCriticPolicy does not ask"):
        ACKTR("MlpPolicy", guarded(), **SMALL)
    with pytest.raises(ConfigError, match=r"action_masks were given to ActorCriticPolicy"):
        ACKTR("MlpPolicy", discrete(), **SMALL).predict(np.zeros(3, np.float32), action_masks=[True])


def test_the_evaluation_of_sb3_contrib_works() -> None:
    contrib = pytest.importorskip("sb3_contrib.common.maskable.evaluation")
    env = guarded()
    model = ACKTR("MaskableMlpPolicy", env, **SMALL)
    mean, _ = contrib.evaluate_policy(model, env, n_eval_episodes=2)
    assert 0 <= mean <= 10
    assert isinstance(env.envs[0], gym.Env)
