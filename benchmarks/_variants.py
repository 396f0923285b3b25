"""What `acktr_ablations` compares: one thing changed in a preset, for MuJoCo environments and for Atari games."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks._agents import GAMES
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.backtracking import Backtracking
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.options import NaturalGradientOptions

ADAM_STEPS, ADAM_BATCH, ADAM_LR = 10, 1024, 1e-3
Build = Callable[[TrainConfig, Any], OnPolicyAlgorithm]


class CriticByAdam(ACKTR):
    """ACKTR with steps of Adam on the value loss after each update; for networks that share nothing."""

    def _update(self) -> None:
        super()._update()
        network = torch.nn.Sequential(self.policy.mlp_extractor.value_net, self.policy.value_net)
        if not hasattr(self, "_adam"):
            self._adam = torch.optim.Adam(network.parameters(), lr=ADAM_LR)
        rollout = self.rollout_buffer
        observations = torch.as_tensor(rollout.observations, dtype=torch.float32)
        returns = torch.as_tensor(rollout.returns, dtype=torch.float32).flatten()
        size = min(ADAM_BATCH, len(returns))
        for _ in range(ADAM_STEPS):
            rows = torch.randperm(len(returns))[:size]
            self._adam.zero_grad()
            (network(observations[rows]).flatten() - returns[rows]).square().mean().backward()
            self._adam.step()


@dataclass(frozen=True)
class Variant:
    """One change of a preset.

    Attributes:
        natural_gradient: Changed options; a function makes one from that of the preset.
        agent: Changed arguments of the agent.
        build: Makes it.
    """

    natural_gradient: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    build: Build = build_agent

    def options(self, preset: NaturalGradientOptions) -> NaturalGradientOptions:
        """Those of a preset with the change."""
        return replace(preset, **{name: v(getattr(preset, name)) if callable(v) else v for name, v in self.natural_gradient.items()})


def _policy_only(check: Backtracking) -> Backtracking:
    return replace(check, critic_kl_limit=None)


_STILL = {"name": "kl_trust_region", "radius": 1e-12}
MUJOCO = {
    "preset": Variant(),
    "ekfac": Variant({"curvature": {"name": "ekfac", "decay": 0.95}}),
    "diagonal": Variant({"curvature": {"name": "diagonal", "decay": 0.95}}),
    "momentum_inside": Variant({"momentum": 0.9}),
    "momentum_outside": Variant(
        {"momentum": 0.9, "step": {"name": "kl_clip", "kl_clip": 0.0004}, "critic_step": {"name": "kl_clip", "kl_clip": 0.002}},
        {"learning_rate": "lin_0.025"},
    ),
    "one_region": Variant({"critic_step": None}),
    "no_limit": Variant({"backtracking": None}),
    "no_critic_limit": Variant({"backtracking": _policy_only}),
    "batch_1024": Variant(agent={"n_steps": 128}),
    "batch_4096": Variant(agent={"n_steps": 512}),
    "gae": Variant(agent={"gamma": 0.99, "gae_lambda": 0.95}),
    "adaptive_rate": Variant({"kl_target": 0.01, "backtracking": None}),
    "critic_adam": Variant({"critic_step": _STILL}, build=partial(build_agent, kind=CriticByAdam)),
    "critic_extra": Variant(build=partial(build_agent, kind=CriticByAdam)),
}
ATARI = {
    "preset": Variant(),
    "batch_160": Variant(agent={"n_steps": 5}),
    "reduce": Variant({"fisher": {"kind": "mc", "sharing": "reduce", "subsample": {"units": 4}}}),
    "critic_auto": Variant({"vf_fisher_coef": "auto"}),
    "critic_region": Variant({"critic_step": {"name": "kl_trust_region", "radius": 0.0005}}),
    "damping": Variant({"damping": {"name": "factored_tikhonov", "value": 0.01}}),
    "diagonal": Variant({"curvature": {"name": "diagonal", "decay": 0.99}, "damping": {"name": "tikhonov", "value": 0.01}}),
    "no_limit": Variant({"backtracking": None}),
    "normalized_advantages": Variant(agent={"normalize_advantage": True}),
    "released": Variant(
        {"momentum": 0.9, "step": {"name": "kl_clip", "kl_clip": 1e-5}, "backtracking": None},
        {"learning_rate": "lin_0.025", "vf_coef": 0.5},
    ),
}


def variants(environment: str) -> Mapping[str, Variant]:
    """Those of an environment, a game or one of MuJoCo."""
    return ATARI if environment in GAMES else MUJOCO
