"""The RL Zoo's form of hyperparameters becomes the runner's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from natgrad_apps.agents import cli
from natgrad_apps.agents.config import LinearSchedule, TrainConfig
from natgrad_apps.agents.zoo import read_zoo
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.yaml_text import merge

FILE = """
mujoco: &mujoco
  normalize: "{'norm_obs': True, 'norm_reward': False, 'clip_obs': 5}"
  n_envs: 4
  n_timesteps: !!float 1e6
  policy: 'MlpPolicy'
  learning_rate: lin_0.25
  policy_kwargs: "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[128]))"
HalfCheetah-v5:
  <<: *mujoco
  gamma: 0.98
  natural_gradient: {step: {name: kl_trust_region, radius: 0.02}}
atari:
  env_wrapper:
    - stable_baselines3.common.atari_wrappers.AtariWrapper
  frame_stack: 4
  policy: CnnPolicy
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "acktr.yml"
    path.write_text(FILE)
    return path


def read(path: Path, env_id: str) -> TrainConfig:
    return schema.read(TrainConfig, merge(schema.to_tree(TrainConfig(), "defaults"), read_zoo(path, env_id)))


def test_every_key_arrives(file: Path) -> None:
    config = read(file, "HalfCheetah-v5")
    environment, agent = config.environment, config.agent
    assert (environment.id, environment.n_envs, config.total_timesteps) == ("HalfCheetah-v5", 4, 1_000_000)
    assert (environment.normalize_observations, environment.normalize_rewards, environment.clip_observations) == (True, False, 5.0)
    assert agent.gamma == 0.98
    assert agent.schedule() == LinearSchedule(0.25)
    assert agent.network.net_arch == {"pi": [256, 256], "vf": [128]}
    assert (agent.network.activation, agent.network.ortho_init, agent.network.log_std_init) == ("relu", False, -2.0)
    assert agent.natural_gradient.step.radius == 0.02  # type: ignore[union-attr]


def test_atari_entry_serves_every_game(file: Path) -> None:
    config = read(file, "PongNoFrameskip-v4")
    assert (config.environment.preprocessing, config.environment.frame_stack, config.agent.policy) == ("atari", 4, "CnnPolicy")


@pytest.mark.parametrize(
    ("text", "env_id", "message"),
    [
        ("A-v0: {batch_size: 64, n_epochs: 10}", "A-v0", "ACKTR has no batch_size, n_epochs; drop them"),
        ("A-v0: {n_envs: 2}", "B-v0", "no entry for 'B-v0'; it has: A-v0"),
        ("A-v0: {policy_kwargs: \"dict(net_arch=__import__('os').getcwd())\"}", "A-v0", "policy_kwargs must be a mapping"),
        ('A-v0: {policy_kwargs: "dict(optimizer_class=nn.ReLU)"}', "A-v0", "optimizer_class"),
        ("A-v0: {normalize: \"{'norm_everything': True}\"}", "A-v0", "norm_everything"),
        ("A-v0: {env_wrapper: my.Wrapper}", "A-v0", "env_wrapper 'my.Wrapper' is not known"),
        ("A-v0: {use_sde: true}", "A-v0", "use_sde is refused"),
        ("A-v0: [1, 2]", "A-v0", "must map environments"),
        ("A-v0: {", "A-v0", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_an_error(tmp_path: Path, text: str, env_id: str, message: str) -> None:
    path = tmp_path / "zoo.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_zoo(path, env_id)


def test_values_are_checked_like_those_of_any_other_file(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yml"
    path.write_text("A-v0: {n_envs: many}")
    with pytest.raises(ConfigError, match=r"environment\.n_envs.*zoo.yml, entry A-v0"):
        read(path, "A-v0")


def test_command_line_stands_over_the_entry(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--zoo", str(file), "--environment.id", "HalfCheetah-v5", "--agent.gamma", "0.9", "--print_config"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "gamma: 0.9\n" in printed
    assert "n_envs: 4" in printed


def test_the_environment_must_be_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--zoo", str(file), "--out", "nowhere"]) == 2
    assert "--environment.id" in capsys.readouterr().err
