"""The configuration of a run: YAML traps, suggestions, presets, and agreement with the agent's own defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from natgrad_apps import KFAC, FactoredTikhonov, Tikhonov
from natgrad_apps._resources import available_configs
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import AgentConfig, LinearSchedule, NetworkConfig, TrainConfig
from natgrad_apps.agents.environments import make_training
from natgrad_apps.agents.options import DEFAULTS
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import Options, read_config, read_file
from natgrad_apps.runner.yaml_text import Table, read_yaml

PRESETS = [pytest.param(path, id=name) for name, path in available_configs("agents").items()]


def read(text: str) -> TrainConfig:
    return schema.read(TrainConfig, read_yaml(text, "run.yaml"))


def load(path: Path) -> TrainConfig:
    return read_config(TrainConfig, "agents", str(path), Options("train", {}))


def test_defaults_are_the_agents_own() -> None:
    own = AgentConfig()
    # A runner knows where a run ends, so its rate falls to zero there; the class starts at the same value and stays.
    assert own.schedule() == LinearSchedule(cast("float", DEFAULTS["learning_rate"]))
    own = dataclasses.replace(own, learning_rate=cast("float", DEFAULTS["learning_rate"]))
    assert {name: getattr(own, name) for name in DEFAULTS if hasattr(own, name)} == {
        name: value for name, value in DEFAULTS.items() if hasattr(own, name)
    }
    renamed = {"seed", "device", "policy_kwargs", "verbose", "tensorboard_log", "_init_setup_model"}
    # What the runner does not offer: exploration that ACKTR refuses, Python classes, and the window of the logged mean.
    left_out = {"use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs", "stats_window_size"}
    offered = {f.name for f in dataclasses.fields(AgentConfig)} - {"policy", "network", "natural_gradient"}
    assert offered == set(DEFAULTS) - renamed - left_out


def test_numbers_in_scientific_notation_are_numbers() -> None:
    config = read("{total_timesteps: 1e6, agent: {learning_rate: 1e-3, natural_gradient: {damping: 1e-2, weight_decay: 1e-4}}}")
    assert (config.total_timesteps, config.agent.learning_rate, config.agent.natural_gradient.weight_decay) == (1_000_000, 0.001, 1e-4)
    assert type(config.total_timesteps) is int
    assert config.agent.natural_gradient.damping == Tikhonov(0.01)


def test_on_and_no_are_booleans_only_where_one_is_legal() -> None:
    config = read("{environment: {id: on, normalize_observations: on}, agent: {normalize_advantage: no}}")
    assert (config.environment.id, config.environment.normalize_observations, config.agent.normalize_advantage) == ("on", True, False)
    with pytest.raises(ConfigError, match=r"agent.n_steps .*got 'on'; legal: a whole number"):
        read("agent: {n_steps: on}")


def test_octal_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"agent.n_steps \(run.yaml:1\): got '012': a leading zero is refused.*write 12"):
        read("agent: {n_steps: 012}")


def test_components_are_names_numbers_or_mappings() -> None:
    options = read("agent: {natural_gradient: {curvature: {name: kfac, decay: 0.9}, damping: {name: factored_tikhonov, value: 1e-1}}}")
    assert options.agent.natural_gradient.curvature == KFAC(decay=0.9)
    assert options.agent.natural_gradient.damping == FactoredTikhonov(0.1)
    assert read("agent: {natural_gradient: {curvature: kfac}}").agent.natural_gradient.curvature == KFAC()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: {natural_gradient: {damping: {name: tikhonof}}}", "unknown damping 'tikhonof'.*did you mean 'tikhonov'"),
        (
            "agent: {natural_gradient: {damping: {name: tikhonov, valu: 1}}}",
            "unknown option of damping 'tikhonov': 'valu'.*did you mean 'value'",
        ),
        ("agent: {natural_gradient: {damping: {name: tikhonov, value: on}}}", "got 'on' of type str"),
        ("agent: {natural_gradient: {damping: {name: levenberg_marquardt}}}", "use 'tikhonov' or 'factored_tikhonov'"),
        ("agent: {natural_gradient: {momentum: 1}}", r"momentum must be in \[0, 1\)"),
        ("agent: {natural_gradient: {step: {name: kl_trust_region, radius: 0}}}", "radius"),
        ("agent: {natural_gradient: {measure_kl: 3}}", "agent.natural_gradient.measure_kl .*legal: true or false"),
        ("agent: {natural_gradien: {}}", "did you mean 'agent.natural_gradient'"),
        ("agent: {gamma: 1.01}", r"agent.gamma .*legal: a number in \(0, 1\]"),
        ("agent: {learning_rate: lin_0}", "neither a number > 0 nor a schedule"),
        ("agent: {learning_rate: lin_1e400}", "neither a number > 0 nor a schedule"),
        ("agent: {network: {net_arch: {pi: [8]}}}", "has the keys pi and vf, got pi"),
        (
            "agent: {network: {lstm_hidden_size: 32}}",
            "lstm_hidden_size 32 is for policies with an LSTM, .*'MlpPolicy' has none.*MlpLstmPolicy",
        ),
        ("agent: {network: {features_dim: 32}}", "features_dim 32 is for policies with a CNN, .*'MlpPolicy' has none.*CnnPolicy"),
        ("environment: {n_envs: 0}", "environment.n_envs .*legal: a whole number in"),
        ("n_envs: 4", "did you mean 'environment.n_envs'"),
    ],
)
def test_faults_name_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


@pytest.mark.parametrize(("text", "start"), [("lin_0.25", 0.25), ("lin_1e-3", 0.001), ("lin_.5", 0.5), ("lin_2", 2.0)])
def test_schedules(text: str, start: float) -> None:
    schedule = read(f"agent: {{learning_rate: {text}}}").agent.schedule()
    assert schedule == LinearSchedule(start)
    assert isinstance(schedule, LinearSchedule)
    assert [schedule(remaining) for remaining in (1.0, 0.5, 0.0)] == [start, start / 2, 0.0]


def test_networks_become_policy_arguments() -> None:
    kwargs = NetworkConfig(net_arch={"pi": [8], "vf": [16]}, activation="relu", features_dim=128).policy_kwargs()
    assert kwargs["net_arch"] == {"pi": [8], "vf": [16]}
    assert kwargs["activation_fn"].__name__ == "ReLU"
    assert kwargs["features_extractor_kwargs"] == {"features_dim": 128}
    assert "net_arch" not in NetworkConfig().policy_kwargs()


@pytest.mark.parametrize("path", PRESETS)
def test_presets_load_and_survive_yaml(path: Path) -> None:
    config = load(path)
    assert schema.read(TrainConfig, schema.to_tree(config, "copy")) == config
    # A preset states what it needs, so it must not depend on the defaults of the moment.
    given = set(_leaves(read_file(path)))
    assert {"environment.id", "environment.n_envs", "agent.n_steps", "agent.learning_rate", "total_timesteps"} <= given
    assert {"agent.natural_gradient.damping.value", "agent.natural_gradient.step.radius", "agent.natural_gradient.curvature.decay"} <= given
    assert config.total_timesteps % config.batch_size == 0


@pytest.mark.parametrize("path", PRESETS)
def test_presets_fit_their_environments(path: Path) -> None:
    """The environment is made and the agent built; training them is for the benchmarks."""
    config = load(path)
    config = dataclasses.replace(config, environment=dataclasses.replace(config.environment, n_envs=1), device="cpu")
    venv = make_training(config.environment, config.agent.gamma, config.seed)
    agent = build_agent(config, venv)
    assert agent.natural_gradient == config.agent.natural_gradient
    assert agent.n_steps == config.agent.n_steps
    venv.close()


def _leaves(tree: Table, prefix: str = "") -> Iterator[str]:
    for name, node in tree.entries.items():
        if isinstance(node, Table):
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_has_a_description() -> None:
    missing = [key.path for key in schema.keys(TrainConfig) if not key.text]
    assert not missing


def test_every_key_can_be_overridden() -> None:
    """Each default, given on the command line, is read back as itself."""
    settings = {}
    for key in schema.keys(TrainConfig):
        value = schema.to_plain(TrainConfig())
        for part in key.path.split("."):
            value = value[part]
        settings[key.path] = value if isinstance(value, str) else json.dumps(value)  # JSON is YAML
    assert len(settings) > 40
    assert read_config(TrainConfig, "agents", None, Options("train", {}, settings)) == TrainConfig()
