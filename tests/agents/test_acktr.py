"""ACKTR as an SB3 algorithm: spaces, policies, arguments, logging, bad input."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

import natgrad_apps.agents
from natgrad_apps.agents import ACKTR, NaturalGradientOptions
from natgrad_apps.curvature.ekfac import EKFAC
from natgrad_apps.curvature.kfac import KFAC
from natgrad_apps.errors import ConfigError, NonFiniteWarning
from natgrad_apps.optim import NaturalGradient
from tests.agents._environments import Chain, continuous, discrete, vectorized

SMALL: dict[str, Any] = {"n_steps": 8, "seed": 3, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 1, 2]),
    "multi_binary": spaces.MultiBinary(3),
}


class Recorder(BaseCallback):
    """Keeps what the logger holds after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.keep()

    def _on_training_end(self) -> None:
        self.keep()

    def keep(self) -> None:
        if self.model._n_updates:
            self.rows.append(dict(self.logger.name_to_value))


def record(model: ACKTR, steps: int) -> list[dict[str, Any]]:
    """Train with everything measured in every update; the logger's values after each."""
    recorder = Recorder()
    model.learn(steps, recorder, log_interval=1)
    return recorder.rows


def weights(model: ACKTR) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_every_action_space_learns(kind: str, fisher: str) -> None:
    env = vectorized(lambda: Chain(ACTIONS[kind]))
    model = ACKTR("MlpPolicy", env, natural_gradient={"fisher": fisher}, **SMALL)
    before = weights(model)
    rows = record(model, 48)
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name.startswith("train/"))
    assert not torch.equal(before, weights(model))
    assert rows[-1]["train/skipped_updates"] == 0
    observation = env.reset()
    assert isinstance(observation, np.ndarray)
    action, _ = model.predict(observation)
    assert all(model.action_space.contains(a) for a in action)


@pytest.mark.parametrize("share", [True, False])
def test_image_and_mixed_observations_with_shared_and_separate_trunks(share: bool) -> None:
    image = spaces.Box(0, 255, (1, 40, 40), np.uint8)
    mixed = spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (3,), np.float32), "image": image})
    for policy, space, extractor in (
        ("CnnPolicy", image, {"features_dim": 16}),
        ("MultiInputPolicy", mixed, {"cnn_output_dim": 8}),
    ):
        env = vectorized(functools.partial(Chain, spaces.Discrete(3), space))
        kwargs = {"share_features_extractor": share, "features_extractor_kwargs": extractor}
        model = ACKTR(policy, env, n_steps=6, seed=0, device="cpu", policy_kwargs=kwargs)
        before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
        rows = record(model, 24)
        assert all(not torch.equal(before[name], p) for name, p in model.policy.named_parameters()), "every parameter must move"
        assert rows[-1]["train/actor_share"] + rows[-1]["train/critic_share"] == pytest.approx(1.0)
        assert len(model.optimizer.preconditioner.blocks.bare) == 0


def test_logged_names_and_trust_region() -> None:
    model = ACKTR("MlpPolicy", continuous(), natural_gradient={"step": {"name": "kl_trust_region", "radius": 2e-3}}, **SMALL)
    rows = record(model, 160)
    names = (
        "n_updates explained_variance entropy_loss policy_loss value_loss std learning_rate predicted_kl measured_kl measured_critic_kl "
        "kl_scale actor_share critic_share damping min_eigenvalue max_eigenvalue skipped_updates"
    )
    assert {f"train/{name}" for name in names.split()} <= set(rows[-1])
    assert [row["train/n_updates"] for row in rows] == list(range(1, 11))
    assert all(0 < row["train/predicted_kl"] <= 2e-3 and 0 < row["train/kl_scale"] <= 1 for row in rows)
    assert any(row["train/kl_scale"] < 1 for row in rows)
    assert all(row["train/measured_kl"] >= 0 and row["train/measured_critic_kl"] >= 0 for row in rows)
    assert all(0 <= row["train/min_eigenvalue"] < row["train/max_eigenvalue"] for row in rows)


def test_what_costs_something_is_measured_for_written_updates_only() -> None:
    model = ACKTR("MlpPolicy", discrete(), **SMALL)
    recorder = Recorder()
    model.learn(16 * 8, recorder, log_interval=4)
    # SB3 writes in iterations 4 and 8, before the update: the third and the seventh update are what it shows.
    assert [i + 1 for i, row in enumerate(recorder.rows) if "train/measured_kl" in row] == [3, 7]
    model.measure_next_update = True
    model.learn(16, log_interval=100)
    assert "train/measured_kl" in model.logger.name_to_value
    assert not model.measure_next_update
    quiet = ACKTR("MlpPolicy", discrete(), natural_gradient={"measure_kl": False}, **SMALL)
    assert not any("train/measured_kl" in row or "train/max_eigenvalue" not in row for row in record(quiet, 32))


def test_learning_rate_schedule_reaches_the_optimizer() -> None:
    model = ACKTR("MlpPolicy", discrete(), learning_rate=lambda remaining: 0.5 * remaining, **SMALL)
    assert model.optimizer.param_groups[0]["lr"] == 0.5
    rows = record(model, 64)
    assert [row["train/learning_rate"] for row in rows] == pytest.approx([0.375, 0.25, 0.125, 0.0])


def test_learning_rate_is_never_negative_in_a_rollout_that_passes_the_end() -> None:
    model = ACKTR("MlpPolicy", discrete(), learning_rate=lambda remaining: 0.5 * remaining, **SMALL)
    assert [row["train/learning_rate"] for row in record(model, 40)] == pytest.approx([0.3, 0.1, 0.0])


def test_gradient_bound_is_optional() -> None:
    free, bounded = (
        ACKTR("MlpPolicy", discrete(), max_grad_norm=bound, natural_gradient={"step": "plain"}, **SMALL) for bound in (None, 1e-4)
    )
    moved = []
    for model in (free, bounded):
        before = weights(model)
        model.learn(16)
        moved.append((weights(model) - before).norm().item())
    assert moved[1] < 0.1 * moved[0]
    assert math.isinf(free.max_grad_norm)


def test_same_seed_gives_identical_weights() -> None:
    runs = []
    for seed in (5, 5, 6):
        model = ACKTR("MlpPolicy", continuous(), **{**SMALL, "seed": seed})
        runs.append((model.learn(96), weights(model))[1])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_fisher_draws_depend_on_the_agents_seed() -> None:
    assert ACKTR("MlpPolicy", discrete(), **SMALL).optimizer.preconditioner.fisher.seed == 3
    assert (
        ACKTR("MlpPolicy", discrete(), natural_gradient={"fisher": {"kind": "mc", "seed": 8}}, **SMALL).optimizer.preconditioner.fisher.seed
        == 8
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_scale_of_the_rewards_does_not_matter(scale: float) -> None:
    """With the critic's noise tied to its residual every quantity of the update is relative to it, but for the initial values V ~ 0."""
    model = ACKTR("MlpPolicy", discrete(reward=lambda a: scale * a), **SMALL)
    rows = record(model, 16 * 20)
    assert all(0 <= row["train/predicted_kl"] <= model.natural_gradient.to_dict()["step"]["radius"] for row in rows)
    assert rows[-1]["train/skipped_updates"] == 0
    assert torch.isfinite(weights(model)).all()
    assert max(row["train/actor_share"] for row in rows) > 0.01, "the critic must not take the whole trust region"


def test_a_fixed_critic_scale_is_squared_into_the_fisher() -> None:
    """The output layer of the critic has G = E[(eps/scale)^2] = vf_fisher_coef for the exact Fisher."""
    for coefficient in (0.25, 4.0):
        model = ACKTR("MlpPolicy", discrete(), natural_gradient={"vf_fisher_coef": coefficient, "fisher": "exact"}, **SMALL)
        model.learn(16)
        G = model.optimizer.preconditioner.blocks["value_net"].state.moments["G0"]
        assert G.item() == pytest.approx(coefficient, rel=1e-5)


def test_nan_rewards_never_reach_the_weights() -> None:
    model = ACKTR("MlpPolicy", discrete(reward=lambda a: float("nan") if a == 2 else 1.0), **SMALL)
    before = weights(model)
    with pytest.warns(NonFiniteWarning) as caught:
        rows = record(model, 16)
    assert any(re.search("update 1 was skipped.*rewards contain NaN", str(warning.message)) for warning in caught)
    assert torch.equal(before, weights(model))
    assert rows[-1]["train/skipped_updates"] == 1
    assert model._value_variance is None


def test_training_goes_on_after_a_nan() -> None:
    broken = [True]
    model = ACKTR("MlpPolicy", discrete(reward=lambda a: float("nan") if broken[0] else float(a)), **SMALL)
    with pytest.warns(NonFiniteWarning):
        model.learn(16)
    broken[0] = False
    before = weights(model)
    rows = record(model, 64)
    assert rows[-1]["train/skipped_updates"] == 1
    assert torch.isfinite(weights(model)).all()
    assert not torch.equal(before, weights(model))


def test_nan_observation_never_reaches_the_weights() -> None:
    """SB3's distributions refuse NaN while the rollout is collected; only the critic sees the last observation of a rollout."""

    class Poisoned(Chain):
        count = 0

        def _observe(self) -> Any:
            self.count += 1
            observation = super()._observe()
            return observation * np.nan if self.count == 9 else observation

    model = ACKTR("MlpPolicy", vectorized(lambda: Poisoned(spaces.Discrete(3)), 1), **SMALL)
    before = weights(model)
    with pytest.warns(NonFiniteWarning), pytest.raises(ValueError, match="found invalid values"):
        model.learn(64)
    assert torch.equal(before, weights(model))


def test_single_environment_and_tiny_rollout() -> None:
    model = ACKTR("MlpPolicy", Chain(spaces.Discrete(2)), **{**SMALL, "n_steps": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.learn(20)
    assert torch.isfinite(weights(model)).all()


def test_works_with_vec_normalize_callbacks_evaluation_and_tensorboard(tmp_path: Path) -> None:
    env = VecNormalize(continuous(), gamma=0.99)
    evaluation = VecNormalize(continuous(), training=False, norm_reward=False)
    model = ACKTR("MlpPolicy", env, tensorboard_log=str(tmp_path / "events"), **SMALL)
    model.learn(
        64, EvalCallback(evaluation, eval_freq=16, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0), log_interval=1
    )
    model.logger.close()
    assert list((tmp_path / "events" / "ACKTR_1").glob("events*"))
    assert (tmp_path / "best_model.zip").exists()
    mean, _ = evaluate_policy(model, evaluation, n_eval_episodes=2)
    assert np.isfinite(mean)


def test_csv_log_has_one_row_a_write(tmp_path: Path) -> None:
    model = ACKTR("MlpPolicy", discrete(), **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(16 * 6, log_interval=2)
    model.logger.close()
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "train/measured_kl" in header


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_step": 5}, TypeError, "unexpected argument 'n_step'; did you mean 'n_steps'"),
        ({"damping": 0.1}, TypeError, "it belongs to natural_gradient={'damping': ...}"),
        ({"zzz": 1}, TypeError, "unexpected argument 'zzz'; legal: policy, env, natural_gradient, learning_rate"),
        ({"use_sde": True}, ConfigError, "use_sde=True"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.Adam}}, ConfigError, "brings its own optimizer"),
        ({"natural_gradient": {"dampin": 1.0}}, ConfigError, "did you mean 'damping'"),
        ({"natural_gradient": {"curvature": "ekfc"}}, ConfigError, "did you mean 'ekfac'"),
        ({"natural_gradient": {"damping": -1.0}}, ConfigError, "damping must be finite and > 0"),
        ({"natural_gradient": {"damping": "levenberg_marquardt"}}, ConfigError, "measures no progress"),
        ({"natural_gradient": {"momentum": 1.0}}, ConfigError, "momentum"),
        ({"natural_gradient": {"vf_fisher_coef": "atuo"}}, ConfigError, "did you mean 'auto'"),
        ({"natural_gradient": {"vf_fisher_coef": 0.0}}, ConfigError, "vf_fisher_coef"),
        ({"natural_gradient": {"measure_kl": "yes"}}, ConfigError, "measure_kl must be true or false"),
        ({"natural_gradient": 3}, ConfigError, "must be NaturalGradientOptions"),
        ({"n_steps": 0}, ConfigError, "n_steps"),
        ({"gamma": 1.5}, ConfigError, "gamma must be at most 1"),
        ({"vf_coef": -0.5}, ConfigError, "vf_coef"),
        ({"ent_coef": math.inf}, ConfigError, "ent_coef must be finite"),
        ({"ent_coef": "auto"}, ConfigError, "ent_coef must be a number"),
    ],
)
def test_wrong_arguments_say_what_is_legal(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ACKTR("MlpPolicy", discrete(), **arguments)


def test_a_penalty_of_the_entropy_makes_the_noise_fall() -> None:
    """Without rewards nothing else moves it: each of 12 updates multiplies the deviation by ``exp(rate ent_coef / (2 + damping))``."""
    env = continuous(reward=lambda action: 0.0)
    options = {"step": "plain", "damping": 0.01}
    model = ACKTR(
        "MlpPolicy", env, ent_coef=-0.1, learning_rate=0.5, normalize_advantage=False, natural_gradient=options, **{**SMALL, "n_steps": 64}
    )
    with torch.no_grad():
        model.policy.value_net.weight.zero_()  # nor do advantages
    model.learn(12 * 128)
    expected = torch.full((2,), -12 * 0.5 * 0.1 / 2.01)
    torch.testing.assert_close(model.policy.log_std.detach(), expected, rtol=0.02, atol=0.0)


def test_an_action_space_without_a_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="single action"):
        ACKTR("MlpPolicy", vectorized(lambda: Chain(spaces.Discrete(1))), device="cpu")


def test_options_survive_a_round_trip_through_plain_values() -> None:
    options = NaturalGradientOptions(
        curvature=EKFAC(decay=0.9), damping=0.05, fisher={"kind": "mc", "samples": 2}, momentum=0.5, vf_fisher_coef=2
    )
    again = NaturalGradientOptions.of(options.to_dict())
    assert again == options
    assert NaturalGradientOptions.of(None) == NaturalGradientOptions()
    assert NaturalGradientOptions.of(options) is options
    assert NaturalGradientOptions(curvature="kfac").curvature == KFAC()


def test_the_optimizer_is_natural_gradient_and_the_policy_keeps_its_names() -> None:
    model = ACKTR("MlpPolicy", discrete(), **SMALL)
    names = set(model.policy.state_dict())
    assert isinstance(model.policy.optimizer, NaturalGradient)
    model.learn(32)
    assert set(model.policy.state_dict()) == names
    assert model.policy.optimizer is model.optimizer


def test_environment_names_are_accepted() -> None:
    model = ACKTR("MlpPolicy", "CartPole-v1", **SMALL).learn(16)
    assert isinstance(model.get_env().observation_space, gym.spaces.Box)  # type: ignore[union-attr]
    assert model.num_timesteps == 16


@pytest.mark.slow
def test_learns_cartpole() -> None:
    """One seed of the bar that the presets are measured by: a mean of at least 475 over 20 episodes after 40,000 steps."""
    from stable_baselines3.common.env_util import make_vec_env

    model = ACKTR(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 8, seed=1),
        n_steps=32,
        learning_rate=lambda remaining: 0.25 * remaining,
        seed=1,
        device="cpu",
    )
    model.learn(40_000)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=2), n_eval_episodes=20)
    assert np.asarray(mean) >= 475


def test_options_are_read_without_sb3() -> None:
    """A help text or a configuration error must not wait for the seconds that SB3's import takes."""
    code = (
        "import sys, natgrad_apps.agents as agents; agents.NaturalGradientOptions.of({'momentum': 0.5}); "
        "assert 'stable_baselines3' not in sys.modules; assert 'ACKTR' in dir(agents)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(AttributeError, match="no attribute 'ACKTRR'"):
        natgrad_apps.agents.ACKTRR  # noqa: B018


def test_actor_and_critic_may_have_their_own_radius() -> None:
    """In a shared trunk a huge value loss takes the whole of a joint region, and nothing of the policy's own."""
    image = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    shares = []
    for critic in (None, {"name": "kl_trust_region", "radius": 1e-4}):
        options = {"step": {"name": "kl_trust_region", "radius": 1e-3}, "critic_step": critic, "momentum": 0.5}
        policy = {"features_extractor_kwargs": {"features_dim": 16}}
        env = vectorized(functools.partial(Chain, spaces.Discrete(3), image))
        model = ACKTR("CnnPolicy", env, n_steps=6, seed=0, vf_coef=1e5, natural_gradient=options, policy_kwargs=policy)
        rows = record(model, 48)
        shares.append(np.mean([row["train/actor_share"] for row in rows]))
        bound = 1e-3 if critic is None else (1e-3**0.5 + 1e-4**0.5) ** 2
        assert all(row["train/predicted_kl"] <= bound for row in rows)
        assert all("train/critic_kl_scale" in row for row in rows) == (critic is not None)
    assert shares[0] < 0.05
    assert shares[1] > 0.5
