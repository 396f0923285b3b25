"""What a file of the RL Zoo asks for and cannot get is an error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from natgrad_apps.agents.zoo import read_zoo
from natgrad_apps.errors import ConfigError
from tests.runner.test_zoo import entry, read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A-v0: {buffer_size: 64, tau: 10}", "ACKTR has no buffer_size, tau; drop them"),
        ("A-v0: {n_stepz: 64}", "ACKTR has no n_stepz; drop it.*did you mean 'n_steps'"),
        ("A-v1: {n_envs: 2}", "no entry for 'A-v0'; it has: A-v1; did you mean 'A-v1'"),
        ("Walker: {n_envs: 2}", "no entry for 'A-v0'; it has: Walker$"),
        ("A-v0: {policy_kwargs: \"dict(net_arch=__import__('os').getcwd())\"}", "policy_kwargs: net_arch=.* is not legal"),
        ("A-v0: {policy_kwargs: \"__import__('os').getcwd()\"}", "policy_kwargs must be a mapping"),
        ('A-v0: {policy_kwargs: "dict(**x)"}', "policy_kwargs must be a mapping"),
        ('A-v0: {policy_kwargs: "dict(activation_fn=nn.Mish)"}', "'nn.Mish' is no number.* activations nn.Tanh"),
        ('A-v0: {policy_kwargs: "dict(net_arch=[32, dict(pi=[8], vf=[])])"}', r"write net_arch=dict\(pi=\[32, 8\], vf=\[32\]\)"),
        ('A-v0: {policy_kwargs: "dict(squash_output=True)"}', "squash_output=True is not known here"),
        ("A-v0: {normalize: \"{'norm_everything': True}\"}", "norm_everything"),
        ("A-v0: {normalize: {norm_obs_keys: [a]}, normalize_kwargs: {}}", "normalize has no norm_obs_keys"),
        ("A-v0: {env_wrapper: my.Wrapper}", "env_wrapper my.Wrapper is not known"),
        (
            "A-v0: {env_wrapper: {stable_baselines3.common.atari_wrappers.AtariWrapper: {terminal_on_life_loss: false}}}",
            "drop {'terminal_on_life_loss': False}",
        ),
        ("A-v0: {vec_env_wrapper: my.Wrapper}", "vec_env_wrapper my.Wrapper is not known"),
        ("A-v0: {use_sde: true, sde_sample_freq: 4}", "^zoo.yml, entry A-v0: use_sde is refused.*set use_sde to false"),
        ("A-v0: [1, 2]", "must map keys to values"),
        ("- A-v0", "must map environments"),
        ("A-v0: {", "zoo.yml cannot be read: line 1"),
    ],
)
def test_what_cannot_be_used_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "zoo.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_zoo(path, "A-v0")
    assert "unicode string" not in str(caught.value)


def test_python_files_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which would have to be run"):
        read_zoo(tmp_path / "ppo.py", "A-v0")


def test_every_problem_of_an_entry_is_told_at_once(tmp_path: Path) -> None:
    text = "use_sde: true\ntau: 3\nenv_wrapper: my.Wrapper\nn_timesteps: lots\nn_envs: many\npolicy_kwargs: dict(x=1, y=z)"
    with pytest.raises(ConfigError, match=r"^7 problems of zoo\.yml, entry A-v0:") as caught:
        read_zoo(entry(tmp_path, text), "A-v0")
    for part in ("use_sde", "tau", "my.Wrapper", "total_timesteps (zoo.yml, entry A-v0, n_timesteps): got 'lots'", "'many'", "x=1", "y=z"):
        assert part in str(caught.value)


@pytest.mark.parametrize("steps", ["lots", "0", "1000.5", "true", "[1]"])
def test_steps_are_read_strictly(tmp_path: Path, steps: str) -> None:
    with pytest.raises(ConfigError, match=r"total_timesteps \(zoo.yml, entry A-v0, n_timesteps\): got .*; legal: a whole number >= 1"):
        read(entry(tmp_path, f"n_timesteps: {steps}"), "A-v0")
