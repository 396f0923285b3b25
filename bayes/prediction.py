"""Predictions of a fitted posterior: the mean, and how uncertain it is for which reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from natgrad_apps.bayes.linearized import linearize, sample_linearized
from natgrad_apps.bayes.tasks import RegressionTask
from natgrad_apps.bayes.variational import Variational
from natgrad_apps.bayes.weights import evaluation_mode
from natgrad_apps.errors import ConfigError, ShapeError, unknown_name

Kind = Literal["sampled", "linearized"]
BISECTIONS = 60
"""Halvings of an interval of a few deviations: the float64 result is exact to rounding."""


@dataclass(frozen=True)
class RegressionPrediction:
    """A mixture of ``S`` normal distributions of equal weight for each input.

    Attributes:
        samples: Their means ``f_s(x_n)``, ``[S, N]``, in the unit of the target.
        noise_std: Their common deviation, 0-d, same unit.
    """

    samples: Tensor
    noise_std: Tensor

    @property
    def mixture(self) -> tuple[Tensor, Tensor]:
        """Means ``[S, N]`` and deviations (0-d or ``[N]``) of the normal distributions that make up the prediction of a target."""
        return self.samples, self.noise_std

    @property
    def mean(self) -> Tensor:
        """``[N]``."""
        return self.samples.mean(0)

    @property
    def aleatoric(self) -> Tensor:
        """Variance of the noise, ``[N]``: more data would not lower it."""
        return self.noise_std.square().expand(self.samples.shape[1:])

    @property
    def epistemic(self) -> Tensor:
        """Variance over weights of ``f``, ``[N]``, with the divisor S: that of the mixture."""
        return self.samples.var(0, correction=0)

    @property
    def std(self) -> Tensor:
        """Deviation of the mixture, ``[N]``: the root of both variances' sum (law of total variance)."""
        return (self.aleatoric + self.epistemic).sqrt()

    def quantile(self, level: float) -> Tensor:
        """The value below which the target lies with this probability, ``[N]``, by bisection of the mixture's distribution function.

        Args:
            level: In (0, 1).

        Raises:
            ConfigError: It is not.
        """
        if not 0 < level < 1:
            raise ConfigError(f"a quantile's level must be in (0, 1), got {level!r}")
        mu, sigma = (part.double() for part in self.mixture)
        # The mixture's quantile lies between the smallest and the largest of its parts' quantiles.
        shift = sigma * math.sqrt(2) * torch.erfinv(torch.tensor(2 * level - 1, dtype=torch.float64, device=mu.device))
        low, high = mu.amin(0) + shift, mu.amax(0) + shift
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle - mu) / sigma).mean(0) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def rescaled(self, mean: float, scale: float) -> RegressionPrediction:
        """In the units of a target that was standardized as ``(y - mean) / scale``."""
        return replace(self, samples=self.samples.double() * scale + mean, noise_std=self.noise_std.double() * scale)


@dataclass(frozen=True)
class LinearizedRegression(RegressionPrediction):
    """One normal distribution for each input, in closed form: the linearized model is exactly Gaussian.

    Attributes:
        samples: Draws of the linearized function ``[S, N]``, which only the joint likelihood of several inputs needs.
        center: Mean ``[N]``, in the unit of the target.
        variance: Variance of the function ``[N]``, same unit squared.
    """

    center: Tensor
    variance: Tensor

    @property
    def mixture(self) -> tuple[Tensor, Tensor]:
        """The normal distribution, ``[1, N]`` and ``[N]``."""
        return self.center.unsqueeze(0), self.std

    @property
    def mean(self) -> Tensor:
        """``[N]``."""
        return self.center

    @property
    def epistemic(self) -> Tensor:
        """Variance over weights of ``f``, ``[N]``."""
        return self.variance

    def rescaled(self, mean: float, scale: float) -> LinearizedRegression:
        """See `RegressionPrediction`."""
        moved = super().rescaled(mean, scale)
        center, variance = self.center * scale + mean, self.variance * scale**2
        return replace(self, samples=moved.samples, noise_std=moved.noise_std, center=center, variance=variance)


@dataclass(frozen=True)
class ClassificationPrediction:
    """A mixture of ``S`` categorical distributions of equal weight for each input.

    Attributes:
        samples: Probabilities ``[S, N, C]``.
    """

    samples: Tensor

    @property
    def mean(self) -> Tensor:
        """Probabilities of the mixture, ``[N, C]``."""
        return self.samples.mean(0)

    @property
    def entropy(self) -> Tensor:
        """Of the mixture, ``[N]``, in nats: the whole uncertainty."""
        return _entropy(self.mean)

    @property
    def aleatoric(self) -> Tensor:
        """Mean entropy of the parts, ``[N]``, in nats: what is left when the weights are known."""
        return _entropy(self.samples).mean(0)

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of class and weights, ``[N]``, in nats: ``entropy - aleatoric``, at least 0."""
        return (self.entropy - self.aleatoric).clamp_min(0)


Prediction = RegressionPrediction | ClassificationPrediction


@torch.no_grad()
def predict(
    vi: Variational,
    x: Any,
    num_samples: int = 100,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
    kind: Kind = "sampled",
) -> Prediction:
    """Predictions with weights drawn from the posterior; each draw sees every input, so the joint likelihood of a data set is right.

    The model is in evaluation mode meanwhile, and as before afterwards.

    Args:
        vi: A fitted posterior.
        x: Inputs ``[N, ...]``, or a tuple of such arguments.
        num_samples: ``S``, number of weight samples.
        generator: The only source of randomness if given; else that of ``vi``, which goes on from here.
        batch_size: Rows in one forward pass.
        kind: ``"sampled"``: the model at the drawn weights. ``"linearized"``: the model linearized at the posterior mean (see
            `natgrad_apps.bayes.linearized`); regression is then Gaussian in closed form, and probabilities of classes are means over
            draws of its logits (Immer et al. 2021, equation 9).

    Raises:
        ConfigError: A count is not positive, or there is no row.
        ShapeError: A regression model has more than one output.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value!r}")
    inputs: tuple[Tensor, ...] = x if isinstance(x, tuple) else (x,)
    count = len(inputs[0])
    if count == 0:
        raise ConfigError("there is no row to predict")
    if kind not in ("sampled", "linearized"):
        raise unknown_name("kind of prediction", str(kind), ("sampled", "linearized"))
    if kind == "linearized":
        outputs = sample_linearized(vi, inputs, num_samples, generator, batch_size).double()
    else:
        drawn = []
        with evaluation_mode(vi.model):
            for _ in range(num_samples):
                with vi.sample_weights(generator) as model:
                    drawn.append(torch.cat([model(*(t[i : i + batch_size] for t in inputs)) for i in range(0, count, batch_size)]))
        outputs = torch.stack(drawn).double()
    if isinstance(vi.task, RegressionTask):
        if outputs.shape[2:].numel() != 1:
            raise ShapeError(f"predictions of one target are implemented; the model's outputs have the shape {tuple(outputs.shape[1:])}")
        samples, noise_std = outputs.reshape(num_samples, count), vi.task.noise_std.double()
        if kind == "linearized":
            closed = linearize(vi, inputs, batch_size)
            return LinearizedRegression(samples, noise_std, closed.mean[:, 0], closed.covariance[:, 0, 0])
        return RegressionPrediction(samples, noise_std)
    if outputs.dim() == 2 or outputs.shape[-1] == 1:  # one logit for two classes
        logit = outputs.reshape(num_samples, count)
        return ClassificationPrediction(torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)], -1))
    return ClassificationPrediction(outputs.softmax(-1))


def _entropy(p: Tensor) -> Tensor:
    found: Tensor = -torch.special.xlogy(p, p).sum(-1)
    return found
