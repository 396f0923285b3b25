"""Policies with a memory: what it holds during collecting, updating and predicting, and that it is of use."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.collecting import Batch
from natgrad_apps.agents.context import Context
from natgrad_apps.agents.evaluation import evaluate
from natgrad_apps.agents.recurrent import LSTMExtractor, MlpLstmPolicy, RecurrentPolicy
from natgrad_apps.errors import ConfigError
from tests.agents._environments import Chain, continuous, discrete, vectorized
from tests.agents.test_acktr import ACTIONS, record, weights
from tests.agents.test_masking import guarded

NETWORK: dict[str, Any] = {"net_arch": [8], "lstm_hidden_size": 5}
SMALL: dict[str, Any] = {"n_steps": 8, "seed": 3, "device": "cpu", "policy_kwargs": NETWORK}
TWO: dict[str, Any] = {**SMALL, "policy_kwargs": {**NETWORK, "share_features_extractor": False, "n_lstm_layers": 2}}


class Recall(gym.Env[Any, Any]):
    """The first of four observations shows a sign, the others nothing; the last action is rewarded if it names the sign."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(2)
        self._sign, self._time = 0, 0

    def _observe(self) -> Any:
        return np.array([(2 * self._sign - 1) * (self._time == 0), self._time / 4], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._sign, self._time = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        over = self._time == 4
        return self._observe(), float(over and action == self._sign), over, False, {}


def policy_of(model: ACKTR) -> RecurrentPolicy:
    assert isinstance(model.policy, RecurrentPolicy)
    return model.policy


@pytest.mark.usefixtures("float64")
def test_a_pass_over_steps_equals_steps_one_by_one() -> None:
    extractor = LSTMExtractor(spaces.Box(-1.0, 1.0, (3,), np.float64), hidden_size=4, num_layers=2)
    x, memory = torch.randn(6, 3, 3), torch.randn(2, 2, 3, 4)
    starts = torch.zeros(6, 3, dtype=torch.bool)
    starts[0, 1] = starts[2, 0] = starts[2, 2] = starts[5, 1] = True
    extractor.begin(starts, memory)
    together, after = extractor(x.flatten(0, 1)), extractor.after
    assert after is not None
    for t in range(6):
        memory = memory * (~starts[t]).double().reshape(1, 1, 3, 1)
        outputs = []
        for n in range(3):  # each environment on its own
            output, state = extractor.lstm(x[t : t + 1, n], (memory[0][:, n], memory[1][:, n]))
            outputs.append((output[0], torch.stack(state)))
        # float64, another order of the same sums
        torch.testing.assert_close(together[3 * t : 3 * t + 3], torch.stack([o for o, _ in outputs]), rtol=1e-11, atol=1e-13)
        memory = torch.stack([m for _, m in outputs], 2)
    torch.testing.assert_close(after, memory, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("settings", [SMALL, TWO], ids=["shared", "separate"])
@pytest.mark.parametrize("make", [functools.partial(discrete, 3), functools.partial(continuous, 3), functools.partial(guarded, count=3)])
def test_the_update_sees_what_collecting_saw(make: Any, settings: dict[str, Any]) -> None:
    """Values and log-probabilities of the rollout, evaluated again from its first memory, in the third rollout of episodes of 10 steps."""
    env = make()
    name = "MaskableMlpLstmPolicy" if env.has_attr("action_masks") else "MlpLstmPolicy"
    model = ACKTR(name, env, learning_rate=1e-9, **settings)
    model.learn(3 * 8 * 3)
    buffer, policy = model.rollout_buffer, policy_of(model)
    assert model._context is not None
    assert model._context.states is not None
    assert model._context.states.abs().sum() > 0
    assert buffer.episode_starts[1:].any()
    batch = Batch.in_order(buffer)
    actions = batch.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else batch.actions
    with torch.no_grad(), policy.given(model._context):
        values, log_prob, _ = policy.evaluate_actions(batch.observations, actions)
        after = policy.states_after()
    # float32; the last update moved the weights by 1e-9 of a step
    torch.testing.assert_close(values.numpy().ravel(), buffer.values.ravel(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_prob.numpy(), buffer.log_probs.ravel(), rtol=1e-4, atol=1e-5)
    assert after is not None
    torch.testing.assert_close(after.numpy(), model._states, rtol=1e-4, atol=1e-5)


class Terminal(BaseCallback):
    """Keeps the observations that time limits cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[int, int], Any] = {}
        self._step = 0

    def _on_step(self) -> bool:
        for n, info in enumerate(self.locals["infos"]):
            if "terminal_observation" in info:
                self.seen[self._step, n] = info["terminal_observation"]
        self._step += 1
        return True


@pytest.mark.parametrize("settings", [SMALL, TWO], ids=["shared", "separate"])
def test_cut_off_episodes_are_valued_after_their_own_history(settings: dict[str, Any]) -> None:
    callback = Terminal()
    env = vectorized(lambda: Chain(spaces.Discrete(3), truncated=True, reward=lambda _: 0.0))
    model = ACKTR("MlpLstmPolicy", env, **{**settings, "n_steps": 24}, learning_rate=1e-9)
    model.learn(48, callback)
    policy, rewards = policy_of(model), model.rollout_buffer.rewards
    assert set(zip(*np.nonzero(rewards), strict=True)) == set(callback.seen) == {(t, n) for t in (9, 19) for n in (0, 1)}
    for (t, n), observation in callback.seen.items():
        history = torch.as_tensor(np.stack([*model.rollout_buffer.observations[t - 9 : t + 1, n], observation]))
        starts = torch.zeros(11, 1, dtype=torch.bool)
        with torch.no_grad(), policy.given(Context(None, starts, policy.initial_states(1))):
            value = float(policy.predict_values(history)[-1])
        # float32; the update moved the weights by 1e-9 of a step
        assert rewards[t, n] == pytest.approx(0.99 * value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("kind", "fisher"), [*((kind, "mc") for kind in ACTIONS), ("discrete", "exact"), ("box", "empirical")])
def test_every_action_space_learns(kind: str, fisher: str) -> None:
    model = ACKTR("MlpLstmPolicy", vectorized(lambda: Chain(ACTIONS[kind])), natural_gradient={"fisher": fisher}, **SMALL)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    rows = record(model, 48)
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name.startswith("train/"))
    assert all(not torch.equal(before[name], p) for name, p in model.policy.named_parameters()), "every parameter must move"
    assert rows[-1]["train/skipped_updates"] == 0
    assert {"features_extractor.lstm.ih_l0", "features_extractor.lstm.hh_l0"} <= set(model.optimizer.preconditioner.blocks)


@pytest.mark.parametrize("curvature", ["ekfac", "diagonal", "exact", "gram_kfac"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_every_curvature_runs(policy: str, curvature: str) -> None:
    options = {"curvature": curvature, "critic_step": {"name": "kl_trust_region"}, "momentum": 0.5, "value_normalization": {}}
    network = {"net_arch": [6], **({"lstm_hidden_size": 3} if policy == "MlpLstmPolicy" else {})}
    model = ACKTR(policy, continuous(), **{**SMALL, "policy_kwargs": network}, natural_gradient=options)
    start = weights(model)
    rows = record(model, 64)
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name.startswith("train/"))
    assert rows[-1]["train/skipped_updates"] == 0
    assert not torch.equal(start, weights(model))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["CnnLstmPolicy", "MultiInputLstmPolicy", "MaskableCnnLstmPolicy"])
def test_images_and_dictionaries(name: str, share: bool) -> None:
    image = spaces.Box(0, 255, (1, 40, 40), np.uint8)
    mixed = spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (3,), np.float32), "image": image})
    space = mixed if name == "MultiInputLstmPolicy" else image
    inner = {"cnn_output_dim": 8} if space is mixed else {"features_dim": 8}
    kwargs = {"share_features_extractor": share, "lstm_hidden_size": 4, "features_extractor_kwargs": inner}
    make: Any = guarded if name.startswith("Maskable") else functools.partial(discrete)
    model = ACKTR(name, make(observation_space=space), n_steps=6, seed=0, device="cpu", policy_kwargs=kwargs)
    rows = record(model, 24)
    assert rows[-1]["train/skipped_updates"] == 0
    assert len(policy_of(model).extractors) == (1 if share else 2)
    linear = [block for block in model.optimizer.preconditioner.blocks if block.startswith("mlp_extractor")]
    assert bool(linear) == (name == "MultiInputLstmPolicy")


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(5), spaces.Discrete(7)], ids=lambda s: type(s).__name__)
def test_observations_that_count_their_width_in_numpy_numbers(space: spaces.Space[Any]) -> None:
    assert LSTMExtractor(space, hidden_size=4).lstm.input_size == spaces.flatdim(space)


def test_prediction_carries_its_state() -> None:
    model = ACKTR("MlpLstmPolicy", discrete(3), **SMALL)
    policy = policy_of(model)
    torch.nn.init.normal_(policy.action_net.get_parameter("weight"))
    x, starts = torch.randn(7, 3, 3), torch.zeros(7, 3, dtype=torch.bool)
    starts[0] = starts[3, 1] = True
    with torch.no_grad(), policy.given(Context(None, starts, policy.initial_states(3))):
        expected = policy.get_distribution(x.flatten(0, 1)).mode().reshape(7, 3)
    state = None
    for t in range(7):
        actions, state = model.predict(x[t].numpy(), state, starts[t].numpy(), deterministic=True)
        np.testing.assert_array_equal(actions, expected[t])
        assert state is not None
        assert [part.shape for part in state] == [(1, 3, 5)] * 2
    single, state = model.predict(x[0, 0].numpy(), deterministic=True)
    assert single == int(expected[0, 0])
    assert state is not None
    assert state[0].shape == (1, 1, 5)
    with pytest.raises(ConfigError, match=r"two arrays \(1, 3, 5\) for 3 observations; got \[\(1, 1, 5\), \(1, 1, 5\)\]"):
        model.predict(x[0].numpy(), state)
    returns, _ = evaluate_policy(model, model.get_env(), 3, warn=False, return_episode_rewards=True)  # type: ignore[arg-type]
    assert np.shape(returns) == (3,)


def memory_task(policy: str, steps: int) -> float:
    env = vectorized(Recall, 8)
    network = {"net_arch": [16], **({"lstm_hidden_size": 16} if policy == "MlpLstmPolicy" else {})}
    model = ACKTR(policy, env, n_steps=16, seed=0, device="cpu", policy_kwargs=network)
    return evaluate(model.learn(steps), env, 100, seed=5, deterministic=True).mean


def test_memory_is_of_use() -> None:
    """A sign seen three steps ago: half of the guesses without memory are right (100 episodes, z-bound 4: 0.3 to 0.7)."""
    assert memory_task("MlpLstmPolicy", 2560) > 0.95
    assert 0.3 < memory_task("MlpPolicy", 2560) < 0.7


@pytest.mark.parametrize("settings", [SMALL, TWO], ids=["shared", "separate"])
def test_training_goes_on_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    env = discrete()
    options = {"momentum": 0.5, "refresh": {"name": "periodic", "inverse_period": 3}}
    model = ACKTR("MlpLstmPolicy", env, natural_gradient=options, **settings)
    model.learn(64)
    model.save(tmp_path / "agent")
    copied = copy.deepcopy(env)
    model.learn(64, reset_num_timesteps=False)
    again = ACKTR.load(tmp_path / "agent", env=copied, device="cpu", force_reset=False)
    again.learn(64, reset_num_timesteps=False)
    assert torch.equal(weights(model), weights(again))
    np.testing.assert_array_equal(model._states, again._states)


def test_another_number_of_environments_begins_with_an_empty_memory(tmp_path: Path) -> None:
    ACKTR("MlpLstmPolicy", discrete(2), **SMALL).learn(32).save(tmp_path / "agent")
    model = ACKTR.load(tmp_path / "agent", env=discrete(3), device="cpu")
    states = model.states_for(3)
    assert isinstance(states, Tensor)
    assert states.shape[3] == 3
    assert not states.any()
    model.learn(24)


def test_the_policy_alone_can_be_saved(tmp_path: Path) -> None:
    policy = policy_of(ACKTR("MlpLstmPolicy", discrete(), **SMALL))
    policy.save(str(tmp_path / "policy"))
    again = MlpLstmPolicy.load(str(tmp_path / "policy"), device="cpu")
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(again.predict(x, deterministic=True)[0], policy.predict(x, deterministic=True)[0])
    assert [p.shape for p in again.parameters()] == [p.shape for p in policy.parameters()]


def test_what_is_not_legal_is_refused() -> None:
    for kwargs in ({"lstm_hidden_size": 0}, {"n_lstm_layers": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(kwargs))):
            ACKTR("MlpLstmPolicy", discrete(), device="cpu", policy_kwargs=kwargs)
    with pytest.raises(ConfigError, match="use_sde=True"):
        ACKTR("MlpLstmPolicy", continuous(), use_sde=True)
