"""The prior: an isotropic normal distribution over each layer, whose precision may be learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.errors import ConfigError, check_fraction, check_positive, unknown_name


@dataclass(frozen=True)
class Prior:
    r"""``w ~ N(0, I / precision)``, each layer with a precision of its own if it is learned.

    Learning maximizes the ELBO over the precision ``p`` of a layer of ``n`` weights. Only ``-KL`` depends on it::

        -KL = 1/2 [n log p - p E_q |w|^2] + const,    d/dp = 0  <=>  1/p = E_q |w|^2 / n = (|mu|^2 + sum variances) / n

    The variance ``1/p`` moves to that optimum by the fraction `rate` after every step, because ``q`` is not converged itself.

    Attributes:
        precision: One number, or numbers by the name of a parameter, or of a module for all parameters in it; the longest name that fits
            counts, and ``""`` fits everything.
        learn: Whether the precisions are learned; `precision` is the first value then.
        rate: Fraction of the way to the optimum in one step, in (0, 1].

    Raises:
        ConfigError: A value is not legal.
    """

    precision: float | Mapping[str, float] = 1.0
    learn: bool = False
    rate: float = 0.01

    def __post_init__(self) -> None:
        values = self.precision if isinstance(self.precision, Mapping) else {"": self.precision}
        for name, value in values.items():
            check_positive(f"prior precision{f' of {name!r}' if name else ''}", value)
        check_fraction("rate", self.rate, below_one=False)

    def of(self, parameter: str) -> float:
        """First precision of a parameter.

        Raises:
            ConfigError: No name fits.
        """
        if not isinstance(self.precision, Mapping):
            return self.precision
        fitting = [name for name in self.precision if name in ("", parameter) or parameter.startswith(f"{name}.")]
        if not fitting:
            raise ConfigError(f"no prior precision for parameter {parameter!r}; given: {sorted(self.precision)}; add '' for all others")
        return self.precision[max(fitting, key=len)]


class WeightPrior(ABC):
    """What methods ask of a prior.

    Attributes:
        precision: Precisions by layer, where a layer has one.
        groups: Names of the parameters that share one, by the same names.
    """

    share: ClassVar[float] = 1.0
    """Share of `common` that a method itself puts into the posterior of a layer; `join` brings the rest."""
    joins: ClassVar[bool] = False
    """Whether `join` does anything."""

    def __init__(self) -> None:
        self.precision: dict[str, Tensor] = {}
        self.groups: dict[str, tuple[str, ...]] = {}

    @property
    def learns(self) -> bool:
        """Whether `learn` does anything."""
        return False

    def learn(self, moments: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Learn from ``E_q |w|^2`` of each of `groups` and the number of entries of each parameter."""
        del moments, sizes

    @abstractmethod
    def of(self, parameter: str) -> Tensor:
        """Precision of a parameter's independent weights: 0-d, or in its shape."""

    @abstractmethod
    def common(self, parameters: Sequence[str], owner: str) -> Tensor:
        """One precision for some parameters, 0-d."""

    def matrix(self, parameters: Sequence[str]) -> Tensor | None:
        """Precision matrix over these parameters in one vector; None if all weights are independent."""
        del parameters
        return None

    def deviation(self, mean: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Deviation of values from the mean of the prior, by parameter."""
        return mean

    @abstractmethod
    def add_gradient(self, gradients: Mapping[str, Tensor], mean: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        """``g + scale P_0 (mu - mu_0)`` by parameter."""

    def join(self, part: Part) -> Part:
        """A part with the posterior's precision, from one with that of the likelihood and of `share`."""
        return part

    @abstractmethod
    def divergence(self, posterior: Posterior) -> Tensor:
        """``KL(posterior || self)`` in nats, 0-d."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What may change."""

    @abstractmethod
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""


class LayerPrior(WeightPrior):
    """The prior of a model as it is now.

    Args:
        spec: First values.
        layers: Names of the parameters of each layer.
        like: Has the device.

    Attributes:
        spec: What it was built from.
        precision: By name of the layer, 0-d float64 tensors; by name of the parameter where the first values of a layer differ.
        groups: Names of the parameters that share a precision, by the same names.

    Raises:
        ConfigError: A parameter has no precision, or a name fits no parameter.
    """

    def __init__(self, spec: Prior, layers: Mapping[str, Sequence[str]], like: Tensor) -> None:
        super().__init__()
        self.spec = spec
        parameters = [p for members in layers.values() for p in members]
        if isinstance(spec.precision, Mapping):
            for name in spec.precision:
                if not any(name in ("", p) or p.startswith(f"{name}.") for p in parameters):
                    raise unknown_name("parameter or module in the prior's precision", name, parameters)
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        for layer, members in layers.items():
            whole = len({spec.of(p) for p in members}) == 1
            for name, group in {layer: tuple(members)}.items() if whole else {p: (p,) for p in members}.items():
                self.groups[name] = group
                self.precision[name] = torch.tensor(spec.of(group[0]), dtype=wide, device=like.device)
        if not spec.learn:
            self.precision = _one_for_each_value(self.precision)
        self._group = {p: name for name, members in self.groups.items() for p in members}

    def of(self, parameter: str) -> Tensor:
        """Precision of a parameter, 0-d."""
        return self.precision[self._group[parameter]]

    def common(self, parameters: Sequence[str], owner: str) -> Tensor:
        """The one precision of some parameters.

        Raises:
            ConfigError: They have several.
        """
        groups = {self._group[p] for p in parameters}
        if len(groups) > 1:
            raise ConfigError(
                f"the posterior of layer {owner!r} is a Kronecker product, which needs one prior precision for {', '.join(parameters)}; "
                "give them one, or use a diagonal, low-rank or full posterior"
            )
        return self.precision[groups.pop()]

    def add_gradient(self, gradients: Mapping[str, Tensor], mean: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        """``g + scale p mu`` by parameter."""
        return {name: torch.addcmul(g, mean[name], (self.of(name) * scale).to(g.dtype)) for name, g in gradients.items()}

    def divergence(self, posterior: Posterior) -> Tensor:
        """See `Posterior.kl`."""
        return posterior.kl(self)

    @property
    def learns(self) -> bool:
        """Whether the precisions are learned."""
        return self.spec.learn

    @torch.no_grad()
    def learn(self, moments: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Move every precision towards its optimum, see `Prior`; does nothing if they are fixed.

        Args:
            moments: ``E_q |w|^2`` of each of `groups`.
            sizes: Number of entries of each parameter.
        """
        if not self.spec.learn:
            return
        for name, members in self.groups.items():
            old = self.precision[name]
            best = moments[name].to(old) / sum(sizes[p] for p in members)
            self.precision[name] = old.reciprocal().lerp(best, self.spec.rate).reciprocal()

    def state_dict(self) -> dict[str, Any]:
        """Precisions by layer."""
        return {name: value.clone() for name, value in self.precision.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It belongs to another model.
        """
        if set(saved) != set(self.precision):
            raise ConfigError(f"the saved prior is of layers {sorted(saved)}, this model has {sorted(self.precision)}")
        values = {name: saved[name].to(value, copy=True) for name, value in self.precision.items()}
        self.precision = values if self.spec.learn else _one_for_each_value(values)


def _one_for_each_value(precisions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Equal values as one tensor: what is summed over the weights of a precision is then one sum."""
    kept: dict[float, Tensor] = {}
    return {name: kept.setdefault(float(value), value) for name, value in precisions.items()}


def layers_of(parameters: Mapping[str, Sequence[nn.Parameter]], names: Mapping[nn.Parameter, str]) -> dict[str, list[str]]:
    """Names of the parameters of each layer."""
    return {layer: [names[p] for p in members] for layer, members in parameters.items()}
