"""`NaturalGradient`: a `torch.optim.Optimizer` over the shared core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from natgrad_apps.curvature.base import Curvature
from natgrad_apps.damping.base import Damping
from natgrad_apps.errors import ConfigError, check_fraction, check_positive, unknown_name
from natgrad_apps.likelihoods import Likelihood
from natgrad_apps.objectives import Gradients, Objectives, add, average
from natgrad_apps.preconditioner import Preconditioner
from natgrad_apps.ranks import Ranks
from natgrad_apps.refresh.base import Refresh
from natgrad_apps.report import Share, describe_skipped, describe_step, quadratic
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.steps.base import Proposal, StepRule
from natgrad_apps.types import Info

Closure = Callable[[], Tensor]


class GroupDefaults(TypedDict, total=False):
    """Defaults of the parameter groups.

    Attributes:
        lr: Learning rate (0.1); with a trust region the largest one.
        momentum: Weight of the previous step (0.9), in [0, 1).
        weight_decay: L2 coefficient added to the gradient before preconditioning (0), as in `torch.optim.SGD`.
    """

    lr: float
    momentum: float
    weight_decay: float


class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient descent with any curvature, damping, refresh and step rule of the package.

    One step: ``P = F_d^-1 g``, then the step rule makes ``d`` of ``P``, the learning rate and the momentum, and ``theta <- theta + d``.

    A loss that is a sum of objectives may bound each of them apart: ``step={"actor": ..., "critic": ...}`` names a rule for each, every
    ``loss.backward()`` is followed by ``collect(name)``, and ``step()`` takes ``d = sum_k d_k`` where ``d_k`` is what rule ``k`` makes of
    ``F_d^-1 g_k`` and of the objective's own momentum. With trust regions of radii ``r_k`` the predicted KL of the whole step is at most
    ``(sum_k sqrt(r_k))^2`` (the triangle inequality of the norm ``sqrt(d^T F d)``), and no objective can use up another's radius,
    however large its gradient is and whatever parameters they share.

    Args:
        model: Its trainable parameters are optimised. Neither the model nor its state-dict keys change.
        curvature: An object such as ``KFAC()``, a name, or a mapping with ``name`` and fields.
        damping: An object, a number ``lambda`` (exact Tikhonov damping), a name, or a mapping.
        step: `Plain`, `KLClip`, `KLTrustRegion`, a name, or a mapping with ``name`` and fields; or a mapping from objectives to these.
        refresh: `Periodic`, `Staggered`, a name, or a mapping.
        fisher: ``"mc"``, ``"exact"``, ``"empirical"``, ``"forward_only"``, a `Fisher`, or a mapping of its fields.
        strict: Whether a parameter without a layer adapter is an error; else it uses the diagonal fallback, and one warning lists it.
        groups: Parameter groups as in torch, each with ``params`` and any of the defaults; None for one group.
        **defaults: ``lr``, ``momentum``, ``weight_decay`` of the groups. The decay of a parameter belongs to the first objective that
            has a gradient for it.

    Raises:
        ConfigError: An argument is not legal.
    """

    def __init__(
        self,
        model: nn.Module,
        curvature: Curvature | str | Mapping[str, Any] = "kfac",
        *,
        damping: Damping | float | str | Mapping[str, Any] = 1e-3,
        step: StepRule | str | Mapping[str, Any] = "plain",
        refresh: Refresh | str | Mapping[str, Any] = "periodic",
        fisher: Fisher | str | Mapping[str, Any] = "mc",
        strict: bool = False,
        groups: Sequence[Mapping[str, Any]] | None = None,
        **defaults: Unpack[GroupDefaults],
    ) -> None:
        self.preconditioner = Preconditioner(model, curvature, damping=damping, refresh=refresh, fisher=fisher, strict=strict)
        self._model = model
        self.objectives = Objectives(step)
        self._taken: dict[str, list[nn.Parameter]] = {}
        unknown = sorted(set(defaults) - set(GroupDefaults.__annotations__))
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}; legal group options: {', '.join(GroupDefaults.__annotations__)}")
        own = list(dict.fromkeys(self.preconditioner.blocks.parameters))
        order = {p: i for i, p in enumerate(model.parameters())}
        given = [dict(group) for group in groups] if groups is not None else [{"params": sorted(own, key=order.__getitem__)}]
        super().__init__(given, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, **defaults})
        stray = [p for group in self.param_groups for p in group["params"] if p.requires_grad and p not in set(own)]
        if stray:
            raise ConfigError(f"{len(stray)} parameters of the groups (first shape {tuple(stray[0].shape)}) do not belong to the model")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; as in torch.

        Raises:
            ConfigError: An option is not legal.
        """
        options = {**self.defaults, **param_group}
        if not isinstance(options["lr"], Tensor):
            check_positive("lr", options["lr"], allow_zero=True)
        check_fraction("momentum", options["momentum"])
        check_positive("weight_decay", options["weight_decay"], allow_zero=True)
        super().add_param_group(param_group)

    def capture(self) -> AbstractContextManager[None]:
        """Record the forward passes inside; hooks exist only there. Does nothing when statistics are not due."""
        return self.preconditioner.capture()

    def observe(self, likelihood: Likelihood, targets: Any = None) -> None:
        """Gather Fisher statistics of the recorded forward pass; see `Preconditioner.observe`."""
        self.preconditioner.observe(likelihood, targets)

    def distribute(self, group: Any = None) -> Ranks:
        """From now on, train together with the other processes of a group: gradients and statistics are averaged over them in `step`.

        Each rank computes the mean loss of its own part of the batch; parts are taken to be of equal size. The model's parameters and
        buffers are set to those of the first rank, and so are statistics and momentum if there are any already. Do not wrap the model
        in ``DistributedDataParallel`` as well.

        Args:
            group: A process group of `torch.distributed`; None for the default one.

        Raises:
            ConfigError: See `Preconditioner.distribute`.
        """
        ranks = self.preconditioner.distribute(group)
        ranks.synchronize(self._model)
        if self.preconditioner.step_count:
            super().load_state_dict(ranks.first(super().state_dict()))
        return ranks

    def collect(self, objective: str) -> None:
        """Take the gradients that ``backward()`` has left in ``.grad`` as those of one objective, and clear them there.

        Several calls before a step (micro-batches) add up.

        Raises:
            ConfigError: There is no such objective, or no parameter has a gradient.
        """
        self.objectives.collect(objective, self._parameters())

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Info:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Returns the loss on the batch of the step; calls no ``backward``. Needed by an adaptive damping
                only, which calls it before and after the step.

        Returns:
            What was done; its entries stay on the device.

        Raises:
            CaptureError: Nothing was observed yet, or a parameter with a gradient is missing from every observed likelihood.
            ConfigError: The damping is adaptive and there is no closure.
            NumericalError: A factorization failed even in float64 with jitter.
        """
        core = self.preconditioner
        if core.damping.adaptive and closure is None:
            rule = type(core.damping).__name__
            raise ConfigError(f"damping {rule} needs step(closure) with a closure that returns the loss on this batch")
        parts = self.objectives.take(self._parameters())
        if core.ranks is not None:
            parts = average(core.ranks, parts)
        self._decay_weights(parts)
        gradients = add(parts.values())
        norms = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))
        accept = core.update(torch.stack([n.to(core.damping_value) for n in norms.values()]).isfinite().all())
        if core.branch_on_host and not accept:
            return self._skipped(norms)
        shares = [share for name, part in parts.items() if (share := self._share(name, part)) is not None]
        if not shares:  # the first batch was rejected
            return self._skipped(norms)
        update = add(share.update for share in shares)
        accepted = accept & torch.stack([share.outcome.predicted_kl.isfinite() for share in shares]).all()
        core.reject(accept & ~accepted)
        if core.branch_on_host and not accepted:
            return self._skipped(norms)
        before = self._loss(closure)
        if before is not None:
            decrease = self._predicted_decrease(update, gradients)
        self._apply(shares, update, accepted)
        if before is not None:
            after = self._loss(closure)
            assert after is not None
            core.damping_value = core.damping.adapt(core.damping_value, ((before - after) / decrease).to(core.damping_value))
        return describe_step(core, norms, shares, update, accepted)

    @torch.no_grad()
    def shorten(self, factors: Mapping[str, Tensor | float]) -> None:
        """Take back a part of the last step, momentum included: what objective ``k`` contributed is multiplied by ``factors[k]``.

        For checks after the step, such as of the KL divergence that it really made. Does nothing after a skipped step on the CPU; give
        a factor of 1 for one on another device.

        Raises:
            ConfigError: There is no such objective.
        """
        for name, factor in factors.items():
            if name not in self.objectives.rules:
                raise unknown_name("objective", name, list(self.objectives.rules))
            key = self.objectives.velocity(name)
            for p in self._taken.get(name, ()):
                velocity = self.state[p][key]
                shorter = velocity * factor
                p.add_(shorter - velocity)
                self.state[p][key] = shorter

    @property
    def overlapping(self) -> bool:
        """Whether two objectives moved the same parameter in the last step."""
        moved = [p for parameters in self._taken.values() for p in parameters]
        return len(set(moved)) < len(moved)

    def _skipped(self, norms: Gradients) -> Info:
        self._taken = {}
        return describe_skipped(self.preconditioner, norms, self.objectives.rules)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def _options(self, name: str) -> dict[nn.Parameter, Any]:
        return {p: group[name] for group in self.param_groups for p in group["params"]}

    def _decay_weights(self, parts: Mapping[str, Gradients]) -> None:
        """Add weight decay to the first gradient of each parameter."""
        for p, weight_decay in self._options("weight_decay").items():
            owner = next((gradients for gradients in parts.values() if p in gradients), None)
            if weight_decay != 0 and owner is not None:
                owner[p] = owner[p].add(p, alpha=weight_decay)

    def _share(self, objective: str, gradients: Gradients) -> Share | None:
        """What the step rule of an objective makes of its gradients; None if no block has statistics yet."""
        core, key = self.preconditioner, self.objectives.velocity(objective)
        matrices = core.to_blocks(gradients)
        names = core.require_statistics(matrices)
        directions = core.from_blocks(core.multiply_power({name: matrices[name] for name in names}, -1))
        parameters = [p for p in directions if p in gradients]
        if not parameters:
            return None
        lr, momentum, rate = self._options("lr"), self._options("momentum"), self.objectives.rates[objective]

        outcome = self.objectives.rules[objective](
            Proposal(
                preconditioned=[directions[p] for p in parameters],
                gradients=[gradients[p] for p in parameters],
                velocity=[self.state[p].get(key) for p in parameters],
                lr=[lr[p] * rate for p in parameters],
                momentum=[momentum[p] for p in parameters],
                quadratic=lambda update: quadratic(core, dict(zip(parameters, update, strict=True))),
            )
        )
        return Share(objective, outcome, dict(zip(parameters, outcome.update, strict=True)))

    def _loss(self, closure: Closure | None) -> Tensor | None:
        core = self.preconditioner
        if closure is None or not core.damping.due(core.step_count):
            return None
        loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConfigError(f"the closure must return the loss as a tensor with one element, got {loss!r}")
        return loss.detach()

    def _apply(self, shares: Sequence[Share], update: Gradients, accepted: Tensor) -> None:
        """Add the step where it is taken, and keep each objective's share as its next velocity."""
        host = self.preconditioner.branch_on_host
        zero = None if host else {p: torch.zeros_like(d) for p, d in update.items()}
        if zero is None:
            torch._foreach_add_(list(update), list(update.values()))
        else:
            for p, d in update.items():
                p.add_(torch.where(accepted, d, zero[p]))
        for share in shares:
            key = self.objectives.velocity(share.objective)
            for p, d in share.update.items():
                self.state[p][key] = d if zero is None else torch.where(accepted, d, self.state[p].get(key, zero[p]))
        self._taken = {share.objective: list(share.update) for share in shares}

    def _predicted_decrease(self, update: Gradients, gradients: Gradients) -> Tensor:
        """``-(g^T d + 1/2 d^T (F + lambda I) d)``, the decrease of the damped quadratic model."""
        slope = torch.stack([torch.sum(gradients[p] * d) for p, d in update.items()]).sum()
        squares = torch.stack([d.square().sum() for d in update.values()]).sum()
        curvature = torch.stack(list(quadratic(self.preconditioner, update).values())).sum()
        return -(slope + (curvature + self.preconditioner.damping_value * squares) / 2)

    def state_dict(self) -> dict[str, Any]:
        """Groups and velocities as in torch, and the core's statistics, caches, counters and random state under ``curvature``."""
        return {**super().state_dict(), "curvature": self.preconditioner.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It belongs to another model, curvature or optimizer.
        """
        if "curvature" not in state_dict:
            raise ConfigError(f"this is no state of NaturalGradient: it has {sorted(state_dict)} and no 'curvature'")
        self.preconditioner.load_state_dict(state_dict["curvature"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "curvature"})
