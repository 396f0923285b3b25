"""A posterior as the prior of the next training: variational continual learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, normal_from_state, normal_to_state
from natgrad_apps.bayes.distributions.products import dense_precision, precision_diagonal, precision_sum
from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.bayes.prior import WeightPrior
from natgrad_apps.errors import ConfigError

SHARE = 1e-10
"""Share of a prior's mean precision that stands in for it where a method needs a positive damping before `PreviousPosterior.join`."""


class PreviousPosterior(WeightPrior):
    r"""The prior ``N(mu_0, P_0^-1)`` that an earlier training left.

    With the curvature ``F`` of the mean loss, the gradient ``g`` and ``lambda`` the temperature, methods have::

        Sigma^-1 = N/lambda F + P_0          (within the family: see `natgrad_apps.bayes.distributions.products.precision_sum`)
        mu      <- mu - lr (F + lambda/N P_0 + damping)^-1 momentum(g + lambda/N P_0 (mu - mu_0))

    Reference: Nguyen, Li, Bui & Turner, Variational continual learning, ICLR 2018, arXiv 1710.10628, equation 1, with structured families.

    Args:
        posterior: Of the earlier training; copied, so it may go on.
        like: Has the device.

    Attributes:
        base: The copy.
        precision: Empty: there is no precision of a whole layer.

    Raises:
        ConfigError: See the methods: a family that does not go with that of the new posterior.
    """

    share = SHARE
    joins = True

    def __init__(self, posterior: Posterior, like: Tensor) -> None:
        super().__init__()
        self.base = posterior.to(like.device)
        self.base.replace({name: normal_from_state(normal_to_state(p.normal), p.normal.like) for name, p in self.base.parts.items()})
        self._read()

    def _read(self) -> None:
        self._diagonal: dict[str, Tensor] = {}
        self._mean_precision: dict[str, Tensor] = {}
        for part in self.base.parts.values():
            diagonal = precision_diagonal(part.normal)
            mean = diagonal.mean().to(torch.float32 if diagonal.device.type == "mps" else torch.float64)
            self._mean_precision |= dict.fromkeys(part.parameters, mean)
            if isinstance(part.normal, DiagonalNormal):
                self._diagonal.update(part.scatter(diagonal))

    def check(self, names: Sequence[str]) -> None:
        """Raise unless this is a distribution over the parameters of these names.

        Raises:
            ConfigError: It is not.
        """
        own = set(self.base.mean)
        if own != set(names):
            raise ConfigError(
                f"the posterior that is to be the prior is over other parameters: {sorted(own ^ set(names))[:5]} are in one of the two only"
            )

    def of(self, parameter: str) -> Tensor:
        """Precisions of the weights of a parameter, in its shape, if they are independent.

        Raises:
            ConfigError: They are not.
        """
        if parameter not in self._diagonal:
            raise ConfigError(
                f"the prior has correlated weights in {parameter!r}, this method has no place for that; use the method that made the prior"
            )
        return self._diagonal[parameter]

    def common(self, parameters: Sequence[str], owner: str) -> Tensor:
        """Mean precision of the weights of a layer, 0-d: the size of the prior's share in the damping of the core."""
        del owner
        return self._mean_precision[parameters[0]]

    def deviation(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``mu - mu_0`` by parameter."""
        return {name: value - self.base.mean[name] for name, value in mean.items()}

    def matrix(self, parameters: Sequence[str]) -> Tensor | None:
        """``P_0: [n, n]`` over these parameters in one vector; None if the weights are independent.

        Raises:
            ConfigError: They are correlated in another structure.
        """
        if all(name in self._diagonal for name in parameters):
            return None
        for part in self.base.parts.values():
            if part.parameters == tuple(parameters) and len(part.normal.shape) == 1:
                return dense_precision(part.normal)
        raise ConfigError("the prior has separate layers, a full covariance needs one of all weights; use the method that made the prior")

    def add_gradient(self, gradients: Mapping[str, Tensor], mean: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        """``g + scale P_0 (mu - mu_0)`` by parameter."""
        pull = self.base.multiply_precision(self.deviation(mean))
        return {name: torch.add(g, pull[name], alpha=scale) for name, g in gradients.items()}

    def join(self, part: Part) -> Part:
        """A part with the precision of the likelihood, as one with that of the posterior.

        Raises:
            ConfigError: The families do not go together.
        """
        return replace(part, normal=precision_sum(part.normal, self.base.counterpart(part)))

    def divergence(self, posterior: Posterior) -> Tensor:
        """``KL(posterior || self)`` in nats, 0-d."""
        return posterior.kl(self.base)

    def state_dict(self) -> dict[str, Any]:
        """Mean and distributions."""
        return self.base.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It is no posterior over the same weights.
        """
        if "parts" not in saved:
            raise ConfigError("the saved state had an isotropic prior, this has an earlier posterior; build with the same prior")
        self.base.load_state_dict(saved)
        self._read()
