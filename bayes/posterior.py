"""The posterior: one object for every family."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, Normal, normal_from_state, normal_to_state
from natgrad_apps.bayes.distributions.products import trace_of_product
from natgrad_apps.errors import ConfigError

K = TypeVar("K", bound=Hashable)
Values = Mapping[str, Tensor]
"""A tensor for each parameter, by name and in its shape."""


class PrecisionOf(Protocol):
    """A prior: isotropic normal distributions with mean zero."""

    def of(self, parameter: str) -> Tensor:
        """Precision of a parameter."""


@dataclass(frozen=True)
class Part:
    """Parameters that are jointly normal, independent of those of other parts.

    Attributes:
        parameters: Their names.
        normal: Distribution of their deviation from the mean.
        pack: Tensors in the shapes of the parameters as one tensor in the shape of the distribution.
        unpack: Inverse of `pack`.
    """

    parameters: tuple[str, ...]
    normal: Normal
    pack: Callable[[Sequence[Tensor]], Tensor]
    unpack: Callable[[Tensor], Sequence[Tensor]]

    def gather(self, values: Values) -> Tensor:
        """Packed values of these parameters."""
        return self.pack([values[name] for name in self.parameters])

    def scatter(self, packed: Tensor) -> dict[str, Tensor]:
        """Values by parameter."""
        return dict(zip(self.parameters, self.unpack(packed), strict=True))


class Posterior:
    """``q(w) = prod_parts N(mean, P^-1)`` over the trainable parameters of a model.

    During training it follows the model: `mean` are the model's parameters, and the method replaces the distributions of the parts.

    Args:
        mean: Returns the mean by parameter.
        parts: Jointly normal groups, by name.

    Attributes:
        parts: As given.
    """

    def __init__(self, mean: Callable[[], Values], parts: Mapping[str, Part]) -> None:
        self._mean = mean
        self.parts: dict[str, Part] = dict(parts)

    @property
    def mean(self) -> Values:
        """The mean by parameter."""
        return self._mean()

    def replace(self, normals: Mapping[str, Normal]) -> None:
        """Change the distributions of some parts."""
        for name, normal in normals.items():
            self.parts[name] = replace(self.parts[name], normal=normal)

    @torch.no_grad()
    def noise(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A draw of the deviation from the mean; its negative is the antithetic draw.

        Args:
            generator: The only source of randomness if given; else the global generator.
        """
        drawn: dict[str, Tensor] = {}
        for part in self.parts.values():
            drawn.update(part.scatter(part.normal.draw(generator)))
        return drawn

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A draw of all parameters.

        Args:
            generator: As in `noise`.
        """
        mean = self.mean
        return {name: mean[name] + value for name, value in self.noise(generator).items()}

    @torch.no_grad()
    def antithetic(self, generator: torch.Generator | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Two draws that mirror each other at the mean: each has the distribution, and odd moments of the pair cancel.

        Args:
            generator: As in `noise`.
        """
        mean, drawn = self.mean, self.noise(generator)
        return {n: mean[n] + v for n, v in drawn.items()}, {n: mean[n] - v for n, v in drawn.items()}

    @torch.no_grad()
    def log_prob(self, values: Values) -> Tensor:
        """``log q(values)`` in nats, 0-d."""
        mean = self.mean
        deviation = {name: value - mean[name] for name, value in values.items()}
        return _total(part.normal.log_prob(part.gather(deviation)) for part in self.parts.values())

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """In nats, 0-d."""
        return _total(part.normal.entropy() for part in self.parts.values())

    @torch.no_grad()
    def variances(self) -> dict[str, Tensor]:
        """Marginal variances by parameter."""
        result: dict[str, Tensor] = {}
        for part in self.parts.values():
            result.update(part.scatter(part.normal.variances()))
        return result

    @torch.no_grad()
    def second_moments(self, groups: Mapping[K, Sequence[str]]) -> dict[K, Tensor]:
        """``E_q |w|^2 = |mu|^2 + tr Sigma`` of groups of parameters; 0-d, in float64 where the device has it.

        Args:
            groups: Names of the parameters of each group; every parameter is in one of them.
        """
        mean = self.mean
        owner = {name: key for key, names in groups.items() for name in names}
        values = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in mean.values()]
        terms: dict[K, list[Tensor]] = {key: [] for key in groups}
        for name, norm in zip(mean, torch._foreach_norm(values), strict=True):
            terms[owner[name]].append(_wide(norm).square())
        for part in self.parts.values():
            if len({owner[name] for name in part.parameters}) == 1:
                terms[owner[part.parameters[0]]].append(_wide(part.normal.trace()))
            else:
                for name, variance in part.scatter(part.normal.variances()).items():
                    terms[owner[name]].append(_wide(variance.sum(dtype=torch.promote_types(variance.dtype, torch.float32))))
        return {key: torch.stack(found).sum() for key, found in terms.items()}

    def counterpart(self, part: Part) -> Normal:
        """This distribution over the parameters of a part of another posterior, in the layout of that part.

        Args:
            part: Of a posterior over the same parameters.

        Raises:
            ConfigError: Correlated weights are grouped in another way there.
        """
        for own in self.parts.values():
            if own.parameters == part.parameters and own.normal.shape == part.normal.shape:
                return own.normal
        precisions: dict[str, Tensor] = {}
        for own in self.parts.values():
            if isinstance(own.normal, DiagonalNormal):
                precisions.update(own.scatter(own.normal.precision))
        if not set(part.parameters) <= set(precisions):
            raise ConfigError(f"the two posteriors group the correlated weights {list(part.parameters)} in other ways; use the same method")
        return DiagonalNormal(part.gather(precisions))

    @torch.no_grad()
    def kl(self, prior: PrecisionOf | Posterior) -> Tensor:
        r"""``KL(q || prior)`` in nats, 0-d.

        For ``q = N(mu, P^-1)`` and the prior ``N(0, diag(1/p))``, with ``n_g`` parameters of precision ``p_g``::

            KL = 1/2 [sum_g (p_g E_q |w_g|^2 - n_g - n_g log p_g) + log det P]

        and for another posterior ``N(mu_0, P_0^-1)``, part by part::

            KL = 1/2 [tr(P_0 Sigma) + (mu - mu_0)^T P_0 (mu - mu_0) - n + log det P - log det P_0]

        Args:
            prior: Precisions by parameter; those that are one tensor make one group. Or another posterior.

        Raises:
            ConfigError: See `counterpart` and `natgrad_apps.bayes.distributions.products.trace_of_product`.
        """
        if isinstance(prior, Posterior):
            return self._kl_to(prior)
        groups: dict[int, list[str]] = {}
        precisions: dict[int, Tensor] = {}
        for name in self.mean:
            precision = prior.of(name)
            groups.setdefault(id(precision), []).append(name)
            precisions[id(precision)] = precision
        mean, moments = self.mean, self.second_moments(groups)
        terms = [_wide(part.normal.logdet_precision()) for part in self.parts.values()]
        for key, names in groups.items():
            precision = precisions[key].to(moments[key])
            terms.append(precision * moments[key] - sum(mean[name].numel() for name in names) * (1 + precision.log()))
        return torch.stack(terms).sum() / 2

    def _kl_to(self, other: Posterior) -> Tensor:
        mean, center = self.mean, other.mean
        terms = []
        for part in self.parts.values():
            own, prior = part.normal, other.counterpart(part)
            deviation = part.gather({name: mean[name] - center[name] for name in part.parameters})
            quadratic = (deviation * prior.multiply_precision(deviation)).sum()
            terms += [_wide(trace_of_product(prior, own)) + _wide(quadratic) - own.size]
            terms += [_wide(own.logdet_precision()) - _wide(prior.logdet_precision())]
        return _total(terms) / 2

    @torch.no_grad()
    def multiply_precision(self, values: Values) -> dict[str, Tensor]:
        """``P v`` for values by parameter."""
        result: dict[str, Tensor] = {}
        for part in self.parts.values():
            result.update(part.scatter(part.normal.multiply_precision(part.gather(values))))
        return result

    @torch.no_grad()
    def multiply_covariance(self, values: Values) -> dict[str, Tensor]:
        """``P^-1 v`` for values by parameter."""
        result: dict[str, Tensor] = {}
        for part in self.parts.values():
            result.update(part.scatter(part.normal.multiply_covariance(part.gather(values))))
        return result

    def state_dict(self) -> dict[str, Any]:
        """Mean and distributions: tensors and plain values."""
        parts = {name: {"parameters": list(p.parameters), "normal": normal_to_state(p.normal)} for name, p in self.parts.items()}
        return {"mean": {name: value.detach().clone() for name, value in self.mean.items()}, "parts": parts}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`; the mean is copied into the tensors that hold it.

        Raises:
            ConfigError: It belongs to another model or method.
        """
        mean = self.mean
        own = {name: (list(p.parameters), list(p.normal.shape)) for name, p in self.parts.items()}
        given = {}
        normals = {}
        for name, entry in saved["parts"].items():
            like = own.get(name) and self.parts[name].normal.like
            normals[name] = normal_from_state(entry["normal"], like if isinstance(like, Tensor) else next(iter(mean.values())))
            given[name] = (list(entry["parameters"]), list(normals[name].shape))
        if given != own:
            differing = sorted(name for name in {*own, *given} if own.get(name) != given.get(name))
            raise ConfigError(f"the saved posterior belongs to another model or method: parts {differing} differ")
        for name, value in mean.items():
            value.copy_(saved["mean"][name])
        self.replace(normals)

    def to(self, device: torch.device | str) -> Posterior:
        """A copy on another device that no longer follows the model."""
        mean = {name: value.detach().to(device, copy=True) for name, value in self.mean.items()}
        return Posterior(lambda: mean, {name: replace(part, normal=part.normal.to(device)) for name, part in self.parts.items()})


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack([_wide(term) for term in terms]).sum()


def _wide(value: Tensor) -> Tensor:
    """In float64 where the device has it: differences of large logarithms."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
