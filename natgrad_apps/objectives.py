"""Gradients by objective: one loss, or several whose steps are bounded apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from natgrad_apps import steps
from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.ranks import Ranks
from natgrad_apps.steps.base import StepRule

Gradients = dict[nn.Parameter, Tensor]

LOSS = "loss"
"""Name of the objective when there is one only."""


class Objectives:
    """The step rule of each objective, and the gradients collected for it since the last step.

    Args:
        spec: One step rule (an object, a name, a mapping with ``name``), or a mapping from the names of two or more objectives to them.

    Attributes:
        rules: Step rule by objective, in the order given.
        rates: Factor of the learning rate by objective, 1 unless somebody sets it before a step; no part of checkpoints.

    Raises:
        ConfigError: A rule is not legal.
    """

    def __init__(self, spec: StepRule | str | Mapping[str, Any]) -> None:
        named = spec if _is_several(spec) else {LOSS: spec}
        self.rules: dict[str, StepRule] = {name: steps.build(rule) for name, rule in named.items()}
        self.rates: dict[str, float] = dict.fromkeys(self.rules, 1.0)
        self._collected: dict[str, Gradients] = {}

    @property
    def alone(self) -> bool:
        """Whether there is one objective only."""
        return len(self.rules) == 1

    def velocity(self, name: str) -> str:
        """Key of the objective's momentum in the state of a parameter."""
        return "velocity" if self.alone else f"velocity/{name}"

    def collect(self, name: str, parameters: Iterable[nn.Parameter]) -> None:
        """Move what is in ``.grad`` to an objective, adding to what it has.

        Raises:
            ConfigError: There is no such objective, or no parameter has a gradient.
        """
        if name not in self.rules:
            raise unknown_name("objective", name, list(self.rules))
        found = _take(parameters)
        if not found:
            raise ConfigError(f"collect({name!r}): no parameter has a gradient; call backward() on the loss of this objective first")
        before = self._collected.get(name)
        self._collected[name] = found if before is None else add([before, found])

    def take(self, parameters: Iterable[nn.Parameter]) -> dict[str, Gradients]:
        """Gradients of every objective for one step; those collected are forgotten, those in ``.grad`` stay there.

        Raises:
            ConfigError: A gradient is missing, or nobody said to which objective it belongs.
        """
        stray = {p: _dense(p.grad) for p in parameters if p.grad is not None}
        if self.alone and not self._collected:
            if not stray:
                raise ConfigError("no parameter has a gradient; call loss.backward() before step()")
            return {next(iter(self.rules)): stray}
        missing = [name for name in self.rules if name not in self._collected]
        if stray or missing:
            calls = ", ".join(f"collect({name!r})" for name in self.rules)
            fault = f"nothing was collected for {', '.join(missing)}" if missing else f"{len(stray)} gradients were not collected"
            raise ConfigError(f"{fault}; with several objectives, call backward() and then {calls} for each before step()")
        collected, self._collected = self._collected, {}
        return {name: collected[name] for name in self.rules}


def _is_several(spec: StepRule | str | Mapping[str, Any]) -> TypeGuard[Mapping[str, Any]]:
    """Whether this names objectives; a mapping with one entry is a step rule that lacks its ``name``."""
    if not isinstance(spec, Mapping) or "name" in spec or len(spec) < 2:
        return False
    return all(isinstance(v, (StepRule, str, Mapping)) for v in spec.values())


def add(parts: Iterable[Gradients]) -> Gradients:
    """Sum of tensors by parameter; the tensors of a single part are returned as they are."""
    total: Gradients = {}
    for part in parts:
        for p, value in part.items():
            total[p] = total[p] + value if p in total else value
    return total


@torch.no_grad()
def average(ranks: Ranks, parts: Mapping[str, Gradients]) -> dict[str, Gradients]:
    """Mean gradients; every rank has gradients for the same parameters."""
    names = [f"{name}/{i}" for name, part in parts.items() for i, p in enumerate(part)]
    ranks.require_equal_names(names, "parameters with a gradient")
    mean = iter(ranks.mean([g for part in parts.values() for g in part.values()]))
    return {name: {p: next(mean) for p in part} for name, part in parts.items()}


def _take(parameters: Iterable[nn.Parameter]) -> Gradients:
    found = {}
    for p in parameters:
        if p.grad is not None:
            found[p], p.grad = _dense(p.grad), None
    return found


def _dense(gradient: Tensor) -> Tensor:
    detached = gradient.detach()
    return detached.to_dense() if detached.layout is not torch.strided else detached
