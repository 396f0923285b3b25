"""The RL Zoo's form of hyperparameters becomes the runner's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from natgrad_apps.agents import cli
from natgrad_apps.agents.config import AgentConfig, LinearSchedule, TrainConfig
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
    return schema.read(TrainConfig, merge(schema.to_tree(TrainConfig(), "defaults"), read_zoo(path, env_id).settings))


def entry(tmp_path: Path, text: str) -> Path:
    """A file with one entry, A-v0."""
    path = tmp_path / "zoo.yml"
    path.write_text("A-v0:\n" + "".join(f"  {line}\n" for line in text.strip().splitlines()))
    return path


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
    assert not read_zoo(file, "HalfCheetah-v5").warning


def test_atari_entry_serves_every_game(file: Path) -> None:
    config = read(file, "PongNoFrameskip-v4")
    assert (config.environment.preprocessing, config.environment.frame_stack, config.agent.policy) == ("atari", 4, "CnnPolicy")


# Entries of the Zoo's files for PPO and A2C, with their values.
PPO_ATARI = """
env_wrapper:
  - stable_baselines3.common.atari_wrappers.AtariWrapper
frame_stack: 4
policy: 'CnnPolicy'
n_envs: 8
n_steps: 128
n_epochs: 4
batch_size: 256
n_timesteps: !!float 1e7
learning_rate: lin_2.5e-4
clip_range: lin_0.1
vf_coef: 0.5
ent_coef: 0.01
"""
PPO_MUJOCO = """
normalize: true
n_envs: 1
policy: 'MlpPolicy'
n_timesteps: !!float 1e6
batch_size: 32
n_steps: 512
gamma: 0.999
learning_rate: 9.80828e-05
ent_coef: 0.00229519
clip_range: 0.2
n_epochs: 5
gae_lambda: 0.99
max_grad_norm: 0.7
vf_coef: 0.835671
policy_kwargs: "dict(
                  log_std_init=-2,
                  ortho_init=False,
                  activation_fn=nn.ReLU,
                  net_arch=[dict(pi=[256, 256], vf=[256, 256])]
                )"
"""
A2C_ATARI = """
env_wrapper:
  - stable_baselines3.common.atari_wrappers.AtariWrapper
frame_stack: 4
policy: 'CnnPolicy'
n_envs: 16
n_timesteps: !!float 1e7
ent_coef: 0.01
vf_coef: 0.25
policy_kwargs: "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))"
"""


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        (PPO_ATARI, ["n_epochs: 4", "batch_size: 256", "clip_range: lin_0.1", "learning_rate: lin_2.5e-4 (of first-order size"]),
        (PPO_MUJOCO, ["n_epochs: 5", "batch_size: 32", "clip_range: 0.2", "learning_rate: 9.80828e-05 (of first-order size"]),
        (A2C_ATARI, ["optimizer_class of policy_kwargs: RMSpropTFLike", "optimizer_kwargs of policy_kwargs: dict(eps=1e-05)"]),
    ],
    ids=["ppo-atari", "ppo-mujoco", "a2c-atari"],
)
def test_entries_of_other_algorithms_are_used_without_their_optimizers(tmp_path: Path, text: str, left_out: list[str]) -> None:
    path = entry(tmp_path, text)
    config, (head, *lines) = read(path, "A-v0"), read_zoo(path, "A-v0").warning.splitlines()
    assert head.startswith("zoo.yml, entry A-v0: left out")
    assert len(lines) == len(left_out)
    assert all(line.strip().startswith(start) for line, start in zip(lines, left_out, strict=True))
    assert config.agent.learning_rate == AgentConfig.learning_rate
    assert config.environment.preprocessing == ("none" if text is PPO_MUJOCO else "atari")
    if text is PPO_MUJOCO:
        assert (config.agent.gamma, config.agent.max_grad_norm, config.environment.normalize_rewards) == (0.999, 0.7, True)
        assert config.agent.network.net_arch == {"pi": [256, 256], "vf": [256, 256]}


@pytest.mark.parametrize("rate", ["0.0007", "7e-4", "lin_7e-4", "lin_.00096", "!!float 3e-4"])
def test_first_order_rates_are_left_out(tmp_path: Path, rate: str) -> None:
    path = entry(tmp_path, f"learning_rate: {rate}")
    assert "learning_rate: " in read_zoo(path, "A-v0").warning
    assert read(path, "A-v0").agent.learning_rate == AgentConfig.learning_rate


@pytest.mark.parametrize("rate", ["0.01", "lin_0.25", "1"])
def test_other_rates_are_kept(tmp_path: Path, rate: str) -> None:
    path = entry(tmp_path, f"learning_rate: {rate}")
    assert not read_zoo(path, "A-v0").warning
    assert str(read(path, "A-v0").agent.learning_rate).removesuffix(".0") == rate


def test_what_means_nothing_here_is_named_unless_it_is_empty(tmp_path: Path) -> None:
    text = (
        "monitor_kwargs: {}\ncallback: [rl_zoo3.callbacks.X]\nvec_env_wrapper: null\nenv_wrapper: null\nuse_sde: false\nsde_sample_freq: 4"
    )
    lines = read_zoo(entry(tmp_path, text), "A-v0").warning.splitlines()[1:]
    assert [line.strip() for line in lines] == ["callback: ['rl_zoo3.callbacks.X']", "sde_sample_freq: 4"]


@pytest.mark.parametrize(
    ("text", "expected", "left_out"),
    [
        ("normalize: true\nnormalize_kwargs: {norm_reward: false, clip_obs: 5}", (True, False, 5.0), ""),
        ('normalize: "dict(norm_obs=False, norm_reward=True)"', (False, True, 10.0), ""),
        ("normalize: true\nnormalize_kwargs: \"{'gamma': 0.9}\"", (True, True, 10.0), "gamma of normalize: 0.9"),
        ("normalize: true\nnormalize_kwargs: {gamma: 0.9}\ngamma: 0.9", (True, True, 10.0), ""),
        ("normalize: {epsilon: 0.1}", (True, True, 10.0), "epsilon of normalize: 0.1"),
        ("normalize: false\nnormalize_kwargs: {norm_obs: true}", (False, False, 10.0), ""),
    ],
)
def test_normalization(tmp_path: Path, text: str, expected: tuple[bool, bool, float], left_out: str) -> None:
    path = entry(tmp_path, text)
    environment = read(path, "A-v0").environment
    assert (environment.normalize_observations, environment.normalize_rewards, environment.clip_observations) == expected
    assert left_out in read_zoo(path, "A-v0").warning
    assert bool(left_out) == bool(read_zoo(path, "A-v0").warning)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("dict(net_arch=[dict(pi=[64], vf=[32])])", {"net_arch": {"pi": [64], "vf": [32]}}),
        ("dict(net_arch=[dict(pi=[64])])", {"net_arch": {"pi": [64], "vf": []}}),
        ("dict(net_arch=(64, 64), activation_fn=torch.nn.GELU)", {"net_arch": [64, 64], "activation": "gelu"}),
        ("{'log_std_init': -2}", {"log_std_init": -2.0}),
        ("dict(features_extractor_kwargs=dict(features_dim=128))", {"features_dim": 128}),
        (
            "dict(enable_critic_lstm=True, lstm_hidden_size=128, n_lstm_layers=1)",
            {"share_features_extractor": False, "lstm_hidden_size": 128},
        ),
    ],
)
def test_networks(tmp_path: Path, text: str, network: dict[str, object]) -> None:
    policy = "CnnPolicy" if "features_dim" in text else "MlpLstmPolicy" if "lstm" in text else "MlpPolicy"
    found = read(entry(tmp_path, f'policy: {policy}\npolicy_kwargs: "{text}"'), "A-v0").agent.network
    assert {key: getattr(found, key) for key in network} == network


def test_stacks_and_arguments_of_wrappers(tmp_path: Path) -> None:
    text = """
env_wrapper: {stable_baselines3.common.atari_wrappers.AtariWrapper: {frame_skip: 4, terminal_on_life_loss: true}}
vec_env_wrapper: [{stable_baselines3.common.vec_env.VecFrameStack: {n_stack: 4}}]
env_kwargs: "dict(repeat_action_probability=0.25)"
"""
    environment = read(entry(tmp_path, text), "A-v0").environment
    assert (environment.preprocessing, environment.frame_stack, environment.kwargs) == ("atari", 4, {"repeat_action_probability": 0.25})


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


def test_what_is_left_out_is_told_once_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--zoo", str(entry(tmp_path, PPO_ATARI)), "--environment.id", "A-v0", "--print_config"]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("natgrad-acktr: warning: zoo.yml, entry A-v0: left out")
    assert captured.err.count("warning") == 1
    assert "left out" not in captured.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--agent.learning_rate", "7e-4"], True),
        (["--agent.learning_rate", "lin_7e-4"], True),
        (["--agent.learning_rate", "7e-4", "--agent.natural_gradient.kl_target", "0.002"], False),
        (["--agent.learning_rate", "0.02"], False),
        ([], False),
    ],
)
def test_a_rate_of_first_order_size_is_doubted(words: list[str], told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--print_config", *words]) == 0
    assert ("is of the size that first-order methods use" in capsys.readouterr().err) == told


def test_the_environment_must_be_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--zoo", str(file), "--out", "nowhere"]) == 2
    assert "--environment.id" in capsys.readouterr().err
