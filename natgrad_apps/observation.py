"""From a likelihood and a recorded forward pass to the moments of every block."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.blocks import Blocks
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.errors import CaptureError
from natgrad_apps.likelihoods import Likelihood
from natgrad_apps.statistics.capture import Call, Capture, StatisticsSettings, backward, layer_statistics
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.statistics.moments import ParameterStatistics


@dataclass(frozen=True)
class Moments:
    """Moments of the terms observed since the last step, with their number (the sum of their weights)."""

    values: dict[str, Tensor]
    terms: float | Tensor

    def combined(self, other: Moments, curvature: Curvature) -> Moments:
        """Mean over the terms of both."""
        total = self.terms + other.terms
        return Moments(curvature.combine(self.values, other.values, self.terms / total), total)


class Observer:
    """Records forward passes and measures them.

    Args:
        blocks: What is measured.
        fisher: How.
    """

    def __init__(self, blocks: Blocks, fisher: Fisher) -> None:
        self.fisher = fisher
        self.seen: set[str] = set()
        self.batches = 0
        self._blocks = blocks
        self._capture = Capture(blocks.layers)
        self._observed: list[Call] = []
        self._generator: torch.Generator | None = None
        self._generator_state: Tensor | None = None

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Record the forward passes inside."""
        try:
            with self._capture.open():
                yield
        finally:
            self._observed.clear()

    @torch.no_grad()
    def observe(self, likelihood: Likelihood, targets: Any) -> dict[str, Moments]:
        """Propagate the Fisher columns and measure every block that the likelihood depends on.

        Layers whose module was not called are left out. If the outputs depend on the weight of such a layer all the
        same, other code reads it, and it becomes bare parameters for good.
        """
        if not self._capture.active:
            raise CaptureError("observe() belongs inside `with optimizer.capture():`, after the forward pass")
        likelihood.check_differentiable()
        device = likelihood.outputs[0].device
        with torch.autocast(device_type=device.type, enabled=False):
            columns = self.fisher.columns(likelihood, targets, self._generator_on(device))
            observed = set(map(id, self._observed))
            calls = [call for call in self._capture.calls if id(call) not in observed]
            if self._blocks.layers and not self._capture.calls:
                raise CaptureError(
                    "observe() found no forward pass: run the model with gradients enabled inside `with optimizer.capture():` first"
                )
            self._find_functional_layers(likelihood, columns)
            known = {id(parameter): value for parameter, value in likelihood.known_fisher()}
            self._blocks.report(known)
            bare = [block for block in self._blocks.bare if id(block.parameters[0]) not in known]
            inputs = [call.edge for call in (*calls, *self._observed)] + [block.parameters[0] for block in bare]
            gradients = _transpose([backward(likelihood.outputs, inputs, column) for column in columns], len(inputs))
            first_bare = len(calls) + len(self._observed)
            if any(gradients[len(calls) : first_bare]):
                raise CaptureError(
                    "this forward pass was observed already; heads that share a forward pass belong into one Joint(policy, value)"
                )
            moments = self._measure_layers(likelihood, calls, gradients[: len(calls)], columns)
            bare_gradients = {block.spec.name: own for block, own in zip(bare, gradients[first_bare:], strict=True)}
            for block in self._blocks.bare:
                value = known.get(id(block.parameters[0]))
                if value is None and not columns:
                    value = torch.ones_like(block.parameters[0])  # forward_only: the identity stands for the unknown gradients
                own = [] if value is not None else bare_gradients[block.spec.name]
                if value is not None or own:
                    statistics = ParameterStatistics(block.spec, own, likelihood.total_weight, value)
                    moments[block.spec.name] = Moments(block.curvature.measure(block.state, statistics), likelihood.total_weight)
        if not moments:
            raise CaptureError(
                "the likelihood does not depend on any trainable parameter; build it from the outputs of the captured forward pass"
            )
        self.seen.update(moments)
        self.batches += 1
        return moments

    def _measure_layers(
        self, likelihood: Likelihood, calls: Sequence[Call], gradients: Sequence[list[Tensor]], columns: Sequence[tuple[Tensor, ...]]
    ) -> dict[str, Moments]:
        """Moments of the layers whose calls the likelihood depends on."""
        settings = StatisticsSettings(
            terms=likelihood.total_weight,
            reduce=self.fisher.sharing == "reduce",
            subsample=self.fisher.subsample,
            batch=self.batches,
            weights=likelihood.weights,
            support=likelihood.support,
            groups=likelihood.groups,
            num_terms=likelihood.num_terms,
        )
        names = _blocks_by_module(self._blocks)
        used: dict[str, list[tuple[Call, list[Tensor]]]] = {}
        for call, own in zip(calls, gradients, strict=True):
            if own or not columns:
                self._observed.append(call)
                for name in names.get(call.module, ()):
                    used.setdefault(name, []).append((call, own))
        moments = {}
        for name, pairs in used.items():
            block = self._blocks[name]
            assert block.layer is not None
            statistics = layer_statistics(block.layer, [call for call, _ in pairs], [own for _, own in pairs], settings)
            moments[name] = Moments(block.curvature.measure(block.state, statistics), likelihood.total_weight)
        return moments

    def _find_functional_layers(self, likelihood: Likelihood, columns: Sequence[tuple[Tensor, ...]]) -> None:
        """Turn layers that were never called, but whose weight the outputs depend on, into bare parameters."""
        called = {call.module for call in self._capture.calls}
        candidates = [
            name
            for name, block in self._blocks.items()
            if block.layer is not None and name not in self.seen and called.isdisjoint(block.layer.modules)
        ]
        if not candidates or not columns:
            return
        parameters = [self._blocks[name].parameters[0] for name in candidates]
        for name, gradient in zip(candidates, backward(likelihood.outputs, parameters, columns[0]), strict=True):
            if gradient is not None:
                self._blocks.make_bare(name)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        """The own source of randomness, created on the device of the first outputs."""
        if self._generator is None:
            self._generator = torch.Generator(device=device)
            self._generator.manual_seed(self.fisher.seed)
            if self._generator_state is not None:
                self._generator.set_state(self._generator_state.cpu())
        return self._generator

    def draw_apart(self, rank: int) -> None:
        """From now on draw other targets than the other ranks; the first one goes on as before.

        Args:
            rank: Number of this one.
        """
        if rank:
            self.fisher = dataclasses.replace(self.fisher, seed=self.fisher.seed + rank)
            self._generator = self._generator_state = None

    def state_dict(self) -> dict[str, Any]:
        """Counters and the state of the generator."""
        generator = self._generator.get_state() if self._generator is not None else self._generator_state
        return {"seen": sorted(self.seen), "batches": self.batches, "generator": generator}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.seen, self.batches = set(saved["seen"]), int(saved["batches"])
        self._generator, self._generator_state = None, saved["generator"]


def _transpose(found: Sequence[Sequence[Tensor | None]], size: int) -> list[list[Tensor]]:
    """Gradients of each input over the columns.

    What one column does not reach no column reaches, because heads without a share in a column are zero there, not absent.
    """
    return [[g for g in (column[i] for column in found) if g is not None] for i in range(size)]


def _blocks_by_module(blocks: Blocks) -> dict[nn.Module, list[str]]:
    """Names of the blocks of each module: two when a tied weight is kept apart from the bias."""
    found: dict[nn.Module, list[str]] = {}
    for name, block in blocks.items():
        for module in block.layer.modules if block.layer is not None else ():
            found.setdefault(module, []).append(name)
    return found
