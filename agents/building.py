"""The parts of a run, made from its configuration: environment, agent, device."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import close, make_training
from natgrad_apps.agents.spaces import check_policy, has_pixels
from natgrad_apps.errors import ConfigError


def open_environment(config: TrainConfig, stack: ExitStack) -> VecEnv:
    """The training environment, closed with the stack; torch's threads are set as the configuration says."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    venv = make_training(config.environment, config.agent.gamma, config.seed)
    stack.callback(close, venv)
    return venv


def build_agent(config: TrainConfig, venv: VecEnv, kind: type[ACKTR] = ACKTR) -> ACKTR:
    """A new agent.

    Args:
        config: The run.
        venv: Its environment.
        kind: Its class.

    Raises:
        ConfigError: The agent does not fit the environment.
    """
    settings = config.agent
    check_policy(venv.observation_space, settings.policy)
    try:
        return kind(
            settings.policy,
            venv,
            natural_gradient=settings.natural_gradient,
            learning_rate=settings.schedule(),
            n_steps=settings.n_steps,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            ent_coef=settings.ent_coef,
            vf_coef=settings.vf_coef,
            max_grad_norm=settings.max_grad_norm,
            normalize_advantage=settings.normalize_advantage,
            policy_kwargs=settings.network.policy_kwargs(),
            seed=config.seed,
            device=resolve_device(config, venv.observation_space),
        )
    except ConfigError as error:
        raise ConfigError(f"agent: {error}") from error
    except (AssertionError, ValueError, TypeError, NotImplementedError) as error:
        # SB3 checks its arguments with assertions.
        raise ConfigError(
            f"the agent cannot be built: policy {settings.policy!r}, observations {venv.observation_space}, actions {venv.action_space}: "
            f"{' '.join(str(error).split())}"
        ) from error


def resolve_device(config: TrainConfig, space: spaces.Space[Any] | None = None) -> str:
    """The device to use. ``auto`` takes CUDA for pixels only: small networks are faster on the CPU.

    Args:
        config: The run.
        space: Of the observations, among which there may be pixels.

    Raises:
        ConfigError: The device is not there.
    """
    if config.device == "auto":
        pixels = "Cnn" in config.agent.policy or (space is not None and has_pixels(space))
        return "cuda" if pixels and torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[config.device]:
        found = ", ".join(name for name, value in there.items() if value)
        raise ConfigError(
            f"device {config.device!r} is not available to torch {torch.__version__} on this machine; available: auto, {found}"
        )
    return config.device
