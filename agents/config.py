"""The configuration of a training run: every key of the YAML file and of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any, Literal, get_args, get_type_hints

from torch import nn

from natgrad_apps.agents.options import DEFAULTS, NaturalGradientOptions
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.hints import Form, Range

PROGRAM = "natgrad-acktr"
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}
_SCHEDULE = re.compile(r"lin_(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)")

SMALL_RATE = 0.005
"""Learning rates below it are doubted."""

Positive = Annotated[int, Range(low=1)]
NonNegative = Annotated[int, Range(low=0)]
Coefficient = Annotated[float, Range(low=0)]
ScheduleText = Annotated[str, Form(_SCHEDULE.pattern, "a schedule such as lin_0.25")]


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which environment is learned, and how it is presented to the agent.

    Attributes:
        id: Gymnasium id, such as CartPole-v1, HalfCheetah-v5, PongNoFrameskip-v4, or module:Name-v0 to import a module that registers it.
        n_envs: Copies that run side by side.
        vectorization: serial steps the copies one after another in this process, subprocess gives each a process of its own.
        kwargs: Arguments of the environment's constructor.
        preprocessing: none, or atari for no-op starts, frame skip 4, 84x84 gray frames, life-loss episodes and clipped rewards.
        frame_stack: Number of last observations that the agent sees.
        normalize_observations: Whether observations are shifted and scaled by running statistics.
        normalize_rewards: Whether rewards are scaled by the running deviation of the discounted return; reports stay as they are.
        clip_observations: Bound of a normalized observation.
        clip_rewards: Bound of a normalized reward.
    """

    id: str = "CartPole-v1"
    n_envs: Annotated[int, Range(low=1, high=4096)] = 8
    vectorization: Literal["serial", "subprocess"] = "serial"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Literal["none", "atari"] = "none"
    frame_stack: Annotated[int, Range(low=1, high=64)] = 1
    normalize_observations: bool = False
    normalize_rewards: bool = False
    clip_observations: Annotated[float, Range(low=0, open_low=True)] = 10.0
    clip_rewards: Annotated[float, Range(low=0, open_low=True)] = 10.0

    @property
    def normalizes(self) -> bool:
        """Whether running statistics are kept."""
        return self.normalize_observations or self.normalize_rewards


@dataclass(frozen=True)
class LinearSchedule:
    """A learning rate that falls in a straight line to zero at the end of the run.

    Attributes:
        start: Its value at the beginning.
    """

    start: float

    def __call__(self, progress_remaining: float) -> float:
        """The rate when this share of the run, from 1 to 0, remains."""
        return self.start * progress_remaining


@dataclass(frozen=True)
class NetworkConfig:
    """Policy and value network; null keeps what SB3 does by itself.

    Attributes:
        net_arch: Hidden widths of both networks, such as [64, 64], or one list each, {pi: [64], vf: [128, 128]}; null is [64, 64] for
            vectors and none behind a CNN.
        activation: Nonlinearity of the hidden layers.
        ortho_init: Whether weights begin orthogonal.
        log_std_init: Logarithm of the first standard deviation of continuous actions.
        features_dim: Width of the CNN's output; null is 512. Only for pixels.
        share_features_extractor: Whether policy and value share the CNN and the LSTM.
        lstm_hidden_size: Units of the LSTM; null is 64. Only for Lstm policies.
    """

    net_arch: list[Positive] | dict[str, list[Positive]] | None = None
    activation: Literal["tanh", "relu", "elu", "silu", "gelu"] = "tanh"
    ortho_init: bool = True
    log_std_init: Annotated[float, Range(low=-20, high=2)] = 0.0
    features_dim: Positive | None = None
    share_features_extractor: bool = True
    lstm_hidden_size: Positive | None = None

    def __post_init__(self) -> None:
        if isinstance(self.net_arch, dict) and set(self.net_arch) != {"pi", "vf"}:
            raise ConfigError(f"net_arch as a mapping has the keys pi and vf, got {', '.join(self.net_arch) or 'none'}")

    def policy_kwargs(self) -> dict[str, Any]:
        """As SB3's ``policy_kwargs``."""
        kwargs: dict[str, Any] = {
            "activation_fn": ACTIVATIONS[self.activation],
            "ortho_init": self.ortho_init,
            "log_std_init": self.log_std_init,
            "share_features_extractor": self.share_features_extractor,
        }
        if self.net_arch is not None:
            kwargs["net_arch"] = self.net_arch
        if self.lstm_hidden_size is not None:
            kwargs["lstm_hidden_size"] = self.lstm_hidden_size
        if self.features_dim is not None:
            kwargs["features_extractor_kwargs"] = {"features_dim": self.features_dim}
        return kwargs


@dataclass(frozen=True)
class AgentConfig:
    """The learner; names and meanings are SB3's.

    Attributes:
        policy: Network for vectors, for pixels, or for dictionaries of observations; Lstm ones have a memory, Maskable ones choose
            among the actions that the environment's action_masks() says are legal.
        learning_rate: Largest natural-gradient step, a number, or lin_0.25 to fall from 0.25 to 0 over the run; the trust region usually
            makes it smaller. Rates of first-order methods, such as 0.001, are far too small.
        n_steps: Steps of each environment in one rollout; the batch is n_steps * n_envs.
        gamma: Discount factor.
        gae_lambda: Bias against variance of the advantage; 1 is the n-step advantage.
        ent_coef: Weight of the entropy bonus; below 0 a penalty, which makes the noise of continuous actions fall.
        vf_coef: Weight of the value loss.
        max_grad_norm: Bound of the gradient's norm; null for none.
        normalize_advantage: Whether advantages have mean 0 and deviation 1 in each rollout.
        network: Policy and value network.
        natural_gradient: Curvature, damping, trust region.
    """

    policy: Literal[
        "MlpPolicy",
        "CnnPolicy",
        "MultiInputPolicy",
        "MlpLstmPolicy",
        "CnnLstmPolicy",
        "MultiInputLstmPolicy",
        "MaskableMlpPolicy",
        "MaskableCnnPolicy",
        "MaskableMultiInputPolicy",
        "MaskableMlpLstmPolicy",
        "MaskableCnnLstmPolicy",
        "MaskableMultiInputLstmPolicy",
    ] = "MlpPolicy"
    learning_rate: Annotated[float, Range(low=0, open_low=True)] | ScheduleText = "lin_0.25"
    n_steps: Positive = DEFAULTS["n_steps"]
    gamma: Annotated[float, Range(low=0, high=1, open_low=True)] = DEFAULTS["gamma"]
    gae_lambda: Annotated[float, Range(low=0, high=1)] = DEFAULTS["gae_lambda"]
    ent_coef: float = DEFAULTS["ent_coef"]
    vf_coef: Coefficient = DEFAULTS["vf_coef"]
    max_grad_norm: Annotated[float, Range(low=0, open_low=True)] | None = DEFAULTS["max_grad_norm"]
    normalize_advantage: bool = DEFAULTS["normalize_advantage"]
    network: NetworkConfig = field(default_factory=NetworkConfig)
    natural_gradient: NaturalGradientOptions = field(default_factory=NaturalGradientOptions)

    def __post_init__(self) -> None:
        self.schedule()
        for name, kind, what in (("lstm_hidden_size", "Lstm", "an LSTM"), ("features_dim", "Cnn", "a CNN")):
            value = getattr(self.network, name)
            if value is not None and kind not in self.policy:
                fitting = [policy for policy in get_args(get_type_hints(type(self))["policy"]) if kind in policy]
                raise ConfigError(
                    f"network.{name} {value} is for policies with {what}, and policy {self.policy!r} has none; leave it out, or take one "
                    f"of {', '.join(fitting)}"
                )

    def schedule(self) -> float | LinearSchedule:
        """The learning rate as SB3 takes it.

        Raises:
            ConfigError: The text is no schedule.
        """
        if isinstance(self.learning_rate, str):
            match = _SCHEDULE.fullmatch(self.learning_rate)
            if match is None or not 0 < float(match[1]) < inf:
                raise ConfigError(f"learning_rate {self.learning_rate!r} is neither a number > 0 nor a schedule such as 'lin_0.25'")
            return LinearSchedule(float(match[1]))
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be > 0, got {self.learning_rate!r}")
        return self.learning_rate

    def doubt(self) -> str:
        """What is legal and hardly meant; empty if nothing is."""
        rate = self.schedule()
        start = rate.start if isinstance(rate, LinearSchedule) else rate
        if start >= SMALL_RATE or self.natural_gradient.kl_target is not None:
            return ""
        return (
            f"agent.learning_rate {self.learning_rate} is of the size that first-order methods use; here it bounds the natural-gradient "
            f"step, and so small a bound learns next to nothing. The default is {type(self).learning_rate}"
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """How the agent is measured, in an environment of its own.

    Attributes:
        every_steps: Environment steps between two evaluations during training; 0 for none.
        episodes: Episodes of each of them.
        final_episodes: Episodes of the evaluation at the end, which results.json reports.
        n_envs: Copies of the environment that evaluation uses.
        deterministic: Whether the most probable action is taken, instead of a random one.
    """

    every_steps: NonNegative = 0
    episodes: Positive = 10
    final_episodes: Positive = 100
    n_envs: Positive = 4
    deterministic: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        environment: What is learned.
        agent: The learner.
        evaluation: How it is measured.
        total_timesteps: Environment steps of the run, over all copies; the last rollout is completed.
        log_every: Updates between two rows of metrics.csv.
        checkpoint_every: Environment steps between two checkpoints; one is written at the start, at the end and at an interruption anyway.
        seed: Seed of every source of randomness.
        device: Where the networks live; auto takes CUDA for pixels where there is one, else the CPU.
        threads: CPU threads of torch; null leaves torch's choice.
    """

    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    total_timesteps: Positive = 100_000
    log_every: Positive = 10
    checkpoint_every: Positive = 50_000
    seed: Annotated[int, Range(low=0, high=2**31 - 1)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Range(low=1, high=1024)] | None = None

    @property
    def batch_size(self) -> int:
        """Environment steps of one update."""
        return self.agent.n_steps * self.environment.n_envs
