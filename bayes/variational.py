"""`Variational`: natural-gradient variational inference of the weights of a model."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.bayes.methods.base import Batch, Method, Outcome, Problem, check_count
from natgrad_apps.bayes.partial import Partial, Points
from natgrad_apps.bayes.posterior import Posterior
from natgrad_apps.bayes.previous import PreviousPosterior
from natgrad_apps.bayes.prior import LayerPrior, Prior, WeightPrior, layers_of
from natgrad_apps.bayes.sampling import Draws, Samples
from natgrad_apps.bayes.tasks import Classification, Regression
from natgrad_apps.bayes.warm_up import WarmUp
from natgrad_apps.bayes.weights import Weights, buffers_kept
from natgrad_apps.errors import ConfigError, NonFiniteWarning, check_positive
from natgrad_apps.layers.discover import discover


@dataclass(frozen=True)
class DataSize:
    """Size of an augmented data set.

    Attributes:
        rows: Number of likelihood terms without augmentation.
        augmentation: How many independent copies of a row the random augmentation is worth; ``N = rows * augmentation`` in every formula.
    """

    rows: int
    augmentation: float = 1.0


@dataclass(frozen=True)
class StepInfo:
    """What a step saw: the posterior before it, on its batch. 0-d tensors, detached, in nats of the whole data set.

    Attributes:
        expected_nll: ``N`` times the mean negative log-likelihood of the batch, averaged over the weight samples.
        kl: ``KL(q || prior)`` of the distribution that was sampled.
        nelbo: ``expected_nll + kl``, the negative ELBO, whatever the temperature is.
        objective: ``expected_nll + temperature * kl`` with the temperature of the step, which decreases it.
        skipped: Whether the step was rejected because something was not finite.
    """

    expected_nll: Tensor
    kl: Tensor
    nelbo: Tensor
    objective: Tensor
    skipped: bool


class Variational:
    """Fits a normal distribution over the weights of a model.

    The model holds the posterior mean between calls. Every `step` draws `num_samples` weights (in antithetic pairs, see `Samples`), makes
    the forward and backward passes there, and updates mean, covariance, prior and noise.

    Normalization layers: gains and shifts are weights like others; with the methods on the core they have a diagonal posterior. Running
    statistics of batch normalization are updated by the forward passes of `step` in training mode, so they average over the posterior, as
    predictions do; `sample_weights` puts every buffer back, so predictions leave no trace.

    Args:
        model: Its trainable parameters become Bayesian, with their values as the first mean; frozen ones stay fixed. Returns one tensor.
            A `Partial` makes the weights of some modules Bayesian and trains or freezes the others.
        method: Such as `NoisyKFAC`.
        task: `Regression` or `Classification`; it computes the loss, so there is no reduction to get wrong.
        num_data: Number of likelihood terms (rows, for one term a row) of the whole training set, or a `DataSize`.
        prior: Of the weights: isotropic by layer, or the posterior of an earlier training (copied), whose family must go with the method.
        temperature: Weight of the KL divergence, 1 is Bayes; or a `WarmUp` to it.
        num_samples: Weight samples a step, or `Samples`.
        seed: Of all randomness in here. The global generators are never touched (but a model's own dropout uses them).

    Attributes:
        task: The task now, with ``noise_std`` for regression.
        prior: The prior now; ``prior.precision`` by layer.
        num_data: ``N``, augmentation included.
        temperature: Of the end, whether warmed up or not.

    Raises:
        ConfigError: A value is not legal, or the method does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module | Partial,
        *,
        method: Method,
        task: Regression | Classification,
        num_data: int | DataSize,
        prior: Prior | Posterior | None = None,
        temperature: float | WarmUp = 1.0,
        num_samples: int | Samples = 1,
        seed: int = 0,
    ) -> None:
        for name, value, kind in (("method", method, Method), ("task", task, (Regression, Classification))):
            if not isinstance(value, kind):
                raise ConfigError(
                    f"{name} must be an object such as {'NoisyKFAC()' if name == 'method' else 'Regression()'}, got {value!r}"
                )
        size = num_data if isinstance(num_data, DataSize) else DataSize(num_data)
        check_count("num_data", size.rows)
        samples = num_samples if isinstance(num_samples, Samples) else Samples(num_samples)
        check_positive("augmentation", size.augmentation)
        self._warm_up = temperature if isinstance(temperature, WarmUp) else WarmUp(end=temperature)
        temperature = self._warm_up.end
        self.method = method
        self._augmentation = size.augmentation
        self.num_data, self.temperature, self.num_samples = size.rows * size.augmentation, temperature, samples.count
        self._points = Points(model) if isinstance(model, Partial) else None
        model = model.model if isinstance(model, Partial) else model
        self.model = model
        self._weights = Weights(model)
        like = next(iter(self._weights.live.values()))
        found = discover(model)
        groups = {layer.spec.name: layer.parameters for layer in found.layers} | {name: (p,) for name, p in found.uncovered}
        self.prior: WeightPrior
        if isinstance(prior, Posterior):
            self.prior = PreviousPosterior(prior, like)
            self.prior.check(list(self._weights.live))
        else:
            self.prior = LayerPrior(prior if prior is not None else Prior(), layers_of(groups, self._weights.names), like)
        self.task = task.start(like)
        first = self._warm_up.at(0)
        self._problem = Problem(model, self._weights, self.task, self.prior, self.num_data, size.rows, first, seed)
        self._learner = method.start(self._problem)
        self._first_lr = self._learner.lr
        self._generator = torch.Generator(device=like.device)
        self._generator.manual_seed(seed)
        self._draws = Draws(samples)

    @property
    def posterior(self) -> Posterior:
        """The variational distribution; one object for the whole training, which follows it."""
        return self._learner.posterior

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return self._learner.steps

    @property
    def lr(self) -> float:
        """Learning rate."""
        return self._learner.lr

    def set_lr(self, lr: float) -> None:
        """Change the learning rate.

        Raises:
            ConfigError: It is negative or not finite.
        """
        self._learner.set_lr(lr)
        if self._points is not None and self._first_lr > 0:
            self._points.set_factor(lr / self._first_lr)

    def set_num_data(self, rows: int) -> None:
        """The data set has grown: `rows` likelihood terms, with the same augmentation; the next step knows it.

        Raises:
            ConfigError: It is no positive integer.
        """
        check_count("num_data", rows)
        self.num_data = rows * self._augmentation
        self._problem.num_data, self._problem.rows = self.num_data, rows

    def step(self, x: Any, y: Tensor, micro_batch: int | None = None) -> StepInfo:
        """One step on a minibatch.

        Args:
            x: Input of the model, or a tuple of its arguments.
            y: Targets: values ``[N]`` or ``[N, D]``, classes ``[N]``.
            micro_batch: Rows that go through the model at a time, to save memory; None for all. Each weight sample sees all of them, so
                the step is that of the whole minibatch (but for running statistics of batch normalization, and for which targets a
                Monte-Carlo Fisher draws).

        Raises:
            ConfigError: The batch is larger than the data set or cannot be cut, or a target is not legal; nothing was changed.
            NumericalError: A factorization failed even in float64 with jitter.
        """
        if self._weights.held:
            raise ConfigError("step() inside sample_weights(): leave the context first, the model must hold the mean")
        device = next(iter(self._weights.live.values())).device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            batch = Batch(x if isinstance(x, tuple) else (x,), y, self.num_samples, autocast)
            if micro_batch is not None:
                check_count("micro_batch", micro_batch)
            return self._step(batch.parts(micro_batch))

    def _step(self, parts: Sequence[Batch]) -> StepInfo:
        temperature = self._problem.temperature = self._warm_up.at(self.steps)
        kl = self.prior.divergence(self.posterior)
        outcomes: list[Outcome] = []
        before, kept = self._generator.get_state(), self._draws.kept
        try:
            for k in range(self.num_samples):
                with self._weights.hold(self._draws.weights(self.posterior, k, self._generator)), torch.enable_grad():
                    found = []
                    for part in parts:
                        found.append(self._learner.gather(part))
                        if self._points is not None:
                            self._points.gather(self._learner, part)
                    self._learner.end_sample()
                    outcomes.append(Outcome.mean(found, parts))
        except BaseException:
            self._discard()
            self._generator.set_state(before)
            self._draws.kept = kept
            raise
        taken = self._take_step()
        if taken:
            self.task.learn(torch.stack([o.squared_error for o in outcomes]).mean())
            if self.prior.learns:
                sizes = {name: p.numel() for name, p in self._weights.live.items()}
                self.prior.learn(self.posterior.second_moments(self.prior.groups), sizes)
        expected = torch.stack([o.nll for o in outcomes]).to(kl.dtype).mean() * self.num_data
        return StepInfo(expected, kl, expected + kl, expected + temperature * kl, not taken)

    def _take_step(self) -> bool:
        points = self._points
        if points is not None and not points.finite:
            text = "step skipped: a gradient of the weights outside the posterior is NaN or infinite"
            warnings.warn(text, NonFiniteWarning, stacklevel=4)
            self._discard()
            return False
        taken = self._learner.update()
        if points is not None:
            points.update(self._problem.scale) if taken else points.discard()
        return taken

    def _discard(self) -> None:
        self._learner.discard()
        if self._points is not None:
            self._points.discard()

    @contextlib.contextmanager
    def sample_weights(self, generator: torch.Generator | None = None) -> Iterator[nn.Module]:
        """The model holds a posterior sample inside, and what it held before outside, whatever happens inside. May be nested.

        Buffers (running statistics) are put back too.

        Args:
            generator: The only source of randomness if given; else the generator of this object, whose state is part of `state_dict`.
        """
        drawn = self.posterior.sample(self._generator if generator is None else generator)
        with buffers_kept(self.model), self._weights.hold(drawn):
            yield self.model

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs but the model's buffers: mean, posterior, averages, counters, generators.

        Raises:
            ConfigError: Called inside `sample_weights`.
        """
        if self._weights.held:
            raise ConfigError("state_dict() inside sample_weights(): leave the context first")
        return {
            "learner": self._learner.state_dict(),
            "prior": self.prior.state_dict(),
            "task": self.task.state_dict(),
            "generator": self._generator.get_state(),
            "draws": self._draws.state_dict(self.posterior),
            "num_data": self.num_data,
            "temperature": self.temperature,
            **({} if self._points is None else {"points": self._points.state_dict()}),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`, the model's parameters included.

        Raises:
            ConfigError: It belongs to another model, method, task or data set.
        """
        if "learner" not in saved:
            raise ConfigError(f"this is no state of Variational: it has {sorted(saved)} and no 'learner'")
        method = type(self._learner).__name__
        if saved["learner"]["method"] != method:
            raise ConfigError(f"the saved state is of {saved['learner']['method']}, this is {method}; build the same method")
        for name, own in (("num_data", self.num_data), ("temperature", self.temperature)):
            if not math.isclose(saved[name], own):
                raise ConfigError(f"the saved state has {name}={saved[name]!r}, this has {own!r}; build with the same")
        if ("points" in saved) != (self._points is not None):
            raise ConfigError("the saved state and this object do not both have weights outside the posterior; give both the same Partial")
        if self._points is not None:
            self._points.load_state_dict(saved["points"])
        self._learner.load_state_dict(saved["learner"])
        self.set_lr(self.lr)
        self.prior.load_state_dict(saved["prior"])
        self.task.load_state_dict(saved["task"])
        self._generator.set_state(saved["generator"].cpu())
        self._draws.load_state_dict(saved.get("draws", {}), self.posterior)
