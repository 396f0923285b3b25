"""Hyperparameters in the form of the RL Zoo (rl-baselines3-zoo): one mapping for each environment, read as a run's configuration.

    HalfCheetah-v5:
      n_envs: 8
      n_timesteps: !!float 1e6
      policy: MlpPolicy
      normalize: true
      learning_rate: lin_0.25
      policy_kwargs: "dict(log_std_init=-2, net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=nn.ReLU)"

The entry is the one of the environment's id, else ``atari`` for a NoFrameskip id, else ``default``. ``policy_kwargs`` and a mapping in
``normalize`` are Python text there; here they are parsed as literals, calls of ``dict`` and names of activations, and never evaluated.
YAML anchors and ``<<`` merges work.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from natgrad_apps.agents.config import ACTIVATIONS
from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.runner.yaml_text import Node, Scalar, Sequence, Table

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
_AGENT = ("policy", "n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "learning_rate", "normalize_advantage")
_NETWORK = ("net_arch", "ortho_init", "log_std_init", "share_features_extractor")
_NORMALIZE = {"norm_obs": "normalize_observations", "norm_reward": "normalize_rewards", "clip_obs": "clip_observations"}
_NORMALIZE["clip_reward"] = "clip_rewards"
_HANDLED = ("n_envs", "n_timesteps", "normalize", "frame_stack", "env_wrapper", "env_kwargs", "policy_kwargs", "use_sde")
LEGAL = (*_AGENT, *_HANDLED, "natural_gradient")
"""Keys of an entry that mean something here: the Zoo's, and the natural gradient's own."""


def read_zoo(path: Path, env_id: str) -> Table:
    """The entry of an environment as a tree for `natgrad_apps.runner.schema`.

    Args:
        path: The Zoo's YAML file.
        env_id: Gymnasium id of the environment.

    Raises:
        ConfigError: The file cannot be read, has no entry for the environment, or a key that ACKTR does not have.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the hyperparameters {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not all(isinstance(entry, dict) for entry in document.values()):
        raise ConfigError(f"{path.name} must map environments to their hyperparameters, as the files of the RL Zoo do")
    name = _entry_name(document, env_id)
    if name is None:
        raise ConfigError(f"{path.name} has no entry for {env_id!r}; it has: {', '.join(map(str, document))}")
    place = f"{path.name}, entry {name}"
    given: dict[str, Any] = {str(key): value for key, value in document[name].items()}
    unknown = [key for key in given if key not in LEGAL]
    if unknown:
        raise ConfigError(
            f"{place}: ACKTR has no {', '.join(unknown)}; drop {'it' if len(unknown) == 1 else 'them'}. Legal keys: {', '.join(LEGAL)}"
        )
    settings = _node(_convert(given, env_id, place), place)
    assert isinstance(settings, Table)
    return settings


def _entry_name(document: Mapping[Any, Any], env_id: str) -> str | None:
    names = [env_id, *(["atari"] if "NoFrameskip" in env_id or env_id.startswith("ALE/") else []), "default"]
    return next((name for name in names if name in document), None)


def _convert(given: Mapping[str, Any], env_id: str, place: str) -> dict[str, Any]:
    """Our keys from the Zoo's."""
    if given.get("use_sde"):
        raise ConfigError(f"{place}: use_sde is refused, because the Fisher of state-dependent exploration is not the one estimated here")
    environment: dict[str, Any] = {"id": env_id}
    agent = {key: given[key] for key in _AGENT if key in given}
    for ours, theirs in (("n_envs", "n_envs"), ("frame_stack", "frame_stack"), ("kwargs", "env_kwargs")):
        if given.get(theirs) is not None:
            environment[ours] = given[theirs]
    environment |= _normalization(given.get("normalize"), place)
    if given.get("env_wrapper") is not None:
        environment["preprocessing"] = _preprocessing(given["env_wrapper"], place)
    if given.get("policy_kwargs") is not None:
        agent["network"] = _network(_literal(given["policy_kwargs"], "policy_kwargs", place), place)
    if given.get("natural_gradient") is not None:
        agent["natural_gradient"] = given["natural_gradient"]
    result: dict[str, Any] = {"environment": environment, "agent": agent}
    if given.get("n_timesteps") is not None:
        result["total_timesteps"] = int(float(given["n_timesteps"]))
    return result


def _normalization(value: Any, place: str) -> dict[str, Any]:
    """``normalize`` is a boolean, or keyword arguments of VecNormalize."""
    if value is None or value is False:
        return {}
    both = {"normalize_observations": True, "normalize_rewards": True}
    if value is True:
        return both
    arguments = _literal(value, "normalize", place)
    for key in arguments:
        if key not in _NORMALIZE:
            raise unknown_name(f"{place}: argument of normalize:", str(key), list(_NORMALIZE))
    return {**both, **{_NORMALIZE[key]: item for key, item in arguments.items()}}


def _preprocessing(value: Any, place: str) -> str:
    wrappers = value if isinstance(value, list) else [value]
    if wrappers != [ATARI_WRAPPER]:
        raise ConfigError(f"{place}: env_wrapper {value!r} is not known here; the one legal value is {ATARI_WRAPPER}")
    return "atari"


def _network(arguments: Mapping[str, Any], place: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in arguments.items():
        if key in _NETWORK:
            result[key] = value
        elif key == "activation_fn":
            result["activation"] = value
        else:
            raise unknown_name(f"{place}: argument of policy_kwargs:", str(key), [*_NETWORK, "activation_fn"])
    return result


def _literal(value: Any, key: str, place: str) -> dict[str, Any]:
    """A mapping from itself, or from Python text that spells one."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        result = _evaluate(ast.parse(str(value).strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{place}: {key} must be a mapping, or text such as dict(net_arch=[64, 64], activation_fn=nn.ReLU) of literals, dict(...) and "
            f"activations ({', '.join(_ACTIVATIONS)}); got {value!r}: {error}"
        ) from error
    if not isinstance(result, dict):
        raise ConfigError(f"{place}: {key} must be a mapping, got {value!r}")
    return result


_ACTIVATIONS: dict[str, str] = {f"nn.{cls.__name__}": name for name, cls in ACTIVATIONS.items()}


def _evaluate(node: ast.expr) -> Any:
    """Value of a literal, a call ``dict(key=...)`` or an activation; nothing is run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {_keyword(item): _evaluate(item.value) for item in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _evaluate(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(item) for item in node.elts]
    text = ast.unparse(node)
    return _ACTIVATIONS[text] if text in _ACTIVATIONS else ast.literal_eval(node)


def _keyword(item: ast.keyword) -> str:
    if item.arg is None:
        raise ValueError("** is not legal in dict(...)")
    return item.arg


def _node(value: Any, place: str) -> Node:
    """A plain value as a node, for the strict reader."""
    if isinstance(value, Mapping):
        return Table({str(key): _node(item, place) for key, item in value.items()}, place)
    if isinstance(value, (list, tuple)):
        return Sequence(tuple(_node(item, place) for item in value), place)
    if value is None or isinstance(value, bool):
        return Scalar({None: "null", True: "true", False: "false"}[value], place)
    return Scalar(repr(value) if isinstance(value, (int, float)) else str(value), place)
