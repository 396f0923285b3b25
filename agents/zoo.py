"""Hyperparameters in the form of the RL Zoo (rl-baselines3-zoo): one mapping for each environment, read as a run's configuration.

    HalfCheetah-v5:
      n_envs: 8
      n_timesteps: !!float 1e6
      policy: MlpPolicy
      normalize: true
      learning_rate: lin_0.25
      policy_kwargs: "dict(log_std_init=-2, net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=nn.ReLU)"

The entry is the one of the environment's id, else ``atari`` for a NoFrameskip id, else ``default``. Entries of A2C, PPO and TRPO can be
used as they are: what sets their optimizers is left out with a warning, what changes the problem is honoured or an error. Python text is
parsed (`natgrad_apps.agents.zoo_text`) and never evaluated. YAML anchors and ``<<`` merges work.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from natgrad_apps.agents import zoo_text
from natgrad_apps.agents.config import AgentConfig, TrainConfig
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.yaml_text import Node, Scalar, Sequence, Table, merge, yaml_fault

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
ATARI_DEFAULTS: dict[str, float] = {"noop_max": 30, "frame_skip": 4, "screen_size": 84, "terminal_on_life_loss": True, "clip_reward": True}
ATARI_DEFAULTS["action_repeat_probability"] = 0.0
FRAME_STACK = "stable_baselines3.common.vec_env.VecFrameStack"
FIRST_ORDER_RATE = 0.01
"""Learning rates below it are meant for first-order steps."""
_AGENT = ("policy", "n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "normalize_advantage")
_NETWORK = ("net_arch", "ortho_init", "log_std_init", "share_features_extractor", "lstm_hidden_size")
_NORMALIZE = {"norm_obs": "normalize_observations", "norm_reward": "normalize_rewards", "clip_obs": "clip_observations"}
_NORMALIZE["clip_reward"] = "clip_rewards"
_HANDLED = ("n_envs", "n_timesteps", "normalize", "normalize_kwargs", "frame_stack", "env_wrapper", "vec_env_wrapper", "env_kwargs")
_FIRST_ORDER = ("n_epochs", "batch_size", "clip_range", "clip_range_vf", "target_kl", "use_rms_prop", "rms_prop_eps")
_TRPO = ("cg_max_steps", "cg_damping", "line_search_shrinking_factor", "line_search_max_iter", "n_critic_updates", "sub_sampling_factor")
_RUNNER = ("callback", "monitor_kwargs", "verbose", "tensorboard_log", "stats_window_size", "seed", "device")
_LEFT_OUT = (*_FIRST_ORDER, *_TRPO, *_RUNNER)
_LEFT_OUT_OF_POLICY = ("optimizer_class", "optimizer_kwargs", "full_std", "use_expln", "sde_net_arch")
LEGAL = (*_AGENT, "learning_rate", *_HANDLED, "policy_kwargs", "natural_gradient")
"""Keys of an entry that mean something here: the Zoo's, and the natural gradient's own."""


@dataclass(frozen=True)
class ZooEntry:
    """What an entry says.

    Attributes:
        settings: A tree for `natgrad_apps.runner.schema`.
        warning: What was left out, with the values; empty if nothing was.
    """

    settings: Table
    warning: str


def read_zoo(path: Path, env_id: str) -> ZooEntry:
    """The entry of an environment.

    Args:
        path: The Zoo's YAML file.
        env_id: Gymnasium id of the environment.

    Raises:
        ConfigError: The file cannot be read, has no entry for the environment, or the entry asks for what there is not; the message lists
            every problem of the entry.
    """
    if path.suffix == ".py":
        raise ConfigError(f"{path.name} is a Python file, which would have to be run; give the hyperparameters as YAML")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the hyperparameters {str(path)!r} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"the hyperparameters {path.name} cannot be read: {yaml_fault(error)}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name} must map environments to their hyperparameters, as the files of the RL Zoo do")
    name = _entry_name(document, env_id, path.name)
    if not isinstance(document[name], dict):
        raise ConfigError(f"{path.name}, entry {name}: it must map keys to values, as in the files of the RL Zoo; got {document[name]!r}")
    return _Entry(f"{path.name}, entry {name}", env_id, {str(key): value for key, value in document[name].items()}).read()


def _entry_name(document: Mapping[Any, Any], env_id: str, file: str) -> str:
    names = [env_id, *(["atari"] if "NoFrameskip" in env_id or env_id.startswith("ALE/") else []), "default"]
    found = next((name for name in names if name in document), None)
    if found is not None:
        return found
    entries = [str(name) for name in document]
    versions = [name for name in entries if _without_version(name) == _without_version(env_id)]
    near = versions or difflib.get_close_matches(env_id, entries, n=1)
    hint = f"; did you mean {near[-1]!r}? Give that as --environment.id, or copy the entry to the name {env_id!r}" if near else ""
    raise ConfigError(f"{file} has no entry for {env_id!r}; it has: {', '.join(entries)}{hint}")


def _without_version(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id)


@dataclass
class _Entry:
    """One pass over one entry, which gathers the problems and what is left out."""

    place: str
    env_id: str
    given: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def read(self) -> ZooEntry:
        given = {key: value for key, value in self.given.items() if value is not None and value not in ([], {})}
        self.unknown_keys()
        for key in _LEFT_OUT:
            if key in given:
                self.leave_out(key, given[key])
        if given.get("use_sde"):
            self.problems.append(
                "use_sde is refused, because the Fisher of state-dependent exploration is not the one estimated here; set use_sde to false "
                "for Gaussian noise, whose first size is log_std_init of policy_kwargs"
            )
        elif "sde_sample_freq" in given:
            self.leave_out("sde_sample_freq", given["sde_sample_freq"])
        environment = {"id": Scalar(self.env_id, self.place)} | self.environment(given)
        agent = {key: self.node(key, given[key]) for key in (*_AGENT, "natural_gradient") if key in given}
        if "learning_rate" in given:
            agent |= self.rate(given["learning_rate"])
        if "policy_kwargs" in given:
            agent["network"] = Table(self.network(given["policy_kwargs"]), f"{self.place}, policy_kwargs")
        entries: dict[str, Node] = {"environment": Table(environment, self.place), "agent": Table(agent, self.place)}
        if "n_timesteps" in given:
            entries["total_timesteps"] = self.node("n_timesteps", given["n_timesteps"])
        settings = Table(entries, self.place)
        if self.problems:
            faults = schema.problems(TrainConfig, merge(schema.to_tree(TrainConfig(), "defaults"), settings))
            found = [*self.problems, *faults]
            if len(found) == 1:
                raise ConfigError(f"{self.place}: {found[0]}")
            raise ConfigError(f"{len(found)} problems of {self.place}:\n  " + "\n  ".join(found))
        lines = "".join(f"\n  {line}" for line in self.left_out)
        return ZooEntry(settings, f"{self.place}: left out, because ACKTR has no use for it:{lines}" if lines else "")

    def node(self, key: str, value: Any) -> Node:
        return _node(value, f"{self.place}, {key}")

    def leave_out(self, key: str, value: Any, why: str = "") -> None:
        self.left_out.append(f"{key}: {value}" + (f" ({why})" if why else ""))

    def unknown_keys(self) -> None:
        known = {*LEGAL, *_LEFT_OUT, "use_sde", "sde_sample_freq"}
        unknown = [key for key in self.given if key not in known]
        if unknown:
            near = [match for key in unknown for match in difflib.get_close_matches(key, LEGAL, n=1, cutoff=0.75)]
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            it = "it" if len(unknown) == 1 else "them"
            self.problems.append(f"ACKTR has no {', '.join(unknown)}; drop {it}. Legal keys: {', '.join(LEGAL)}{hint}")

    def environment(self, given: Mapping[str, Any]) -> dict[str, Node]:
        """Our settings of the environment."""
        result = {key: self.node(key, given[key]) for key in ("n_envs", "frame_stack") if key in given}
        if "env_kwargs" in given:
            result["kwargs"] = self.node("env_kwargs", self.mapping("env_kwargs", given["env_kwargs"]))
        wrappers = self.wrappers("env_wrapper", given)
        if unknown := [name for name, _ in wrappers if name != ATARI_WRAPPER]:
            self.problems.append(
                f"env_wrapper {', '.join(unknown)} is not known here, only {ATARI_WRAPPER} is; register the environment with its "
                "wrappers in a module of yours and give --environment.id module:Name-v0"
            )
        for _, arguments in wrappers if not unknown else []:
            if changed := {key: value for key, value in arguments.items() if ATARI_DEFAULTS.get(key, key) != value}:
                self.problems.append(f"env_wrapper: AtariWrapper has the arguments {ATARI_DEFAULTS} here and no other; drop {changed}")
            else:
                result["preprocessing"] = self.node("env_wrapper", "atari")
        for name, arguments in self.wrappers("vec_env_wrapper", given):
            if name == FRAME_STACK and set(arguments) == {"n_stack"}:
                result["frame_stack"] = self.node("vec_env_wrapper", arguments["n_stack"])
            else:
                self.problems.append(f"vec_env_wrapper {name} is not known here, only {FRAME_STACK} with n_stack is; drop it")
        return result | self.normalization(given)

    def wrappers(self, key: str, given: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments of wrappers, which the Zoo takes as a name, a mapping of a name to arguments, or a list of both."""
        value = given.get(key, [])
        found: list[tuple[str, dict[str, Any]]] = []
        for item in value if isinstance(value, list) else [value]:
            pairs = item.items() if isinstance(item, Mapping) else [(item, None)]
            found += [(str(name), dict(arguments) if isinstance(arguments, Mapping) else {}) for name, arguments in pairs]
        return found

    def normalization(self, given: Mapping[str, Any]) -> dict[str, Node]:
        """``normalize`` is a boolean or arguments of VecNormalize; ``normalize_kwargs`` has more of them."""
        value = given.get("normalize", False)
        if value is False:
            return {}
        arguments = {"norm_obs": True, "norm_reward": True} | ({} if value is True else self.mapping("normalize", value))
        arguments |= self.mapping("normalize_kwargs", given.get("normalize_kwargs", {}))
        gamma = arguments.pop("gamma", None)
        if gamma is not None and gamma != given.get("gamma", AgentConfig.gamma):
            self.leave_out("gamma of normalize", gamma, "rewards are scaled with the agent's")
        if (epsilon := arguments.pop("epsilon", None)) is not None:
            self.leave_out("epsilon of normalize", epsilon)
        for key in set(arguments) - set(_NORMALIZE):
            self.problems.append(f"normalize has no {key}; legal: {', '.join(_NORMALIZE)}")
        return {ours: self.node("normalize", arguments[theirs]) for theirs, ours in _NORMALIZE.items() if theirs in arguments}

    def rate(self, value: Any) -> dict[str, Node]:
        """The learning rate, unless it is one of first-order steps."""
        number = re.fullmatch(r"(?:lin_)?([\d.]+(?:[eE][-+]?\d+)?)", str(value))
        try:
            small = number is not None and 0 < float(number[1]) < FIRST_ORDER_RATE
        except ValueError:
            small = False
        if not small:
            return {"learning_rate": self.node("learning_rate", value)}
        why = f"of first-order size; here it bounds the natural-gradient step, so {AgentConfig.learning_rate} or your own is used"
        self.leave_out("learning_rate", value, why)
        return {}

    def network(self, value: Any) -> dict[str, Node]:
        """Our settings of the network."""
        result: dict[str, Any] = {}
        for key, item in self.mapping("policy_kwargs", value, _LEFT_OUT_OF_POLICY).items():
            if key in _LEFT_OUT_OF_POLICY:
                self.leave_out(f"{key} of policy_kwargs", item)
            elif key == "net_arch":
                result[key] = self.net_arch(item)
            elif key in _NETWORK:
                result[key] = item
            elif key == "activation_fn":
                result["activation"] = item
            elif key == "enable_critic_lstm" and item:
                result["share_features_extractor"] = False
            elif key == "enable_critic_lstm":
                self.leave_out(f"{key} of policy_kwargs", item, "the critic has the memory of the actor")
            elif key == "shared_lstm":
                result["share_features_extractor"] = item
            elif key == "features_extractor_kwargs" and isinstance(item, Mapping) and set(item) == {"features_dim"}:
                result["features_dim"] = item["features_dim"]
            elif not (key == "n_lstm_layers" and item == 1):
                legal = ", ".join((*_NETWORK, "activation_fn", "features_extractor_kwargs=dict(features_dim=...)"))
                self.problems.append(f"policy_kwargs: {key}={item} is not known here; drop it. Legal: {legal}")
        return {key: _node(item, f"{self.place}, policy_kwargs") for key, item in result.items()}

    def net_arch(self, value: Any) -> Any:
        """Hidden widths; the old form, a list that ends with a mapping, is translated where no layers are shared."""
        if not isinstance(value, list) or not any(isinstance(item, Mapping) for item in value):
            return value
        *shared, last = value
        if not isinstance(last, Mapping):
            return value
        if shared:
            own = {key: [*shared, *last.get(key, [])] for key in ("pi", "vf")}
            self.problems.append(
                f"policy_kwargs: net_arch={value} shares its first layers, which SB3 no longer does; for networks of their own write "
                f"net_arch=dict(pi={own['pi']}, vf={own['vf']})"
            )
            return None
        return {"pi": [], "vf": [], **last}

    def mapping(self, key: str, value: Any, opaque: tuple[str, ...] = ()) -> dict[str, Any]:
        """A mapping, or what can be read of its text."""
        try:
            found, problems = zoo_text.mapping(value, opaque)
        except ConfigError as error:
            self.problems.append(f"{key} {error}")
            return {}
        self.problems += [f"{key}: {problem}" for problem in problems]
        return found


def _node(value: Any, place: str) -> Node:
    """A plain value as a node, for the strict reader."""
    if isinstance(value, Mapping):
        return Table({str(key): _node(item, place) for key, item in value.items()}, place)
    if isinstance(value, (list, tuple)):
        return Sequence(tuple(_node(item, place) for item in value), place)
    if value is None or isinstance(value, bool):
        return Scalar({None: "null", True: "true", False: "false"}[value], place)
    return Scalar(repr(value) if isinstance(value, (int, float)) else str(value), place)
