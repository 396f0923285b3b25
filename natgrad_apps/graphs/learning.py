"""What every trainer of a graph network does, whatever the task: steps over the batches of an epoch, judging epochs, checkpoints."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from natgrad_apps.graphs.averaging import WeightAverage
from natgrad_apps.graphs.config import OptimizerConfig, TrainConfig
from natgrad_apps.graphs.layers import factorization
from natgrad_apps.graphs.records import Best, Contents, Epoch, PartMeasures, Parts, Progress, Terms
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.ranks import Ranks
from natgrad_apps.statistics.fisher import Fisher


class Learner(ABC):
    """A network and its optimizer.

    Args:
        config: The run; its seed has been set by `seed_all`.
        model: The network, on `device`.
        device: Where to train.

    Attributes:
        batches: Steps of an epoch.
        sharing: The rule of the task for shared weights; None for that of the configuration.
        data: What is learned from.
        split: Its parts.
        average: The running average of the weights, which is what is evaluated.
        ranks: The processes that train together; None for one.
    """

    batches: int = 1
    sharing: ClassVar[str | None] = None
    data: Contents
    split: Parts

    def __init__(self, config: TrainConfig, model: nn.Module, device: torch.device) -> None:
        self.config, self.model, self.device = config, model, device
        self.optimizer = build_optimizer(model, config.optimizer, config.seed, self.sharing)
        self.average = WeightAverage(model, config.average)
        self.progress, self.best = Progress(), Best()
        self.ranks: Ranks | None = None

    @abstractmethod
    def terms(self) -> Terms:
        """Forward pass of the batch that `progress` stands at; layers are recorded when statistics are due."""

    @abstractmethod
    def evaluate(self) -> tuple[PartMeasures, PartMeasures | None, PartMeasures | None]:
        """Measures of the training, validation and test parts, with the averaged weights if there are any."""

    @abstractmethod
    def table(self) -> str:
        """Predictions as CSV."""

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        progress, config = self.progress, self.config
        return progress.epoch >= config.epochs or (config.patience > 0 and progress.waited >= config.patience)

    @property
    def steps(self) -> int:
        """Batches done since the beginning."""
        return self.progress.epoch * self.batches + self.progress.batch

    def distribute(self, group: Any = None) -> Ranks:
        """From now on train together with the other processes of a group, each on its part of every batch.

        Args:
            group: A process group of `torch.distributed`; None for the default one.

        Raises:
            ConfigError: There is no process group, or the curvature cannot be averaged over ranks.
        """
        if isinstance(self.optimizer, NaturalGradient):
            self.ranks = self.optimizer.distribute(group)
        else:
            self.ranks = Ranks(self.device, group)
            self.ranks.synchronize(self.model)
        return self.ranks

    def run_epoch(self) -> Epoch:
        """The rest of an epoch, then an evaluation."""
        while (epoch := self.advance()) is None:
            pass
        return epoch

    def advance(self) -> Epoch | None:
        """One step; after the last one of an epoch, an evaluation."""
        progress = self.progress
        start = time.perf_counter()
        loss, count = self._step()
        progress.loss += float(loss) * count
        progress.terms += count
        progress.batch += 1
        progress.seconds += time.perf_counter() - start
        if progress.batch < self.batches:
            return None
        mean, progress.batch, progress.loss, progress.terms = self._mean_loss(), 0, 0.0, 0.0
        progress.epoch += 1
        result = Epoch(progress.epoch, mean, *self.evaluate())
        self._judge(result)
        return result

    def step(self) -> Tensor:
        """Forward, backward, update; the loss before it, a 0-d tensor."""
        return self._step()[0]

    def _step(self) -> tuple[Tensor, int]:
        self.model.train()
        self.optimizer.zero_grad()
        if isinstance(self.optimizer, NaturalGradient):
            with self.optimizer.capture():
                terms = self.terms()
                start = time.perf_counter()
                self.optimizer.observe(terms.likelihood)
                self.progress.statistics_seconds += time.perf_counter() - start
        else:
            terms = self.terms()
        self._scaled(terms).backward()
        if self.ranks is not None and not isinstance(self.optimizer, NaturalGradient):
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            for own, mean in zip(gradients, self.ranks.mean(gradients), strict=True):
                own.copy_(mean)
        self.optimizer.step()
        self.average.update()
        return terms.loss.detach(), terms.count

    def _scaled(self, terms: Terms) -> Tensor:
        """A loss whose mean over ranks is the mean over all their terms, though one may have a term more than another."""
        if self.ranks is None:
            return terms.loss
        [total] = self.ranks.total([torch.tensor(float(terms.count), dtype=torch.float64, device=self.device)])
        return terms.loss * (terms.count * self.ranks.size / float(total))

    def _mean_loss(self) -> float:
        sums = torch.tensor([self.progress.loss, self.progress.terms], dtype=torch.float64)
        if self.ranks is not None:
            [sums] = self.ranks.total([sums.to(self.device)])
        return float(sums[0] / sums[1])

    def load_best(self) -> None:
        """Give the model the weights of the epoch that is reported."""
        if self.best.model:
            self.average.drop()
            self.model.load_state_dict(self.best.model)

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs: tensors and plain values."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best.model,
            "progress": asdict(self.progress),
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, the global generators included."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.best.model, self.progress = state["best"], Progress(**state["progress"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _judge(self, epoch: Epoch) -> None:
        progress, select = self.progress, self.config.select
        if epoch.val is None or select == "last":
            score = float(epoch.epoch)
        else:
            score = -epoch.val.nll if select == "loss" else epoch.val.score
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch.epoch
            with self.average.shown():
                self.best.model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if epoch.val is None:
            return
        if progress.first_hit is None and epoch.val.score >= self.config.target:
            progress.first_hit = epoch.epoch
        progress.waited = 0 if epoch.val.nll < progress.lowest else progress.waited + 1
        progress.lowest = min(progress.lowest, epoch.val.nll)


def build_optimizer(model: nn.Module, config: OptimizerConfig, seed: int, sharing: str | None = None) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        model: What is trained.
        config: How.
        seed: Of the sampled labels.
        sharing: Rule for shared weights; None for that of the configuration.
    """
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if config.name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    fisher = Fisher.of(config.fisher)
    with factorization(config.factorization):
        return NaturalGradient(
            model,
            config.curvature,
            damping=config.damping,
            step=config.step,
            refresh=config.refresh,
            fisher=replace(fisher, sharing=sharing or fisher.sharing, seed=fisher.seed or seed),
            strict=config.strict,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
