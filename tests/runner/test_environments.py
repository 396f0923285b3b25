"""Environments of the runner: errors for users, Atari preprocessing, and states that can be saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from natgrad_apps.agents import environment_state
from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environments import EnvironmentFactory, find_normalization, make, make_evaluation, make_training
from natgrad_apps.errors import ConfigError


class Unpicklable(gym.Env[Any, Any]):
    """An environment whose simulator cannot be saved."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, **kwargs: Any) -> None:
        self.simulator = lambda: 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, dtype=np.float32), 1.0, False, False, {}


gym.register("RunnerTestUnpicklable-v0", Unpicklable)


class Broken(Unpicklable):
    """An environment that cannot be made, and says so in its own way."""

    def __init__(self, **kwargs: Any) -> None:
        raise kwargs["error"]


for name, error in {
    "file": FileNotFoundError("assets/robot.xml"),
    "exit": SystemExit("no display"),
    "value": ValueError("unable to read from it"),
}.items():
    gym.register(f"RunnerTestBroken_{name}-v0", Broken, kwargs={"error": error})


class Seen(Unpicklable):
    """An environment with the given observations."""

    def __init__(self, **kwargs: Any) -> None:
        self.observation_space = kwargs["space"]


BOX = spaces.Box(-1, 1, (2,))
SEEN: dict[str, spaces.Space[Any]] = {
    "mixed": spaces.Dict(a=BOX, b=spaces.Discrete(3)),
    "nested": spaces.Dict(a=spaces.Dict(x=BOX)),
    "tuple": spaces.Tuple((BOX, spaces.Discrete(2))),
    "graph": spaces.Graph(BOX, None),
    "text": spaces.Text(5),
}
for name, space in SEEN.items():
    gym.register(f"RunnerTestSeen_{name}-v0", Seen, kwargs={"space": space}, disable_env_checker=True)

PONG = EnvironmentConfig("PongNoFrameskip-v4", n_envs=2, preprocessing="atari", frame_stack=4)
RESUMABLE = {
    "cartpole": EnvironmentConfig("CartPole-v1", n_envs=3),
    "acrobot": EnvironmentConfig("Acrobot-v1", n_envs=2),
    "pendulum-normalized": EnvironmentConfig("Pendulum-v1", n_envs=2, normalize_observations=True, normalize_rewards=True),
    "stacked": EnvironmentConfig("CartPole-v1", n_envs=2, frame_stack=3, normalize_observations=True),
    "mujoco": EnvironmentConfig("HalfCheetah-v5", n_envs=2, normalize_observations=True),
    "atari": PONG,
    "sticky-atari": EnvironmentConfig("ALE/Pong-v5", n_envs=1, preprocessing="atari", kwargs={"frameskip": 1}),
    "subprocess": EnvironmentConfig("CartPole-v1", n_envs=2, vectorization="subprocess"),
}


def play(venv: VecEnv, steps: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """Observations, rewards and ends of random play."""
    generator = np.random.default_rng(seed)
    record: list[np.ndarray[Any, Any]] = []
    actions: np.ndarray[Any, Any]
    for _ in range(steps):
        if isinstance(venv.action_space, spaces.Discrete):
            actions = generator.integers(venv.action_space.n, size=venv.num_envs)
        else:
            assert isinstance(venv.action_space, spaces.Box)
            actions = generator.uniform(venv.action_space.low, venv.action_space.high, (venv.num_envs, *venv.action_space.shape))
        observations, rewards, dones, infos = venv.step(actions)
        assert isinstance(observations, np.ndarray)
        returns = np.array([info.get("episode", {"r": np.nan})["r"] for info in infos])
        record += [observations.copy(), np.array(rewards), np.array(dones), returns]
    return record


# Each copy in a process of its own imports torch and SB3 anew, which takes seconds.
CASES = [pytest.param(config, id=name, marks=[pytest.mark.slow] if name == "subprocess" else []) for name, config in RESUMABLE.items()]


@pytest.mark.parametrize("config", CASES)
def test_a_restored_environment_goes_on_in_the_middle_of_its_episodes(config: EnvironmentConfig) -> None:
    """Bit-equal observations, rewards, ends and episode returns, through the ends of episodes."""
    first, second = make_training(config, 0.99, seed=3), make_training(config, 0.99, seed=99)
    first.reset()
    second.reset()
    play(first, 17, seed=0)
    state = environment_state.capture(first)
    assert state is not None
    statistics, own = find_normalization(first), find_normalization(second)
    if statistics is not None and own is not None:
        own.ret_rms = statistics.ret_rms.copy()
        own.obs_rms = statistics.obs_rms.copy()
    expected = play(first, 60, seed=1)
    environment_state.restore(second, state)
    for left, right in zip(expected, play(second, 60, seed=1), strict=True):
        np.testing.assert_array_equal(left, right)
    first.close()
    second.close()


def test_the_comparison_would_see_a_difference() -> None:
    """Without the state, the second environment plays other episodes."""
    first, second = (make_training(RESUMABLE["cartpole"], 0.99, seed=s) for s in (3, 99))
    first.reset()
    second.reset()
    play(first, 17, seed=0)
    pairs = zip(play(first, 30, seed=1), play(second, 30, seed=1), strict=True)
    assert any(not np.array_equal(left, right, equal_nan=True) for left, right in pairs)


def test_an_environment_without_a_state_says_so() -> None:
    venv = make_training(EnvironmentConfig("RunnerTestUnpicklable-v0", n_envs=2), 0.99, seed=0)
    venv.reset()
    assert environment_state.capture(venv) is None


def test_atari_is_preprocessed() -> None:
    venv = make_training(PONG, 0.99, seed=0)
    assert isinstance(venv.observation_space, spaces.Box)
    assert (venv.observation_space.shape, venv.observation_space.dtype) == ((84, 84, 4), np.dtype(np.uint8))
    assert isinstance(venv.action_space, spaces.Discrete)
    assert venv.action_space.n == 6
    venv.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"cannot be made.*nearest ids: CartPole-v1"),
        ("CartPole-v7", r"provides versioned environments.*nearest ids: CartPole-v"),
        ("PongNoFrameskp-v4", "nearest ids: PongNoFrameskip-v4"),
        ("nothing", "cannot be made"),
        ("", "cannot be made"),
        ("no_such_module:Env-v0", r"needs a module that cannot be imported.*no_such_module"),
        ("HalfCheetah-v2", "needs a module that cannot be imported"),
        ("MiniGrid-Empty-5x5-v0", "doesn't exist; if another package registers it, say which: module:MiniGrid-Empty-5x5-v0$"),
        ("RunnerTestBroken_file-v0", r"cannot be made: FileNotFoundError: assets/robot\.xml$"),
        ("RunnerTestBroken_exit-v0", "cannot be made: SystemExit: no display$"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_environments_that_cannot_be_made(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(env_id, {})


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"refuses kwargs \{'gravity': 3\}"):
        make("CartPole-v1", {"gravity": 3})


def test_arguments_are_blamed_only_for_what_is_theirs() -> None:
    with pytest.raises(ConfigError, match=r"cannot be made with kwargs \{'size': 3\}: ValueError: unable to read from it$"):
        make("RunnerTestBroken_value-v0", {"size": 3})


def test_roms_are_hinted_at_for_games_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ale_py")

    def fail(*arguments: object, **named: object) -> None:
        raise OSError("no ROM found")

    monkeypatch.setattr(gym, "make", fail)
    with pytest.raises(ConfigError, match="the ROMs come with ale-py"):
        make("PongNoFrameskip-v4", {})
    with pytest.raises(ConfigError, match=r"OSError: no ROM found$"):
        make("CartPole-v1", {})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **named: object) -> None:
        raise gym.error.DependencyNotInstalled('Box2D is not installed, run `pip install "gymnasium[box2d]"`')

    monkeypatch.setattr(gym, "make", missing)
    with pytest.raises(ConfigError, match=r"needs a package that is not installed: .*pip install"):
        make("LunarLander-v3", {})


def test_mujoco_says_each_warning_once_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    handlers: list[Callable[[str], None]] = []
    monkeypatch.setattr(mujoco, "set_mju_user_warning", handlers.append)
    make("HalfCheetah-v5", {}).close()
    capfd.readouterr()
    (tell,) = handlers
    for message in ("attribute 'x' is deprecated", "Nan, Inf or huge value", "Nan, Inf or huge value"):
        tell(message)
    assert capfd.readouterr().err == "MuJoCo warning: Nan, Inf or huge value\n"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MUJOCO_LOG.TXT").unlink(missing_ok=True)  # of the run above, whose handler was not installed
    make("HalfCheetah-v5", {}).close()
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_missing_ale_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natgrad_apps.agents.environments._register_arcade", lambda: False)
    with pytest.raises(ConfigError, match=r"needs ale-py, which is not installed; pip install \"natgrad-apps\[rl\]\""):
        make("NoSuchGameNoFrameskip-v4", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "CartPole-v1", "preprocessing": "atari"}, "'CartPole-v1' is no Atari environment"),
        ({"id": "ALE/Pong-v5", "preprocessing": "atari"}, "does so too; use a NoFrameskip-v4 id"),
        ({"id": "FrozenLake-v1", "normalize_observations": True}, "normalize_observations needs observations that are arrays"),
        ({"id": "FrozenLake-v1", "frame_stack": 2}, "frame_stack needs observations that are arrays"),
        ({"id": "RunnerTestSeen_mixed-v0", "frame_stack": 2}, r"frame_stack needs .* got Discrete\(3\) under 'b'; leave it out"),
        ({"id": "RunnerTestSeen_mixed-v0", "normalize_observations": True}, r"normalize_observations needs .* Discrete\(3\) under 'b'"),
        ({"id": "RunnerTestSeen_nested-v0"}, r"Dict\('x'.*under 'a'; legal are Box, .* or a Dict of these; .*FlattenObservation"),
        ({"id": "RunnerTestSeen_tuple-v0"}, "'RunnerTestSeen_tuple-v0' has observations Tuple.*; legal are Box, .*FlattenObservation"),
        ({"id": "RunnerTestSeen_graph-v0"}, "has observations Graph.*; legal are Box, .*TransformObservation"),
        ({"id": "RunnerTestSeen_text-v0"}, "has observations Text.*; legal are Box"),
    ],
)
def test_settings_that_do_not_fit_the_environment(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_training(dataclasses.replace(EnvironmentConfig(n_envs=1), **changes), 0.99, seed=0)


def test_a_fault_is_told_before_a_subprocess_starts() -> None:
    with pytest.raises(ConfigError, match="cannot be made"):
        make_training(EnvironmentConfig("CartPol-v1", vectorization="subprocess"), 0.99, seed=0)


def test_evaluation_uses_the_training_statistics_and_leaves_them_alone() -> None:
    config = EnvironmentConfig("Pendulum-v1", n_envs=2, normalize_observations=True, normalize_rewards=True)
    training = make_training(config, 0.99, seed=0)
    statistics = find_normalization(training)
    assert statistics is not None
    training.reset()
    play(training, 20, seed=0)
    evaluation = make_evaluation(config, 1, 5, statistics)
    own = find_normalization(evaluation)
    assert isinstance(own, VecNormalize)
    assert isinstance(statistics.obs_rms, RunningMeanStd)
    mean = statistics.obs_rms.mean.copy()
    evaluation.reset()
    rewards = np.array(play(evaluation, 20, seed=1)[1::4])
    np.testing.assert_array_equal(statistics.obs_rms.mean, mean)
    assert own.obs_rms is statistics.obs_rms
    assert rewards.min() < -0.5  # Pendulum's own rewards reach -16; normalized ones stay near 0
    training.close()
    evaluation.close()


def test_the_factory_makes_independent_copies() -> None:
    factory = EnvironmentFactory(EnvironmentConfig("CartPole-v1"))
    assert factory().unwrapped is not factory().unwrapped
