"""What the model's outputs mean: regression with Gaussian noise, or classification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, ShapeError, check_fraction, check_positive
from natgrad_apps.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood


@dataclass(frozen=True)
class Regression:
    r"""``y ~ N(f(x), 1 / noise_precision)``, one precision for all outputs.

    Learning maximizes the ELBO over the precision ``b``. With ``e`` the mean over data and outputs of ``E_q (y - f(x))^2``::

        E_q log p(y | x) = 1/2 [log b - b e - log 2 pi] for each data value,    d/db = 0  <=>  1/b = e

    ``e`` is known from the batch and its weight samples only, so the noise variance ``1/b`` is their running average.

    Attributes:
        noise_precision: ``b``, its first value if it is learned.
        learn: Whether it is learned.
        rate: Weight of a batch in the running average, in (0, 1].

    Raises:
        ConfigError: A value is not legal.
    """

    noise_precision: float = 1.0
    learn: bool = False
    rate: float = 0.02

    def __post_init__(self) -> None:
        check_positive("noise_precision", self.noise_precision)
        check_fraction("rate", self.rate, below_one=False)

    def start(self, like: Tensor) -> RegressionTask:
        """The task as it is now.

        Args:
            like: Has the device.
        """
        return RegressionTask(self, like)


@dataclass(frozen=True)
class Classification:
    """Classes ``0 .. C-1`` from logits ``[N, C]``, or two classes from one logit ``[N]`` or ``[N, 1]``."""

    def start(self, like: Tensor) -> ClassificationTask:
        """The task; it has no state.

        Args:
            like: Has the device.
        """
        del like
        return ClassificationTask()


class Task(ABC):
    """A task during training."""

    @abstractmethod
    def likelihood(self, outputs: Tensor) -> Likelihood:
        """The distribution of the targets, given the model's outputs; differentiable."""

    @abstractmethod
    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Targets in the shape and type that the likelihood of these outputs asks for.

        Raises:
            ConfigError: A target is not finite, or no class.
            ShapeError: They do not fit the outputs.
        """

    def learn(self, squared_error: Tensor) -> None:
        """Update what is learned from the mean of ``(y - f)^2``, 0-d."""
        del squared_error

    def squared_error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What `learn` takes, of one weight sample; zero where nothing is learned."""
        del targets
        return outputs.new_zeros(())

    def state_dict(self) -> dict[str, Any]:
        """What is learned."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        if saved:
            raise ConfigError(f"the saved task has {sorted(saved)}, {type(self).__name__} has none of it; build the same task")


class RegressionTask(Task):
    """Gaussian regression.

    Args:
        spec: First values.
        like: Has the device.

    Attributes:
        spec: What it was built from.
        noise_precision: As it is now, 0-d.
    """

    def __init__(self, spec: Regression, like: Tensor) -> None:
        self.spec = spec
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.noise_precision = torch.tensor(spec.noise_precision, dtype=wide, device=like.device)

    @property
    def noise_std(self) -> Tensor:
        """``1 / sqrt(noise_precision)``, 0-d, in the units of the targets."""
        return self.noise_precision.rsqrt()

    def likelihood(self, outputs: Tensor) -> Likelihood:
        """Independent normal distributions around the outputs."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        return Gaussian(outputs, scale=self.noise_std.to(outputs.device, wide))

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """In the outputs' shape; ``[N]`` is taken for ``[N, 1]``."""
        y = _column(outputs, y)
        if y.shape != outputs.shape:
            raise ShapeError(f"targets have the shape {tuple(y.shape)}, the model's outputs {tuple(outputs.shape)}; they must be equal")
        if y.device.type == "cpu" and not bool(y.isfinite().all()):
            raise ConfigError("a regression target is NaN or infinite; remove such rows")
        return y.to(torch.promote_types(outputs.dtype, torch.float32))

    @torch.no_grad()
    def squared_error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch and the outputs."""
        return (outputs.to(targets.dtype) - targets).square().mean()

    @torch.no_grad()
    def learn(self, squared_error: Tensor) -> None:
        """The running average of `Regression`, or nothing if the noise is fixed."""
        if self.spec.learn:
            old = self.noise_precision
            tiny = torch.finfo(old.dtype).tiny
            self.noise_precision = old.reciprocal().lerp(squared_error.to(old).clamp_min(tiny), self.spec.rate).reciprocal()

    def state_dict(self) -> dict[str, Any]:
        """The precision."""
        return {"noise_precision": self.noise_precision.clone()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It is another task's.
        """
        if set(saved) != {"noise_precision"}:
            raise ConfigError(f"the saved task has {sorted(saved)}, regression needs ['noise_precision']; build the same task")
        self.noise_precision = saved["noise_precision"].to(self.noise_precision, copy=True)


class ClassificationTask(Task):
    """Categorical logits, or one Bernoulli logit."""

    def likelihood(self, outputs: Tensor) -> Likelihood:
        """`Bernoulli` for one logit, else `Categorical`."""
        return Bernoulli(outputs) if _binary(outputs) else Categorical(outputs)

    def targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Zeros and ones in the outputs' shape for one logit (``[N]`` is taken for ``[N, 1]``), else class indices."""
        if _binary(outputs):
            y = _column(outputs, y)
            if y.shape != outputs.shape:
                raise ShapeError(f"targets have the shape {tuple(y.shape)}, the logits {tuple(outputs.shape)}; they must be equal")
            return y.to(torch.promote_types(outputs.dtype, torch.float32))
        if y.is_floating_point():
            raise ConfigError(f"classes must be integers 0 .. {outputs.shape[-1] - 1}, got dtype {y.dtype}; convert with .long()")
        return y


def _binary(outputs: Tensor) -> bool:
    return outputs.dim() == 1 or outputs.shape[-1] == 1


def _column(outputs: Tensor, y: Tensor) -> Tensor:
    return y.unsqueeze(-1) if y.dim() == outputs.dim() - 1 and outputs.shape[-1] == 1 else y
