"""What ``check`` and ``train`` say of costs before they cost anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from natgrad_apps.agents import ACKTR, checking, sizes
from natgrad_apps.agents.cli import main
from tests.agents._environments import discrete

Capture = pytest.CaptureFixture[str]


def test_wide_factors_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    agents = {
        "vector": ACKTR("MlpPolicy", discrete(), device="cpu"),
        "pixels": ACKTR("MlpPolicy", discrete(observation_space=pixels), device="cpu"),
        "diagonal": ACKTR("MlpPolicy", discrete(observation_space=pixels), natural_gradient={"curvature": "diagonal"}, device="cpu"),
    }
    assert [sizes.wide_lines(agent) for agent in agents.values()] == [[], [], []]
    monkeypatch.setattr(sizes, "WIDE", 64)
    # Hidden layers of 64 have inputs of 65, with the bias; 8 x 8 x 3 pixels make 193.
    told = sizes.wide_lines(agents["vector"])
    assert told[0].startswith("layer mlp_extractor.policy_net.2 has a factor 65 wide, each refresh of which")
    assert "a larger natural_gradient.refresh.inverse_period" in told[0]
    told = sizes.wide_lines(agents["pixels"])
    assert told[0].startswith("layer mlp_extractor.policy_net.0 has a factor 193 wide")
    assert told[0].endswith("for pictures such as Box(0, 255, (3, 8, 8), uint8) use CnnPolicy")
    assert sizes.wide_lines(agents["diagonal"]) == []


def test_wide_factors_are_told_by_the_command(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "WIDE", 64)
    short = "--environment.n_envs 2 --agent.n_steps 8".split()
    assert main(["check", *short]) == 0
    told = capsys.readouterr()
    assert "warning: layer mlp_extractor.policy_net.2 has a factor 65 wide" in told.err
    assert "\nlayer mlp_extractor.policy_net.2 has a factor 65 wide" in told.out
    assert main(["train", "--out", str(tmp_path / "run"), "--total_timesteps", "16", "--evaluation.final_episodes", "1", *short]) == 0
    assert "warning: layer mlp_extractor.policy_net.2 has a factor 65 wide" in (tmp_path / "run" / "log.txt").read_text()


def test_a_slow_trial_says_how_far_it_is_and_ends_early(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIAL_SECONDS", "SLOW_SECONDS", "TELL_SECONDS"):
        monkeypatch.setattr(checking, name, 0.0)
    assert main(["check", "--environment.n_envs", "2", "--agent.n_steps", "8"]) == 0
    told = capsys.readouterr()
    assert "trying update 1: step 2 of 16" in told.err
    assert "measured      1 update, the first, which takes longer: rollout" in told.out
    monkeypatch.setattr(checking, "SLOW_SECONDS", 100.0)
    assert main(["check", "--environment.n_envs", "2", "--agent.n_steps", "8"]) == 0
    assert "measured      2 updates: rollout" in capsys.readouterr().out
