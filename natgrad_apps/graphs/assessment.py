"""All fits of the verb ``uncertainty``, one epoch at a time: each point of the grid, then the chosen one without a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes import NoisyKFAC
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.calibration import Calibrated, calibrate
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.models import build_model
from natgrad_apps.graphs.posterior_config import UncertaintyConfig
from natgrad_apps.graphs.splits import Split, without_class
from natgrad_apps.graphs.trainer import seed_all
from natgrad_apps.graphs.uncertainty import GraphPosterior, PosteriorOptions
from natgrad_apps.steps.kl_clip import KLClip


@dataclass(frozen=True)
class Fitted:
    """Predictions of one posterior for every node, float64, on the CPU.

    Attributes:
        mean_log_p: Log-probabilities with the mean weights, ``[N, C]``.
        log_p: Those of the mixture over weight samples, ``[N, C]``.
        aleatoric: Mean entropy of the samples, ``[N]``, in nats.
        epistemic: Mutual information of class and weights, ``[N]``, in nats; both sum to the entropy of the mixture.
    """

    mean_log_p: Tensor
    log_p: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def entropy(self) -> Tensor:
        """Of the mixture, ``[N]``, in nats."""
        return self.aleatoric + self.epistemic


class Assessment:
    """The fits of one run.

    Args:
        config: The run.
        data: The graph, its largest component where the split asks for it.
        split: Its split.
        device: Where networks live.

    Attributes:
        fitted: Predictions of the fits that are done.
        epoch: Epochs of the current fit.

    Raises:
        ConfigError: The class to leave out does not exist, or there are no validation nodes for a choice.
    """

    def __init__(self, config: UncertaintyConfig, data: GraphData, split: Split, device: torch.device) -> None:
        self.config, self.data, self.split, self.device = config, data, split, device
        self.grid = config.posterior.grid()
        if len(self.grid) > 1 and len(split.val) < 2:
            raise ConfigError(
                f"{len(self.grid)} pairs of temperature and prior precision need validation nodes to choose one; give one pair"
            )
        if config.left_out is not None and config.left_out >= data.classes:
            raise ConfigError(f"left_out must be a class of {data.name}, 0 to {data.classes - 1}, got {config.left_out}")
        if config.left_out is not None:
            without_class(data, split, config.left_out)  # refused now, not after the other fits
        self.fitted: list[Fitted] = []
        self.epoch = 0
        self._current = self._start()

    @property
    def fits(self) -> int:
        """How many fits there are in all."""
        return len(self.grid) + (self.config.left_out is not None)

    @property
    def epochs(self) -> int:
        """Epochs done, of all fits."""
        return len(self.fitted) * self.config.posterior.epochs + self.epoch

    @property
    def total(self) -> int:
        """Epochs of all fits."""
        return self.fits * self.config.posterior.epochs

    @property
    def done(self) -> bool:
        """Whether every fit has ended."""
        return len(self.fitted) == self.fits

    def run_epoch(self) -> float:
        """One epoch of the current fit; returns its objective, in nats of all labelled nodes."""
        objective = self._current.step()
        self.epoch += 1
        if self.epoch == self.config.posterior.epochs:
            prediction = self._current.predict(torch.Generator(device=self.device).manual_seed(self.config.seed))
            mean = self._current.predict_mean()
            parts = (mean, prediction.mean.log(), prediction.aleatoric, prediction.epistemic)
            self.fitted.append(Fitted(*(part.cpu() for part in parts)))
            self.epoch = 0
            if not self.done:
                self._current = self._start()
        return objective

    def calibrated(self, log_p: Tensor) -> Calibrated | None:
        """Scaled probabilities and conformal sets; None without validation nodes."""
        if len(self.split.val) < 2:
            return None
        return calibrate(log_p, self.data.y, self.split.val, self.config.miscoverage)

    def choose(self) -> tuple[int, list[float]]:
        """Index of the grid's point with the lowest `Calibrated.selection_nll`, and that number of every point (nan without any)."""
        found = [self.calibrated(one.log_p) for one in self.fitted[: len(self.grid)]]
        scores = [float("nan") if one is None else one.selection_nll for one in found]
        return (min(range(len(scores)), key=scores.__getitem__) if len(scores) > 1 else 0), scores

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs: tensors and plain values."""
        state: dict[str, Any] = {
            "fitted": [vars(one) for one in self.fitted],
            "epoch": self.epoch,
            "random": torch.get_rng_state(),
        }
        if not self.done:
            state["posterior"] = self._current.variational.state_dict()
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, the global generators included."""
        self.fitted = [Fitted(**one) for one in state["fitted"]]
        self.epoch = state["epoch"]
        if not self.done:
            self._current = self._start()
            self._current.variational.load_state_dict(state["posterior"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _start(self) -> GraphPosterior:
        """The fit that is next; each begins at the same weights, so that fits differ by what was asked only."""
        index, config = len(self.fitted), self.config
        data, train = self.data, self.split.train
        if index < len(self.grid):
            temperature, precision = self.grid[index]
        else:
            assert config.left_out is not None  # `fits` counts one more only then
            temperature, precision = self.grid[self.choose()[0]]
            data, smaller, _ = without_class(data, self.split, config.left_out)
            train = smaller.train
        seed_all(config.seed)
        net = build_model(config.model.options(), data.x.shape[1], data.classes).to(self.device)
        p = config.posterior
        method = NoisyKFAC(
            lr=p.lr, decay=p.decay, momentum=p.momentum, damping=p.damping, inverse_period=p.inverse_period, step=KLClip(p.kl_clip)
        )
        options = PosteriorOptions(method, temperature, precision, p.epochs, p.num_samples)
        return GraphPosterior(net, data.to(self.device), train.to(self.device), options, seed=config.seed)
