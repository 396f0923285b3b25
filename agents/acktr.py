"""`ACKTR`: a natural-gradient actor-critic with a KL trust region, as an SB3 algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from torch import Tensor
from torch.nn.functional import mse_loss
from typing_extensions import Unpack

from natgrad_apps.agents import diagnostics, random_state
from natgrad_apps.agents.adaptive_rate import follow, use_rate
from natgrad_apps.agents.arguments import check_values, reject
from natgrad_apps.agents.averaging import AveragedAlgorithm
from natgrad_apps.agents.backtracking import Backtracking, shorten
from natgrad_apps.agents.context import given
from natgrad_apps.agents.critic_noise import critic_scale
from natgrad_apps.agents.heads import Heads, observed_targets
from natgrad_apps.agents.measuring import Comparison, States
from natgrad_apps.agents.objectives import ACTOR, CRITIC
from natgrad_apps.agents.options import DEFAULTS, NaturalGradientOptions, OnPolicyArguments
from natgrad_apps.agents.policies import POLICIES, check_masks
from natgrad_apps.agents.spaces import check_spaces
from natgrad_apps.agents.value_normalization import normalize_value
from natgrad_apps.errors import ConfigError
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.ranks import Ranks

Self = TypeVar("Self", bound="ACKTR")


class ACKTR(AveragedAlgorithm):
    """Actor-critic using the Kronecker-factored trust region.

    Each rollout of ``n_steps * n_envs`` transitions gives one update: one forward pass, Fisher statistics of the joint model
    ``p(a, v | s) = pi(a | s) Normal(v; V(s), scale)`` from freshly drawn actions and values, the A2C loss
    ``-E[advantage log pi(a | s)] + vf_coef E[(return - V(s))^2] - ent_coef E[entropy]``, and one step of `NaturalGradient`. The trunk
    may be shared or not.

    Everything else is SB3's: rollouts, callbacks, schedules, VecNormalize, ``predict``, ``save`` and ``load``. Curvature, momentum and
    the random state of the Fisher are in ``policy.optimizer.state_dict()``, so ``load`` brings them back. ``save`` also keeps the
    states of the global generators and ``load`` restores them: training goes on as if it had never stopped if the environment is in the
    same state too and ``force_reset=False``.

    Logged under ``train/``, beside SB3's names. Every update: ``predicted_kl`` (half the quadratic form of the step), ``kl_scale``
    (factor of the trust region, 1 inside it; a critic with its own has ``critic_kl_scale`` too), ``damping``, ``skipped_updates`` (NaN
    or infinity), ``value_mean`` and ``value_scale`` where value targets are normalized. In updates whose numbers will be written, and where
    `measure_next_update` asks for it: ``measured_kl`` and ``measured_critic_kl`` (exact, over the rollout, one forward pass),
    ``actor_share`` and ``critic_share`` of the quadratic form, ``min_eigenvalue`` and ``max_eigenvalue`` of the undamped curvature (about a
    refresh; at most every hundredth update, repeated between).

    Departures from the paper: advantages from GAE and normalized in each rollout; momentum (0 by default) inside the trust region; the
    undamped Fisher in its bound; the critic's noise tied to its residual (`NaturalGradientOptions.vf_fisher_coef`). Each is an argument.
    Reference: Wu, Mansimov, Liao, Grosse & Ba, Scalable trust-region method for deep reinforcement learning using Kronecker-factored
    approximation, NeurIPS 2017, arXiv 1708.05144.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"`` (with `ACKTRCnn`) or ``"MultiInputPolicy"``; with a memory ``"MlpLstmPolicy"`` and so on;
            for environments that say which actions are legal ``"MaskableMlpPolicy"``, ``"MaskableMlpLstmPolicy"`` and so on; or an SB3
            actor-critic policy class.
        env: An environment, a vectorized environment, or the name of a registered one. Actions: Discrete, Box, MultiDiscrete,
            MultiBinary.
        natural_gradient: `NaturalGradientOptions`, a mapping of some of its fields, or None for the defaults.
        **kwargs: SB3's own arguments; see `OnPolicyArguments`.

    Attributes:
        natural_gradient: The options in force.
        averaged_policy: The mean of iterates that `predict` asks, where `NaturalGradientOptions.iterate_averaging` keeps one; else None.
        measure_next_update: A callback sets it (at the end of a rollout, say) to have everything measured in the next update.
        last_update: Numbers of the last update by name; empty before the first.

    Raises:
        TypeError: An unknown argument.
        ConfigError: A value is not legal, or the action space or policy has no known Fisher.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        natural_gradient: NaturalGradientOptions | Mapping[str, Any] | None = None,
        **kwargs: Unpack[OnPolicyArguments],
    ) -> None:
        for name in kwargs:
            if name not in DEFAULTS:
                reject(name)
        given: dict[str, Any] = {**DEFAULTS, **kwargs}
        self.natural_gradient = NaturalGradientOptions.of(natural_gradient)
        self.normalize_advantage: bool = given["normalize_advantage"]
        self._value_variance: float | None = None
        self._random_state: dict[str, Any] | None = None
        self._log_interval: int | None = 1
        self._updates_at_start = 0
        self.spectrum = diagnostics.Spectrum()
        self._rate_factor = 1.0
        self.measure_next_update = False
        self.last_update: dict[str, float] = {}
        check_values(given)
        del given["normalize_advantage"]
        set_up = given.pop("_init_setup_model")
        # The base class clips unconditionally; an infinite bound leaves every gradient as it is.
        given["max_grad_norm"] = math.inf if given["max_grad_norm"] is None else float(given["max_grad_norm"])
        super().__init__(
            policy,
            env,
            **given,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        if set_up:
            self._setup_model()

    def _setup_model(self) -> None:
        """Build buffer and policy as SB3 does, then give the policy its natural-gradient optimizer."""
        if "optimizer_class" in self.policy_kwargs or "optimizer_kwargs" in self.policy_kwargs:
            raise ConfigError(
                "ACKTR brings its own optimizer: drop optimizer_class and optimizer_kwargs from policy_kwargs and use natural_gradient=..."
            )
        check_spaces(self.observation_space, self.action_space)
        super()._setup_model()
        check_masks(self.policy, self.env)
        self.natural_gradient = NaturalGradientOptions.of(self.natural_gradient)  # `load` puts a user's mapping here
        if self.natural_gradient.value_normalization is not None:
            normalize_value(self.policy)
        if self.natural_gradient.iterate_averaging is not None:
            self.start_averaging()
        self.policy.optimizer = self.natural_gradient.create_optimizer(self.policy, self.lr_schedule(1), self.seed)

    @property
    def optimizer(self) -> NaturalGradient:
        """The policy's optimizer."""
        optimizer = self.policy.optimizer
        assert isinstance(optimizer, NaturalGradient)
        return optimizer

    def train(self) -> None:
        """One natural-gradient update on the current rollout."""
        with given(self.policy, self.context):
            self._update()

    def _update(self) -> None:
        policy, optimizer = self.policy, self.optimizer
        policy.set_training_mode(True)
        self._update_learning_rate(optimizer)
        rate = use_rate(self)
        scale, value_weight = critic_scale(self)
        batch = self.batch()
        actions = batch.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else batch.actions

        with optimizer.capture():
            values, log_prob, entropy = policy.evaluate_actions(batch.observations, actions)
            heads = Heads.of(policy, values, scale)
            empirical = optimizer.preconditioner.fisher.kind == "empirical"
            optimizer.observe(heads.joint, observed_targets(policy, actions, batch.returns) if empirical else None)

        advantages = batch.advantages
        if self.normalize_advantage and advantages.numel() > 1:
            mean, std = (advantages.mean(), advantages.std()) if self.ranks is None else self.ranks.moments(advantages)
            advantages = (advantages - mean) / (std + 1e-8)
        # Without a closed form, -log pi at the rollout's actions estimates the entropy without bias.
        entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
        losses = diagnostics.Losses(-(advantages * log_prob).mean(), mse_loss(values.flatten(), batch.returns), entropy_loss)
        self._backward(losses.policy_loss + self.ent_coef * losses.entropy_loss, self.vf_coef * value_weight * losses.value_loss)
        measured, target = self._is_measured(), self.natural_gradient.kl_target
        check = None if self.natural_gradient.backtracking is None else Backtracking.of(self.natural_gradient.backtracking)
        states = States(batch.observations, actions, self.context)
        whole = part = None
        if target is not None or (measured and self.natural_gradient.measure_kl):
            whole = Comparison(policy, states, scale, heads, self.ranks)
        if check is not None:
            checked = states.every(check.stride, self._n_updates)
            part = Comparison(policy, checked, scale, heads if checked is states else None, self.ranks)

        info = optimizer.step()
        self._n_updates += 1
        report = {**losses.items(), **diagnostics.describe_step(info), **diagnostics.describe_policy(policy), "skipped": info.skipped}
        if check is not None and part is not None:
            left = shorten(optimizer, check, part)
            report |= {"backtracking_scale": left.scale, "predicted_kl": left.predicted_kl(info)}
        change = None if whole is None else whole()
        if change is not None:
            report |= diagnostics.describe_change(change)
        if target is not None and change is not None and not bool(info.skipped):
            follow(self, rate, float(change.actor_kl))
        if self.natural_gradient.iterate_averaging is not None:
            self.take_iterate(self._n_updates, self.natural_gradient.iterate_averaging)
        self.last_update = numbers = diagnostics.to_numbers(report)
        if numbers.pop("skipped"):
            diagnostics.warn_skipped(self._n_updates, self.rollout_buffer)
        elif measured:
            numbers |= self.spectrum.at(self._n_updates, optimizer)
        diagnostics.record(self.logger, numbers, self.rollout_buffer, self._n_updates)

    def distribute(self, group: Any = None) -> Ranks:
        """From now on, learn together with the other processes of a group, as under ``torchrun``.

        Each rank has its own environments, whose seeds must differ, and its own rollouts of equal size. Gradients, Fisher statistics, the
        normalization of advantages, the critic's residual and measured KLs are taken over all ranks, so weights stay equal to the bit.
        Running statistics of VecNormalize are each rank's own. Counters and logged numbers are those of the rank. Call it on every rank,
        before `learn`; the agent may have been loaded from a file, with a seed of its own on each rank. A file of any rank serves.

        Args:
            group: A process group of `torch.distributed`; None for the default one.

        Raises:
            ConfigError: There is no process group, or the curvature cannot be averaged over ranks.
        """
        return self.optimizer.distribute(group)

    @property
    def ranks(self) -> Ranks | None:
        """The processes that learn together; None for this one alone."""
        return self.optimizer.preconditioner.ranks

    def _backward(self, actor_loss: Tensor, critic_loss: Tensor) -> None:
        """Give the optimizer the gradient of the sum, or each one's own where the critic has its own step rule."""
        optimizer = self.optimizer
        optimizer.zero_grad()
        losses = {"": actor_loss + critic_loss} if optimizer.objectives.alone else {CRITIC: critic_loss, ACTOR: actor_loss}
        for name, loss in losses.items():
            loss.backward(retain_graph=name == CRITIC)
            if math.isfinite(self.max_grad_norm):
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            if name:
                optimizer.collect(name)

    def _is_measured(self) -> bool:
        """Whether this update computes what costs something: on request, or because SB3 writes before each ``log_interval``-th update."""
        done = self._n_updates - self._updates_at_start + 1
        requested, self.measure_next_update = self.measure_next_update, False
        measured = requested or (self._log_interval is not None and (done + 1) % self._log_interval == 0)
        if self.ranks is None:
            return measured
        # Measuring takes means over the ranks, so all of them do it or none.
        return not bool(self.ranks.every(torch.tensor(not measured, device=self.ranks.device)))

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str = "ACKTR",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As in SB3; `log_interval` counts updates, and numbers that cost something are computed for the updates that are written only."""
        self._log_interval, self._updates_at_start = log_interval, self._n_updates
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def save(self, path: str | Path | BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """As in SB3, with the states of the global generators of torch and numpy."""
        self._random_state = random_state.capture(self.device)
        super().save(path, exclude, include)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As in SB3.

        Raises:
            ConfigError: The policy asks for masks of legal actions, and the environment has none.
        """
        super().set_env(env, force_reset)
        check_masks(self.policy, self.env)

    @classmethod
    def load(
        cls: type[Self],
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """As in SB3; also restores the states of the global generators, unless a new `seed` is given.

        A new ``natural_gradient``, as an argument or in `custom_objects`, wins over what was saved.

        Raises:
            ConfigError: It has another curvature or `value_normalization` than what was saved.
        """
        try:
            model = super().load(path, env, device, custom_objects, *args, **kwargs)
        except RuntimeError as error:  # of load_state_dict
            if "value_net.scale" not in str(error):
                raise
            raise ConfigError("value_normalization is part of the network: load the agent with the one it was saved with") from error
        if "natural_gradient" in {**kwargs, **(custom_objects or {})}:
            model.natural_gradient.apply_to(model.optimizer)
        if model._random_state is not None and "seed" not in kwargs:
            random_state.restore(model._random_state, model.device)
        return model
