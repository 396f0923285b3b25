"""Which weights of a model are Bayesian: those of chosen modules, while the others are points; and weights from elsewhere as the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.bayes.methods.base import Batch, Learner
from natgrad_apps.bayes.weights import buffers_kept
from natgrad_apps.errors import ConfigError, check_positive, unknown_name


@dataclass(frozen=True)
class PointEstimate:
    r"""Weights ``t`` outside the posterior, trained in the same step as the posterior ``q`` of the others.

    They descend ``E_q[nll(w, t)] + temperature (KL(q || prior) + precision |t|^2 / 2)``: maximum a posteriori for them, with the
    expectation over the same samples of the Bayesian weights as the posterior's own step. The penalty is no part of `StepInfo.nelbo`,
    which bounds ``-log p(y | t)``.

    Cost: one more forward pass, and a backward pass through the whole model, for each sample.

    Attributes:
        lr: Of Adam; it follows the method's learning rate, so that a schedule of `Variational.set_lr` holds for both.
        precision: Of the normal distribution with mean zero that they are drawn to.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 1e-3
    precision: float = 1.0

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("precision", self.precision, allow_zero=True)


@dataclass(frozen=True)
class Partial:
    """A model of which some modules are Bayesian; give it to `Variational` in place of the model.

    `requires_grad` of all other parameters is switched off when `Variational` is built: they belong to no posterior and no prior.

    Attributes:
        model: The whole model.
        modules: Names of modules (as in ``model.named_modules()``) or of parameters whose weights are Bayesian.
        others: How the others are trained; None keeps them as they are.

    Raises:
        ConfigError: A name fits nothing, nothing is chosen, or the chosen modules have no trainable weight.
    """

    model: nn.Module
    modules: Sequence[str]
    others: PointEstimate | None = None

    def __post_init__(self) -> None:
        if isinstance(self.modules, str) or not self.modules:
            raise ConfigError(f"modules must be a list of names such as ['{_example(self.model)}'], got {self.modules!r}")
        self.chosen()

    def chosen(self) -> dict[str, nn.Parameter]:
        """The Bayesian parameters by name; one that a chosen module shares with another one is Bayesian."""
        modules, parameters = dict(self.model.named_modules()), dict(self.model.named_parameters())
        found: set[nn.Parameter] = set()
        for name in self.modules:
            if name in modules:
                found.update(modules[name].parameters())
            elif name in parameters:
                found.add(parameters[name])
            else:
                raise unknown_name("module or parameter of the model", name, [n for n in (*modules, *parameters) if n])
        chosen = {name: p for name, p in parameters.items() if p in found and p.requires_grad}
        if not chosen:
            raise ConfigError(f"the modules {list(self.modules)} have no trainable weight; choose others, such as {_example(self.model)!r}")
        return chosen

    def points(self) -> dict[str, nn.Parameter]:
        """The trainable parameters that are not Bayesian, by name."""
        chosen = self.chosen()
        return {name: p for name, p in self.model.named_parameters() if name not in chosen and p.requires_grad}


def last_layer(model: nn.Module) -> str:
    """Name of the module with parameters of its own that was registered last; for `Partial`.

    Raises:
        ConfigError: There is none inside the model.
    """
    named = [name for name, module in model.named_modules() if name and next(module.parameters(recurse=False), None) is not None]
    if not named:
        raise ConfigError(f"{type(model).__name__} has no inner module with parameters, so it has no last layer")
    return str(named[-1])


class Points:
    """The weights of a `Partial` model outside the posterior.

    Args:
        partial: Model and choice.
    """

    def __init__(self, partial: Partial) -> None:
        self.live = partial.points()
        self.spec = partial.others if self.live else None
        self._model = partial.model
        self._gradients: dict[str, Tensor] = {}
        for p in self.live.values():
            p.requires_grad_(False)
        if self.spec is not None:
            self._adam = torch.optim.Adam(list(self.live.values()), lr=self.spec.lr)

    def gather(self, learner: Learner, batch: Batch) -> None:
        """Add the gradient of the mean negative log-likelihood at the sample that the model holds.

        Args:
            learner: Runs the model and makes the likelihood.
            batch: The minibatch.
        """
        if self.spec is None:
            return
        for p in self.live.values():
            p.requires_grad_(True)
        try:
            with buffers_kept(self._model):
                likelihood, targets = learner.judge(learner.forward(batch), batch)
                nll = -likelihood.log_prob(targets).mean() * batch.weight
                found = torch.autograd.grad(nll, list(self.live.values()), allow_unused=True)
        finally:
            for p in self.live.values():
                p.requires_grad_(False)
        for name, g in zip(self.live, found, strict=True):
            if g is not None:
                self._gradients[name] = self._gradients[name] + g if name in self._gradients else g

    @property
    def finite(self) -> bool:
        """Whether every gradient is finite."""
        return all(bool(g.isfinite().all()) for g in self._gradients.values())

    @torch.no_grad()
    def update(self, scale: float) -> None:
        """Adam's step with what was gathered.

        Args:
            scale: ``temperature / N``.
        """
        if self.spec is None:
            return
        for name, p in self.live.items():
            p.grad = self._gradients.get(name, torch.zeros_like(p)).add(p, alpha=self.spec.precision * scale)
        self._adam.step()
        self._adam.zero_grad()
        self.discard()

    def discard(self) -> None:
        """Forget what was gathered."""
        self._gradients = {}

    def set_factor(self, factor: float) -> None:
        """The learning rate, as a multiple of the first one."""
        if self.spec is not None:
            self._adam.param_groups[0]["lr"] = self.spec.lr * factor

    def state_dict(self) -> dict[str, Any]:
        """The weights, and Adam's averages if they are trained."""
        saved: dict[str, Any] = {"weights": {name: p.detach().clone() for name, p in self.live.items()}}
        if self.spec is not None:
            saved["adam"] = {k: dict(v) for k, v in self._adam.state_dict()["state"].items()}
        return saved

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It is of another choice of modules.
        """
        if set(saved["weights"]) != set(self.live) or ("adam" in saved) != (self.spec is not None):
            raise ConfigError("the saved state has another choice of Bayesian modules, or trains the others in another way; build the same")
        for name, p in self.live.items():
            p.copy_(saved["weights"][name])
        if self.spec is not None:
            state = {k: {n: t.clone() for n, t in v.items()} for k, v in saved["adam"].items()}
            self._adam.load_state_dict({"state": state, "param_groups": self._adam.state_dict()["param_groups"]})


@torch.no_grad()
def start_from(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take over the weights of a trained network, which become the first mean of the posterior; nothing is changed if they do not fit.

    Args:
        model: Its parameters and buffers are overwritten. Do this before the first step.
        weights: Such as the ``state_dict()`` of the trained network; the same names and shapes.

    Raises:
        ConfigError: A name is missing or unknown, a shape differs, or a value is not finite.
    """
    own = model.state_dict()
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ConfigError("pretrained weights must be a state_dict: names and tensors, as torch.save(net.state_dict(), FILE) writes it")
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not in the model" for name in weights if name not in own]
    for name in own:
        if name in weights and weights[name].shape != own[name].shape:
            problems.append(f"{name} is {list(weights[name].shape)}, the model has {list(own[name].shape)}")
        elif name in weights and not bool(weights[name].isfinite().all()):
            problems.append(f"{name} has values that are not finite")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ConfigError(f"the pretrained weights do not fit the model: {shown}; build the model that they were trained in")
    for name, value in own.items():
        value.copy_(weights[name])


def _example(model: nn.Module) -> str:
    return str(next((name for name, _ in reversed(list(model.named_children()))), "head"))
