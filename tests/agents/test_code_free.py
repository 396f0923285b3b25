"""Checkpoints are read without running code that they name."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from natgrad_apps.agents import environment_state, safe_pickle, snapshot
from natgrad_apps.agents.cli import main
from natgrad_apps.agents.config import EnvironmentConfig
from natgrad_apps.agents.environments import EnvironmentFactory
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints, plain_data


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, (list, tuple, deque)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def test_plain_data_comes_back_as_it_was() -> None:
    tree = {
        "none": None,
        "numbers": [True, -3, 0.1, 1e-300, float("inf"), np.float32(0.1), np.int64(7)],
        "arrays": (np.arange(6, dtype=np.uint8).reshape(2, 3), np.zeros((0, 4)), np.array(3.0), np.array(["a", "bc"])),
        "episodes": deque([{"r": 1.5, "l": 3}], maxlen=4),
        1: b"\x00\xff",
        "text": "ä\n",
        "dict": {"__kind__": "array", "index": 0},
    }
    again = plain_data.load(plain_data.dump(tree), "file")
    assert_same(again, tree)
    assert again["episodes"].maxlen == 4
    np.testing.assert_array_equal(plain_data.load(plain_data.dump(torch.ones(2)), "file"), np.ones(2, dtype=np.float32))


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: None, np.array([object()]), os])
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="no plain data"):
        plain_data.dump({"x": value})


def test_plain_data_calls_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(tmp_path / "boom")]), allow_pickle=True)
    data = plain_data.dump(np.zeros(1))
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        new.writestr(plain_data.STRUCTURE, old.read(plain_data.STRUCTURE))
        new.writestr("0.npy", buffer.getvalue())
    with pytest.raises(ConfigError, match=r"run\.zip cannot be read"):
        plain_data.load(changed.getvalue(), "run.zip")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 nonsense", plain_data.dump({"a": np.ones(3)})[:-30]])
def test_damaged_plain_data_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"run\.zip cannot be read"):
        plain_data.load(data, "run.zip")


def test_an_environment_state_that_names_code_is_refused(tmp_path: Path) -> None:
    env = EnvironmentFactory(EnvironmentConfig(id="CartPole-v1"))()
    env.reset(seed=0)
    assert isinstance(env, environment_state.Resumable)
    for value in (Bomb(tmp_path / "boom"), eval, os.system, pickle.loads, Bomb):
        evil = zlib.compress(pickle.dumps({"layers": [{"attributes": {"x": value}}], "spaces": []}))
        with pytest.raises(pickle.UnpicklingError, match="neither plain data nor a class of the environment"):
            env.load_state(evil)
    assert not (tmp_path / "boom").exists()


def test_functions_of_the_environments_own_package_are_refused() -> None:
    with pytest.raises(pickle.UnpicklingError):
        safe_pickle.loads(b"cgymnasium.envs.registration\nmake\n(VCartPole-v1\ntR.", {"gymnasium"}, {})
    with pytest.raises(pickle.UnpicklingError):  # a name that the package has only imported
        safe_pickle.loads(b"cgymnasium.core\nAny\n.", {"gymnasium"}, {})


def test_an_unreadable_attribute_means_no_state() -> None:
    env = EnvironmentFactory(EnvironmentConfig(id="CartPole-v1"))()
    env.reset(seed=0)
    assert isinstance(env, environment_state.Resumable)
    assert env.save_state() is not None
    env.unwrapped.hook = os.system  # type: ignore[attr-defined]
    assert env.save_state() is None


def test_the_runner_never_unpickles_the_agent(finished: Path, tmp_path: Path) -> None:
    """`agent.zip` may hold anything beside its tensors: the runner reads only these."""
    newest = sorted((finished / "checkpoint").glob("step_*"))[-1]
    copy = tmp_path / "copy"
    shutil.copytree(newest, copy)
    files = dict(checkpoints.load(copy).files)
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files[snapshot.AGENT])) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, b'{"x": {":type:": "x", ":serialized:": "!"}}' if name == "data" else old.read(name))
    files[snapshot.AGENT] = changed.getvalue()
    files.pop(snapshot.NORMALIZATION, None)
    store = checkpoints.CheckpointStore(tmp_path / "store")
    folder = store.save(1, files)
    assert main(["evaluate", str(folder), "--episodes", "1", "--out", str(tmp_path / "out")]) == 0


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A short run with normalization."""
    out = tmp_path / "run"
    arguments = ["--environment.id", "Pendulum-v1", "--environment.n_envs", "2", "--environment.normalize_observations", "true"]
    short = ["--agent.n_steps", "8", "--total_timesteps", "16", "--evaluation.final_episodes", "1", "--threads", "1"]
    assert main(["train", "--out", str(out), *arguments, *short]) == 0
    return out
