"""States of environments of users: helpers that point back, generators of spaces, and what cannot be saved."""

from __future__ import annotations

import ctypes
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from natgrad_apps.agents import environment_state
from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environment_state import Resumable
from natgrad_apps.agents.environments import EnvironmentFactory
from natgrad_apps.errors import ConfigError


class Counting(gym.Env[Any, Any]):
    """Its reward is the number of the step."""

    observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,))
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, **attributes: Any) -> None:
        self.x = 0
        vars(self).update(attributes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.advance()
        return np.zeros(1, dtype=np.float32), float(self.x), False, False, {}

    def advance(self) -> None:
        self.x += 1


class Helper:
    def __init__(self, env: Helped) -> None:
        self.env = env

    def bump(self) -> None:
        self.env.x += 1


class Helped(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.helpers = {"one": [Helper(self)]}

    def advance(self) -> None:
        self.helpers["one"][0].bump()


class Outer(gym.Wrapper[Any, Any, Any, Any]):
    """The environment below points to its wrapper."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.bonus = 0
        env.unwrapped.outer = self  # type: ignore[attr-defined]


class Bonus(Counting):
    outer: Outer

    def advance(self) -> None:
        self.x += 1
        self.outer.bonus += 1
        self.x += self.outer.bonus


class Opponent(Counting):
    """A random opponent, who samples from spaces of the environment and of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Dict(a=spaces.Discrete(1000), b=spaces.Tuple([spaces.Discrete(1000)]))
        self.more = spaces.Discrete(1000)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.action_space.seed(seed)
        self.more.seed(seed)
        type(self).observation_space.seed(seed)
        return super().reset(seed=seed)

    def advance(self) -> None:
        sample = self.action_space.sample()
        self.x = sample["a"] + sample["b"][0] + self.more.sample() + self.observation_space.sample()[0]


class Growing(Counting):
    """Its action space changes."""

    def advance(self) -> None:
        self.x += 1
        self.action_space = spaces.Discrete(2 + self.x)


class Sliced(Counting):
    """Writes to an array and reads a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.board = np.zeros((3, 3))
        self.inner = self.board[1:, 1:]

    def advance(self) -> None:
        self.board += 1
        self.x = int(self.inner.sum())


class Slotted(Counting):
    __slots__ = ("slot",)


class Unseen(Counting):
    """An attribute appears in the first step."""

    def advance(self) -> None:
        self.x = 10 if not hasattr(self, "seen") else self.x + 1
        self.seen = True


class Worse:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Remade(gym.utils.EzPickle):
    """Pickles as the arguments of its constructor."""

    def __init__(self, x: int) -> None:
        super().__init__(x)


def rewards(env: gym.Env[Any, Any], steps: int) -> list[float]:
    return [float(env.step(0)[1]) for _ in range(steps)]


def copies(kind: Any) -> tuple[Resumable, Resumable]:
    envs = tuple(Resumable(kind()) for _ in range(2))
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    return envs[0], envs[1]


@pytest.mark.parametrize("kind", [Helped, Opponent, Growing, Sliced, lambda: Outer(Bonus()), Unseen], ids=lambda kind: kind.__name__)
def test_environments_go_on(kind: Any) -> None:
    first, second = copies(kind)
    rewards(first, 3)
    state = first.save_state()
    assert state is not None
    assert first.why_no_state() is None
    expected = rewards(first, 4)
    second.load_state(state)
    again = second.save_state()  # of a resumed environment
    assert again is not None
    assert rewards(second, 4) == expected
    rewards(first, 2)
    first.load_state(again)
    assert rewards(first, 4) == expected
    assert first.action_space == second.action_space


def test_a_helper_drives_the_environment_that_takes_the_state() -> None:
    first, second = copies(Helped)
    assert rewards(first, 3) == [1, 2, 3]
    state = first.save_state()
    assert state is not None
    second.load_state(state)
    assert rewards(second, 3) == [4, 5, 6]
    helped = second.unwrapped
    assert isinstance(helped, Helped)
    assert helped.helpers["one"][0].env is helped


def test_saving_changes_nothing() -> None:
    env, _ = copies(Helped)
    rewards(env, 3)
    before = {name: (id(value), repr(value)) for name, value in vars(env.unwrapped).items()}
    for _ in range(2):
        env.save_state()
    assert {name: (id(value), repr(value)) for name, value in vars(env.unwrapped).items()} == before
    assert rewards(env, 1) == [4]


def test_an_attribute_of_a_later_step_goes_away() -> None:
    first, second = copies(Unseen)
    rewards(second, 5)
    state = first.save_state()
    assert state is not None
    second.load_state(state)
    assert rewards(second, 2) == [10, 11]


def test_spaces_of_the_running_environment_stay_its_own() -> None:
    first, second = copies(Opponent)
    space = second.action_space
    state = first.save_state()
    assert state is not None
    second.load_state(state)
    assert second.action_space is space
    assert repr(second.action_space.sample()) == repr(first.action_space.sample())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (ctypes.pointer(ctypes.c_int(3)), "ctypes objects containing pointers cannot be pickled"),
        (Worse(RuntimeError("only by inheritance")), "only by inheritance"),
        (Worse(OSError("closed")), "closed"),
        (Worse(KeyError()), "KeyError"),
        (lambda: 3, "pickle"),
        (os.system, "neither plain data nor a class of the environment"),
        (Path("a"), "neither plain data nor a class of the environment"),
        (Remade(3), "Remade has a __setstate__ of its own, which is not called"),
    ],
)
def test_what_cannot_be_saved_is_no_state_and_is_named(value: Any, reason: str) -> None:
    venv = DummyVecEnv([lambda: Resumable(Counting()), lambda: Resumable(Counting(thing=[value]))])
    venv.reset()
    assert environment_state.capture(venv) is None
    message = environment_state.why_no_state(venv)
    assert message is not None
    assert message.startswith("attribute 'thing' of Counting: ")
    assert reason in message
    venv.step(np.zeros(2, dtype=int))
    del venv.envs[1].unwrapped.thing  # type: ignore[attr-defined]
    assert environment_state.capture(venv) is not None
    assert environment_state.why_no_state(venv) is None


def test_slots_of_an_environment_are_no_state() -> None:
    env, _ = copies(Slotted)
    assert env.save_state() is None
    assert env.why_no_state() == "Slotted has __slots__, which are not saved"


def test_a_view_of_the_simulator_is_no_state() -> None:
    pytest.importorskip("mujoco")
    env = EnvironmentFactory(EnvironmentConfig("InvertedPendulum-v5"))()
    assert isinstance(env, Resumable)
    env.reset(seed=0)
    assert env.save_state() is not None
    env.unwrapped.position = env.unwrapped.data.qpos  # type: ignore[attr-defined]
    assert env.save_state() is None
    assert "view of the simulator's memory" in str(env.why_no_state())


def test_helpers_find_the_running_simulator() -> None:
    pytest.importorskip("mujoco")
    envs = []
    for seed in range(2):
        env = EnvironmentFactory(EnvironmentConfig("InvertedPendulum-v5"))()
        assert isinstance(env, Resumable)
        env.reset(seed=seed)
        base: Any = env.unwrapped
        base.parts = {"data": base.data, "model": base.model, "renderer": base.mujoco_renderer, "whole": env}
        envs.append(env)
    state = envs[0].save_state()
    assert state is not None
    envs[1].load_state(state)
    base = envs[1].unwrapped
    assert (base.parts["data"], base.parts["model"]) == (base.data, base.model)
    assert base.parts["renderer"] is base.mujoco_renderer
    assert base.parts["whole"] is envs[1]
    np.testing.assert_array_equal(base.data.qpos, envs[0].unwrapped.data.qpos)  # type: ignore[attr-defined]


class Called:
    """Pickles as a call."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def crafted(env: Resumable, value: Any) -> bytes:
    """A state with a value among the attributes of its first layer."""
    state = env.save_state()
    assert state is not None
    data = {"layers": [{"attributes": {"_steps": value}}], "spaces": []}
    return zlib.compress(pickle.dumps(data, protocol=5))


def test_a_crafted_state_does_not_run(tmp_path: Path) -> None:
    """The reader of SB3's own pickles runs what it wraps, and its loggers open files."""
    env = EnvironmentFactory(EnvironmentConfig("CartPole-v1"))()
    assert isinstance(env, Resumable)
    env.reset(seed=0)
    made, victim = tmp_path / "made", tmp_path / "victim"
    victim.write_text("precious")
    wrapped = cloudpickle.dumps(Called(os.mkdir, (str(made),)))
    attempts = [
        Called(os.mkdir, (str(made),)),
        Called(CloudpickleWrapper, (None,), wrapped),
        Called(CSVOutputFormat, (str(victim),)),
        Called(np.random._pickle.__generator_ctor, (str(made), os.mkdir)),  # type: ignore[attr-defined]
        Called(np.random._pickle.__generator_ctor, (str(victim), CSVOutputFormat)),  # type: ignore[attr-defined]
    ]
    before = env.save_state()
    for attempt in attempts:
        with pytest.raises(pickle.UnpicklingError, match="neither plain data nor a class of the environment"):
            env.load_state(crafted(env, attempt))
    assert not made.exists()
    assert victim.read_text() == "precious"
    assert env.save_state() == before


@pytest.mark.parametrize(
    "state",
    [
        {"layers": [{"attributes": {"step": 1}}], "spaces": [{}]},
        {"layers": [{"attributes": {"spec": 1}}], "spaces": [{}]},
        {"layers": [{"attributes": {1: 1}}], "spaces": [{}]},
        {"layers": [{"attributes": {}, "mujoco": 1}], "spaces": [{}]},
        {"layers": [{}], "spaces": [{}]},
        {"layers": [1], "spaces": [{}]},
        {"layers": [{"attributes": {}}], "spaces": [{"sample": 1}, {}]},
        {"layers": [{"attributes": {}}], "spaces": []},
        {"layers": [], "spaces": [{}]},
        {"layers": (), "spaces": []},
        [],
        None,
    ],
)
def test_other_states_are_refused(state: Any) -> None:
    env = Resumable(Counting())
    env.reset(seed=0)
    before = env.save_state()
    data = zlib.compress(pickle.dumps(state, protocol=5))
    with pytest.raises(pickle.UnpicklingError):
        env.load_state(data)
    assert env.save_state() == before
    venv = DummyVecEnv([lambda: env])
    with pytest.raises(ConfigError, match=r"state of environment 0 cannot be read: .*; start a new run"):
        environment_state.restore(venv, {"environments": [data]})


@pytest.mark.parametrize("data", [b"", b"damaged", None])
def test_damaged_states_are_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="not a state of an environment"):
        environment_state.restore(DummyVecEnv([lambda: Resumable(Counting())]), {"environments": [data]})
