"""The command with policies that read more than observations: interruption, resumption, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from natgrad_apps.agents.building import resolve_device
from natgrad_apps.agents.cli import main
from natgrad_apps.agents.config import AgentConfig, TrainConfig
from natgrad_apps.agents.spaces import check_policy
from natgrad_apps.errors import ConfigError
from tests.runner.test_acktr_resume import assert_pieces_equal_the_whole


class Guarded(gym.Env[Any, Any]):
    """Ten steps, each with a mask of its own over two dimensions of actions; an illegal action is an error."""

    def __init__(self, **kwargs: Any) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.MultiDiscrete([3, 2])
        self.time, self.masks = 0, np.ones(5, bool)

    def action_masks(self) -> np.ndarray[Any, Any]:
        return self.masks

    def _observe(self) -> Any:
        self.masks = self.np_random.random(5) < 0.5
        self.masks[[self.np_random.integers(3), 3 + self.np_random.integers(2)]] = True
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not (self.masks[action[0]] and self.masks[3 + action[1]]):
            raise AssertionError(f"illegal action {action}")
        self.time += 1
        return self._observe(), float(action[0]), False, self.time >= 10, {}


gym.register("RunnerTestGuarded-v0", Guarded)


class WrongMasks(Guarded):
    """Masks that are wrong, from the beginning or only later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.wrong, self.since = kwargs["wrong"], kwargs.get("since", 0)

    def action_masks(self) -> Any:
        return self.wrong if self.time >= self.since else super().action_masks()


WRONG = {
    "length": (np.ones(4, bool), "must be 2 x 5 booleans for the action space MultiDiscrete([3 2]), got bool of shape (2, 4)"),
    "none": (None, "must be 2 x 5 booleans for the action space MultiDiscrete([3 2]), got object of shape (2,)"),
    "all": (np.zeros(5, bool), "environment 0 has no legal action: its action_masks() are all false"),
}
for name, (masks, _) in WRONG.items():
    gym.register(f"RunnerTestWrong_{name}-v0", WrongMasks, kwargs={"wrong": masks})

CONFIG = """
environment: {{id: {environment}, n_envs: 3, normalize_observations: true, vectorization: {vectorization}}}
agent:
  policy: {policy}
  n_steps: 12
  natural_gradient: {{value_normalization: {{}}, momentum: 0.5, refresh: {{name: periodic, inverse_period: 2}}}}
total_timesteps: 432
log_every: 2
checkpoint_every: 100
evaluation: {{every_steps: 144, episodes: 2, final_episodes: 2, n_envs: 1}}
threads: 1
device: cpu
"""


@pytest.mark.parametrize(
    ("environment", "policy", "vectorization"),
    [
        ("RunnerTestGuarded-v0", "MaskableMlpLstmPolicy", "serial"),
        pytest.param("CartPole-v1", "MlpLstmPolicy", "serial", marks=pytest.mark.slow),
        pytest.param("tests.runner.test_context_policies:RunnerTestGuarded-v0", "MaskableMlpPolicy", "subprocess", marks=pytest.mark.slow),
    ],
)
def test_a_run_in_pieces_equals_the_run_in_one_piece(
    environment: str, policy: str, vectorization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(environment=environment, policy=policy, vectorization=vectorization))
    assert_pieces_equal_the_whole(config, tmp_path, monkeypatch)
    assert main(["evaluate", str(tmp_path / "parts"), "--episodes", "2"]) == 0
    assert len(json.loads((tmp_path / "parts" / "evaluation.json").read_text())["evaluation"]["returns"]) == 2


SHORT = "--agent.policy MaskableMlpPolicy --environment.n_envs 2 --agent.n_steps 8 --evaluation.n_envs 2 --total_timesteps 64".split()


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_masks_are_told_before_anything_is_written(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--environment.id", f"RunnerTestWrong_{kind}-v0", *SHORT]) == 2
    error = capsys.readouterr().err
    assert f"{WRONG[kind][1]} (environment 'RunnerTestWrong_{kind}-v0')" in error
    assert not out.exists()


def test_masks_that_go_wrong_later_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not bad input: something has been written."""
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--environment.id", "RunnerTestWrong_all-v0", "--environment.kwargs.since", "5", *SHORT]) == 1
    assert "all false (environment 'RunnerTestWrong_all-v0'); the traceback is in" in capsys.readouterr().err
    assert "Traceback" in (out / "log.txt").read_text()


@pytest.mark.parametrize(("policy", "device"), [("CnnPolicy", "cuda"), ("MaskableCnnLstmPolicy", "cuda"), ("MlpLstmPolicy", "cpu")])
def test_pixels_go_to_the_accelerator(policy: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(TrainConfig(agent=AgentConfig(policy=policy))) == device


def test_pixels_in_a_dictionary_go_to_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = TrainConfig(agent=AgentConfig(policy="MultiInputPolicy"))
    vector = spaces.Box(-1.0, 1.0, (3,), np.float32)
    assert resolve_device(config, spaces.Dict(a=vector)) == "cpu"
    assert resolve_device(config, spaces.Dict(a=vector, b=spaces.Box(0, 255, (36, 36, 3), np.uint8))) == "cuda"


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        ("CnnPolicy", spaces.Box(0.0, 1.0, (36, 36, 3), np.float32), r"reads pixels, uint8 from 0 to 255 .*normalize_observations false"),
        ("MaskableCnnLstmPolicy", spaces.Box(0.0, 1.0, (3,), np.float32), "for vectors use 'MaskableMlpLstmPolicy'"),
        ("CnnPolicy", spaces.Discrete(3), r"reads pixels, .* got Discrete\(3\)"),
        ("MultiInputPolicy", spaces.Discrete(3), r"reads dictionaries of observations, got Discrete\(3\); use 'MlpPolicy'"),
    ],
)
def test_policies_that_read_other_observations_are_refused(policy: str, space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_policy(space, policy)


def test_policies_take_what_they_read() -> None:
    for policy, space in {
        "CnnPolicy": spaces.Box(0, 255, (36, 36, 3), np.uint8),
        "MultiInputPolicy": spaces.Dict(a=spaces.Discrete(3)),
        "MlpPolicy": spaces.Box(0.0, 1.0, (36, 36, 3), np.float32),
    }.items():
        check_policy(space, policy)
