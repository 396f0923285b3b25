"""Settings of an agent: SB3's own arguments as a typed dictionary, and the natural-gradient ones as one frozen record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from natgrad_apps import curvature as curvatures
from natgrad_apps import damping as dampings
from natgrad_apps import refresh as refreshes
from natgrad_apps import steps
from natgrad_apps.agents.backtracking import Backtracking
from natgrad_apps.agents.objectives import ACTOR, CRITIC
from natgrad_apps.agents.value_normalization import PopArt
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.curvature.kfac import KFAC
from natgrad_apps.damping.base import Damping
from natgrad_apps.damping.tikhonov import Tikhonov
from natgrad_apps.errors import ConfigError, check_fraction, check_positive, unknown_name
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.refresh.base import Refresh
from natgrad_apps.refresh.periodic import Periodic
from natgrad_apps.registry import component_name, record
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.steps.base import StepRule
from natgrad_apps.steps.kl_trust_region import KLTrustRegion

if TYPE_CHECKING:  # annotations only: configurations are read without SB3
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.type_aliases import Schedule

AUTO = "auto"
"""Value of `NaturalGradientOptions.vf_fisher_coef` that ties the critic's noise to its residual."""


class OnPolicyArguments(TypedDict, total=False):
    """SB3's own arguments of an on-policy algorithm, with the meaning that SB3 gives them; every one is optional.

    Attributes:
        learning_rate: Largest step ``eta_max``, a number or a function of the progress remaining; the trust region can shorten it. A rate
            that falls to zero, ``lambda remaining: 0.25 * remaining``, is recommended: normalized advantages keep their size when
            nothing is left to learn, so a constant rate lets the policy wander (0.25).
        n_steps: Steps of each environment in one rollout; the batch is ``n_steps * n_envs``; a few hundred transitions suit it (32).
        gamma: Discount factor (0.99).
        gae_lambda: Trade-off of bias against variance in the advantage; 1 gives the n-step advantage of the paper (0.95).
        ent_coef: Weight of the entropy bonus, which is part of the loss and not of the Fisher. Below 0 it is a penalty: the noise of a
            Gaussian policy falls by it. Each deviation has the Fisher 2, so an update multiplies it by about ``exp(rate ent_coef / 2)``
            beside what the advantages do (0).
        vf_coef: Weight of the value loss (0.5).
        max_grad_norm: Bound of the Euclidean gradient norm, of each loss where actor and critic step apart; None for no bound, because
            the trust region bounds the step (None).
        use_sde: State-dependent exploration; refused, because its Fisher is not the one that is estimated here (False).
        sde_sample_freq: Only meaningful with `use_sde` (-1).
        rollout_buffer_class: Class of the rollout buffer; None lets SB3 choose (None).
        rollout_buffer_kwargs: Its arguments (None).
        normalize_advantage: Whether advantages are shifted and scaled to mean 0 and standard deviation 1 in each rollout (True).
        stats_window_size: Episodes that the logged mean return is taken over (100).
        tensorboard_log: Folder of TensorBoard events; None writes none (None).
        policy_kwargs: Arguments of the policy (None).
        verbose: 0 nothing, 1 information, 2 debugging (0).
        seed: Seed of every source of randomness (None).
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ... ("auto").
    """

    learning_rate: float | Schedule
    n_steps: int
    gamma: float
    gae_lambda: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float | None
    use_sde: bool
    sde_sample_freq: int
    rollout_buffer_class: type[RolloutBuffer] | None
    rollout_buffer_kwargs: dict[str, Any] | None
    normalize_advantage: bool
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: torch.device | str
    _init_setup_model: bool


DEFAULTS: OnPolicyArguments = {
    "learning_rate": 0.25,
    "n_steps": 32,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": None,
    "use_sde": False,
    "sde_sample_freq": -1,
    "rollout_buffer_class": None,
    "rollout_buffer_kwargs": None,
    "normalize_advantage": True,
    "stats_window_size": 100,
    "tensorboard_log": None,
    "policy_kwargs": None,
    "verbose": 0,
    "seed": None,
    "device": "auto",
    "_init_setup_model": True,
}


@dataclass(frozen=True)
class NaturalGradientOptions:
    """How the agent's natural gradient is estimated and bounded.

    Every component is an object (``KFAC(decay=0.99)``), a name (``"kfac"``) or a mapping with ``name`` and fields, as in YAML; it is an
    object afterwards.

    Attributes:
        curvature: Approximation of the joint Fisher of policy and critic.
        damping: Damping rule, or a number ``lambda`` for exact Tikhonov damping.
        step: Step rule. `KLTrustRegion` bounds ``KL(old policy || new policy) + KL(old critic || new critic)`` of one update, in nats.
        critic_step: Step rule of the value loss, so that `step` is that of policy and entropy alone: each has its own radius (and
            momentum), and a large value loss cannot use up the policy's, in a shared trunk neither. It costs a second backward pass
            through a shared trunk. None bounds the sum of the losses with `step`.
        kl_target: Measured KL of the policy, in nats, that the learning rate is adapted to, as the continuous code of OpenAI's baselines
            does: divided by 1.5 after an update that made more than twice the target, multiplied by 1.5 after one that made less than half
            of it, never above 1. `learning_rate` is where it begins; a schedule that falls is raised again. A critic with a `critic_step`
            keeps the schedule. Costs one forward pass each update. None adapts nothing.
        backtracking: Check of the KL after each step, a `Backtracking` or a mapping of its fields; None checks nothing.
        refresh: When statistics are gathered and inverses recomputed.
        fisher: ``"mc"`` draws fresh actions and values from the current model, ``"exact"`` needs one backward pass for each action,
            ``"empirical"`` uses the rollout's own actions and returns. A mapping without a ``seed`` takes the agent's.
        momentum: Weight of the previous step, in [0, 1). With `KLTrustRegion` it is inside the bound.
        weight_decay: L2 coefficient of all weights, in the gradient before preconditioning.
        vf_fisher_coef: The critic is ``Normal(V(s), 1/sqrt(vf_fisher_coef))``. ``"auto"``: one over the running mean square of the
            critic's residual (return minus value), which also divides the value loss, so that the scale of the rewards does not matter.
            With `value_normalization` a number counts in units of the returns' deviation.
        value_normalization: Normalization of the value targets, a `PopArt` or a mapping of its fields (``{}`` for its defaults), which
            makes the damping of the critic independent of the rewards' scale; part of the network, so a saved agent keeps it. None for
            none.
        iterate_averaging: Share of the updates so far, in (0, 1], that a running mean of the weights looks back over. The mean plays in
            place of the last weights, in `predict` and every evaluation; learning does not change by it. None plays with the last.
        measure_kl: Whether to log the KL that an update really made; costs one forward pass for each logged update.

    Raises:
        ConfigError: A value is not legal.
    """

    curvature: Curvature | str | Mapping[str, Any] = field(default_factory=lambda: KFAC(decay=0.95))
    damping: Damping | float | str | Mapping[str, Any] = field(default_factory=lambda: Tikhonov(0.01))
    step: StepRule | str | Mapping[str, Any] = field(default_factory=lambda: KLTrustRegion(0.01))
    critic_step: StepRule | str | Mapping[str, Any] | None = None
    backtracking: Backtracking | Mapping[str, Any] | None = None
    kl_target: float | None = None
    refresh: Refresh | str | Mapping[str, Any] = field(default_factory=lambda: Periodic(statistics_period=1, inverse_period=1))
    fisher: Fisher | str | Mapping[str, Any] = "mc"
    momentum: float = 0.0
    weight_decay: float = 0.0
    vf_fisher_coef: float | str = AUTO
    value_normalization: PopArt | Mapping[str, Any] | None = None
    iterate_averaging: float | None = None
    measure_kl: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "curvature", curvatures.build(self.curvature))
        object.__setattr__(self, "damping", dampings.build(self.damping))
        object.__setattr__(self, "step", steps.build(self.step))
        if self.critic_step is not None:
            object.__setattr__(self, "critic_step", steps.build(self.critic_step))
        if self.backtracking is not None:
            object.__setattr__(self, "backtracking", Backtracking.of(self.backtracking))
        if self.value_normalization is not None:
            object.__setattr__(self, "value_normalization", PopArt.of(self.value_normalization))
        object.__setattr__(self, "refresh", refreshes.build(self.refresh))
        Fisher.of(self.fisher)
        if self.adaptive_damping:
            raise ConfigError(
                f"damping {component_name(type(self.damping))!r} compares losses before and after a step, but the loss of a policy "
                "gradient measures no progress; use 'tikhonov' or 'factored_tikhonov'"
            )
        check_fraction("momentum", self.momentum)
        if self.iterate_averaging is not None:
            check_fraction("iterate_averaging", self.iterate_averaging, below_one=False)
        if self.kl_target is not None:
            check_positive("kl_target", self.kl_target)
        check_positive("weight_decay", self.weight_decay, allow_zero=True)
        if self.vf_fisher_coef != AUTO:
            if isinstance(self.vf_fisher_coef, str):
                raise unknown_name("vf_fisher_coef (a positive number is legal too)", self.vf_fisher_coef, [AUTO])
            check_positive("vf_fisher_coef", self.vf_fisher_coef)
        if not isinstance(self.measure_kl, bool):
            raise ConfigError(f"measure_kl must be true or false, got {self.measure_kl!r}")

    @property
    def adaptive_damping(self) -> bool:
        """Whether the damping rule needs a closure."""
        return isinstance(self.damping, Damping) and self.damping.adaptive

    @classmethod
    def of(cls, spec: NaturalGradientOptions | Mapping[str, Any] | None) -> NaturalGradientOptions:
        """Options from themselves, a mapping of some fields, or None for the defaults.

        Raises:
            ConfigError: Another type, an unknown field, or a value that is not legal.
        """
        return record(cls, {} if spec is None else spec, "natural_gradient")

    def seeded_fisher(self, seed: int | None) -> Fisher:
        """The Fisher estimate; it draws with `seed` unless it was given with one."""
        own = isinstance(self.fisher, Fisher) or (isinstance(self.fisher, Mapping) and "seed" in self.fisher)
        fisher = Fisher.of(self.fisher)
        return fisher if own or seed is None else dataclasses.replace(fisher, seed=seed)

    def create_optimizer(self, model: nn.Module, lr: float, seed: int | None) -> NaturalGradient:
        """The optimizer of these options over a model."""
        return NaturalGradient(
            model,
            self.curvature,
            damping=self.damping,
            step=self.step if self.critic_step is None else {ACTOR: self.step, CRITIC: self.critic_step},
            refresh=self.refresh,
            fisher=self.seeded_fisher(seed),
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def apply_to(self, optimizer: NaturalGradient) -> None:
        """Set what an optimizer's state dict brings back from another run: damping, momentum, weight decay."""
        assert isinstance(self.damping, Damping)
        optimizer.preconditioner.damping_value.fill_(self.damping.value)
        for group in optimizer.param_groups:
            group.update(momentum=self.momentum, weight_decay=self.weight_decay)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values that `of` accepts, for YAML; components as mappings with ``name``."""
        result: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (Fisher, Backtracking, PopArt)):
                value = dataclasses.asdict(value)
            elif isinstance(value, (Curvature, Damping, StepRule, Refresh)):
                value = {"name": component_name(type(value)), **dataclasses.asdict(value)}
            elif isinstance(value, Mapping):
                value = dict(value)
            result[f.name] = value
        return result
