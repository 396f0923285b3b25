"""A small configuration, and one finished run of it that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from natgrad_apps.agents.cli import main

SMALL = """
environment: {id: CartPole-v1, n_envs: 4}
agent: {n_steps: 16, learning_rate: lin_0.25}
total_timesteps: 1280
log_every: 2
checkpoint_every: 500
evaluation: {every_steps: 640, episodes: 3, final_episodes: 4, n_envs: 2}
threads: 1
device: cpu
"""


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the small configuration."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> Path:
    """A run folder that nobody writes to."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 0
    return out
