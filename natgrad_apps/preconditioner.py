"""The shared core: layers x curvature x refresh x damping. It knows the Fisher of a model and multiplies by its powers; it takes no steps.

Applications that are no optimizers (posterior samplers, analysis) use it directly; `natgrad_apps.optim.NaturalGradient` wraps it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps import curvature as curvatures
from natgrad_apps import damping as dampings
from natgrad_apps import refresh as refreshes
from natgrad_apps.blocks import Blocks
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.damping.base import Damping
from natgrad_apps.errors import CaptureError, ConfigError, NonFiniteWarning
from natgrad_apps.likelihoods import Likelihood
from natgrad_apps.observation import Moments, Observer
from natgrad_apps.ranks import Ranks
from natgrad_apps.refresh.base import Refresh
from natgrad_apps.registry import component_name
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.types import DampingValue


class Preconditioner:
    """Fisher information of a model, block by block.

    Args:
        model: Its trainable parameters are covered; the model itself is left alone.
        curvature: Approximation of the layers: an object, a name, or a mapping with ``name`` and fields.
        damping: A damping rule, a number (`Tikhonov`), a name, or a mapping.
        refresh: When statistics are gathered and blocks refactorized.
        fisher: The Fisher estimate.
        strict: Whether parameters without a layer adapter are an error.

    Attributes:
        block_damping: Damping of single blocks, 0-d tensors, in place of the common value from their next refresh on. Blocks that share one
            tensor are factorized in one batch. Not part of `state_dict`: who sets it sets it before every `update`.
        refreshed: Names of the blocks that the last `update` refactorized.
        ranks: The processes that statistics are averaged over; see `distribute`.

    Raises:
        ConfigError: An argument is not legal.
    """

    def __init__(
        self,
        model: nn.Module,
        curvature: Curvature | str | Mapping[str, Any] = "kfac",
        *,
        damping: Damping | float | str | Mapping[str, Any] = 1e-3,
        refresh: Refresh | str | Mapping[str, Any] = "periodic",
        fisher: Fisher | str | Mapping[str, Any] = "mc",
        strict: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}; layers are found through modules")
        self.curvature = curvatures.build(curvature)
        self.damping = dampings.build(damping)
        self.refresh = refreshes.build(refresh)
        self.blocks = Blocks(model, self.curvature, strict=strict)
        self.step_count = 0
        device = self.blocks.parameters[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.damping_value = torch.tensor(self.damping.value, dtype=wide, device=device)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)
        # On the CPU a decision costs nothing; elsewhere it would wait for the device, so decisions become arithmetic there.
        self.branch_on_host = device.type == "cpu"
        self.block_damping: dict[str, Tensor] = {}
        self.refreshed: tuple[str, ...] = ()
        self._observer = Observer(self.blocks, Fisher.of(fisher))
        self._pending: dict[str, Moments] = {}
        self._ready: set[str] = set()
        self._overdue: set[str] = set()
        self.ranks: Ranks | None = None

    def distribute(self, group: Any = None) -> Ranks:
        """From now on average statistics over the processes of a group, each of which observes its own part of a batch.

        The Monte-Carlo Fisher draws with ``seed + rank``, so that ranks draw different targets. What was observed or loaded before is
        replaced by what the first rank has.

        Args:
            group: A process group of `torch.distributed`; None for the default one.

        Raises:
            ConfigError: There is no process group, the curvature cannot be averaged over ranks, or some ranks only have observed something.
        """
        if not self.curvature.averages_over_ranks:
            raise ConfigError(
                f"curvature {component_name(type(self.curvature))!r} keeps more of a batch than means over its terms, which ranks cannot "
                "average; use 'kfac', 'diagonal' or 'exact'"
            )
        ranks = Ranks(self.damping_value.device, group)
        seen = torch.tensor(bool(self._observer.seen), device=ranks.device)
        if not bool(ranks.every(seen)) and not bool(ranks.every(~seen)):
            raise ConfigError("some ranks have observed or loaded statistics, others have not; load the same file on every rank, or none")
        if seen:
            self.load_state_dict(ranks.first(self.state_dict()))
        self._observer.draw_apart(ranks.rank)
        self.ranks = ranks
        return ranks

    @property
    def fisher(self) -> Fisher:
        """The Fisher estimate."""
        return self._observer.fisher

    @property
    def statistics_due(self) -> bool:
        """Whether this step gathers statistics."""
        return self.refresh.statistics_due(self.step_count) or not self._observer.seen

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Record the forward passes inside; does nothing when statistics are not due.

        Raises:
            CaptureError: A capture is open already.
        """
        if not self.statistics_due:
            yield
            return
        with self._observer.capture():
            yield

    def observe(self, likelihood: Likelihood, targets: Any = None) -> None:
        """Gather the Fisher statistics of the recorded forward pass; a backward pass to layer outputs for each Fisher column.

        Several calls before a step (micro-batches) count as one batch. Heads that share a forward pass belong into one `Joint`.

        Args:
            likelihood: Built from the model's outputs.
            targets: The true targets, for ``fisher="empirical"`` only.

        Raises:
            CaptureError: Called outside `capture`, or nothing was recorded, or the forward pass was observed already.
            ConfigError: Targets are missing or superfluous.
            TypeError: `likelihood` is not a likelihood.
            UnsupportedLayerError: A parameter has no layer adapter, under ``strict=True``.
        """
        if not isinstance(likelihood, Likelihood):
            given = type(likelihood).__name__
            raise TypeError(f"observe() needs a natgrad_apps.likelihoods object such as Categorical(logits), got {given}")
        if not self.statistics_due:
            return
        for name, new in self._observer.observe(likelihood, targets).items():
            old = self._pending.get(name)
            self._pending[name] = new if old is None else old.combined(new, self.blocks[name].curvature)

    def update(self, accept: Tensor | None = None) -> Tensor:
        """Fold the observed batch into the running averages and refresh the blocks that are due. Ends the step.

        Args:
            accept: A 0-d boolean tensor; false rejects the batch (a gradient was not finite).

        Returns:
            Whether the batch was accepted, a 0-d boolean tensor: false too if a statistic is not finite. A rejected
            batch changes nothing but `skipped_steps`.

        Raises:
            CaptureError: Nothing was ever observed.
            NumericalError: A factorization failed even in float64 with jitter.
        """
        seen = self._observer.seen
        if not seen:
            raise CaptureError("no statistics yet: call observe() inside `with optimizer.capture():` before the first step")
        if self.ranks is not None:
            self._pending = self._over_ranks(self.ranks)
        checks = [self.blocks[name].curvature.finite(pending.values) for name, pending in self._pending.items()]
        if accept is None:
            accept = torch.ones((), dtype=torch.bool, device=self.damping_value.device)
        accept = torch.stack([accept, *checks]).all()
        if self.ranks is not None:
            accept = self.ranks.every(accept)
        due = seen & {*self.refresh.blocks_due(self.step_count, list(self.blocks)), *self._overdue} | (seen - self._ready)
        self.step_count += 1
        self.refreshed = ()
        pending, self._pending = self._pending, {}
        self.reject(~accept)
        known = bool(accept) if self.branch_on_host or due - self._ready else None
        if known is False:
            self._overdue |= due
            for name in seen - self._ready:  # what a rejected first batch left there (the first basis of EKFAC)
                self.blocks[name].state.cache.clear()
            return accept
        for name, new in pending.items():
            block = self.blocks[name]
            block.curvature.accumulate(block.state, new.values, None if known else accept)
        self._refresh([name for name in self.blocks if name in due])
        self._overdue.clear()
        return accept

    @torch.no_grad()
    def _over_ranks(self, ranks: Ranks) -> dict[str, Moments]:
        """Means of the pending moments over the terms of all ranks."""
        if not self._pending and not self.statistics_due:
            return {}
        names = sorted(self._pending)
        ranks.require_equal_names(names, "observed blocks")
        pending = [self._pending[name] for name in names]
        terms = [torch.as_tensor(p.terms, dtype=torch.float64, device=self.damping_value.device) for p in pending]
        scaled = [value * t.to(value) for p, t in zip(pending, terms, strict=True) for value in p.values.values()]
        totals = ranks.total([*scaled, *terms])
        counts, sums = totals[len(scaled) :], iter(totals[: len(scaled)])
        return {
            name: Moments({key: next(sums) / count.to(value) for key, value in p.values.items()}, count)
            for name, p, count in zip(names, pending, counts, strict=True)
        }

    def reject(self, rejected: Tensor) -> None:
        """Count a rejected step where the 0-d boolean tensor is true; on the CPU, warn."""
        self.skipped_steps += rejected
        if self.branch_on_host and rejected:
            message = f"step {self.step_count} was skipped: a gradient, a statistic or the step is NaN or infinite"
            warnings.warn(message, NonFiniteWarning, stacklevel=4)

    @torch.no_grad()
    def _refresh(self, names: Sequence[str]) -> None:
        groups: dict[tuple[Curvature, int], list[str]] = {}
        for name in names:
            groups.setdefault((self.blocks[name].curvature, id(self._damping_of(name))), []).append(name)
        for (curvature, _), members in groups.items():
            damping = DampingValue(self._damping_of(members[0]), self.damping.factored)
            curvature.refresh([self.blocks[name].state for name in members], damping)
        self._ready.update(names)
        self.refreshed = tuple(names)

    def _damping_of(self, name: str) -> Tensor:
        return self.block_damping.get(name, self.damping_value)

    def known(self, name: str) -> bool:
        """Whether a block was observed and factorized."""
        return name in self._ready

    def discard(self) -> None:
        """Forget what was observed since the last `update`."""
        self._pending = {}

    def to_blocks(self, values: Mapping[nn.Parameter, Tensor]) -> dict[str, Tensor]:
        """Tensors shaped like parameters as block matrices. Blocks without any value are absent; a missing part of a block is zero."""
        result = {}
        for name, block in self.blocks.items():
            if any(p in values for p in block.parameters):
                result[name] = block.to_matrix([values[p] if p in values else torch.zeros_like(p) for p in block.parameters])
        return result

    def from_blocks(self, matrices: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Inverse of `to_blocks`."""
        result: dict[nn.Parameter, Tensor] = {}
        for name, matrix in matrices.items():
            block = self.blocks[name]
            result.update(zip(block.parameters, block.from_matrix(matrix), strict=True))
        return result

    def multiply_power(self, vectors: Mapping[str, Tensor], power: float) -> dict[str, Tensor]:
        """``F_d^power v`` for each block; powers -1 (of the last refresh), -1/2, 1/2, 1."""
        return {name: self.blocks[name].curvature.multiply_power(self.blocks[name].state, v, power) for name, v in vectors.items()}

    def quadratic(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``v^T F v`` of each block with the undamped Fisher, 0-d tensors; with ``v`` a step, twice its predicted KL in nats."""
        return {name: self.blocks[name].curvature.quadratic(self.blocks[name].state, v) for name, v in vectors.items()}

    def logdet(self) -> dict[str, Tensor]:
        """``log det F_d`` of each observed block, in nats."""
        return {name: self.blocks[name].curvature.logdet(self.blocks[name].state) for name in self.blocks if name in self._ready}

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue of the undamped Fisher approximation over all observed blocks; costs about a refresh."""
        ranges = [b.curvature.eigenvalue_range(b.state) for name, b in self.blocks.items() if name in self._ready]
        if not ranges:
            raise CaptureError("no statistics yet: observe a batch and call update() or step() first")
        return torch.stack([low for low, _ in ranges]).min(), torch.stack([high for _, high in ranges]).max()

    def require_statistics(self, gradients: Mapping[str, Tensor]) -> list[str]:
        """Blocks that can be preconditioned; a block without statistics is left out if its gradient is zero.

        Raises:
            CaptureError: A block has a gradient but never had statistics: the observed likelihood does not depend on it.
        """
        unseen = [name for name in gradients if name not in self._ready]
        lost = [name for name in unseen if bool((gradients[name] != 0).any())]
        if lost and self._ready:
            raise CaptureError(
                f"the loss depends on {', '.join(lost)}, but no observed likelihood does; observe every head of the model, several as "
                "Joint(policy, value), or freeze these parameters"
            )
        return [name for name in gradients if name in self._ready]

    def state_dict(self) -> dict[str, Any]:
        """Statistics, caches, counters and the state of the generator: tensors and plain values only."""
        return {
            "blocks": self.blocks.state_dict(),
            "observer": self._observer.state_dict(),
            "step_count": self.step_count,
            "ready": sorted(self._ready),
            "overdue": sorted(self._overdue),
            "damping": self.damping_value.clone(),
            "skipped_steps": self.skipped_steps.clone(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It belongs to another model or curvature.
        """
        self.blocks.load_state_dict(saved["blocks"])
        self._observer.load_state_dict(saved["observer"])
        self.step_count, self._ready = int(saved["step_count"]), set(saved["ready"])
        self._overdue = set(saved["overdue"])
        self.damping_value = saved["damping"].to(self.damping_value, copy=True)
        self.skipped_steps = saved["skipped_steps"].to(self.skipped_steps, copy=True)
        self._pending = {}
