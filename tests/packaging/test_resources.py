"""Presets by kind and name."""

from __future__ import annotations

import pytest

from natgrad_apps._resources import available_configs, config_folder, config_path
from natgrad_apps.errors import ConfigError


def test_every_preset_is_found_by_its_name() -> None:
    kinds = [path.name for path in config_folder().iterdir() if path.is_dir()]
    assert "agents" in kinds
    for kind in kinds:
        for name, path in available_configs(kind).items():
            assert config_path(kind, name) == path
            assert path.is_file()


def test_unknown_kind_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown kind of preset 'agent'; available: .*agents.*; did you mean 'agents'\?"):
        config_path("agent", "cartpole")


def test_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset of agents 'cartpol'; available: .*; did you mean 'cartpole'\?"):
        config_path("agents", "cartpol")
