"""Full-batch training of a node classifier, one epoch a step."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.averaging import WeightAverage
from natgrad_apps.graphs.config import OptimizerConfig, TrainConfig
from natgrad_apps.graphs.counting import Counter
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.layers import factorization
from natgrad_apps.graphs.measures import Measures, measure
from natgrad_apps.graphs.models import build_model, check_logits
from natgrad_apps.graphs.splits import Split
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.statistics.fisher import Fisher


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    Attributes:
        epoch: Its number, from 1.
        loss: Training loss before the step.
        train: Measures of the training nodes after the step.
        val: Of the validation nodes; None without any.
        test: Of the test nodes; None without any.
    """

    epoch: int
    loss: float
    train: Measures
    val: Measures | None
    test: Measures | None

    def numbers(self) -> dict[str, float]:
        """For ``metrics.csv``."""
        found = {"loss": self.loss}
        for name, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if part is not None:
                found |= {f"{name}_{key}": float(value) for key, value in part.to_dict().items() if key in {"accuracy", "nll", "ece"}}
        return found


@dataclass
class Progress:
    """How far a run is; it goes into checkpoints.

    Attributes:
        epoch: Epochs done.
        best_epoch: The epoch that was chosen so far.
        best_score: Its score, larger is better.
        waited: Epochs since the lowest validation loss.
        lowest: The lowest validation loss.
        first_hit: First epoch whose validation accuracy reached the target.
        seconds: Training time: forward, backward and step, without evaluation.
        statistics_seconds: The part of it that gathering Fisher statistics took.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")
    waited: int = 0
    lowest: float = float("inf")
    first_hit: int | None = None
    seconds: float = 0.0
    statistics_seconds: float = 0.0


@dataclass
class Best:
    """The epoch that is reported."""

    model: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """One network on one graph.

    Args:
        config: The run; its seed has been set by `seed_all`.
        data: The graph.
        split: Its split.
        device: Where to train.

    Raises:
        ConfigError: The model cannot be built, or does not give logits.
    """

    def __init__(self, config: TrainConfig, data: GraphData, split: Split, device: torch.device) -> None:
        self.config, self.data, self.split, self.device = config, data.to(device), split, device
        self.model = build_model(config.model.options(), data.x.shape[1], data.classes).to(device)
        self.average = WeightAverage(self.model, config.average)
        self._check_model()
        self.optimizer = build_optimizer(self.model, config.optimizer, config.seed)
        self.progress, self.best = Progress(), Best()
        train = split.train.to(device)
        self._counter = Counter(self.data.y, data.classes, train, config.pseudo_labels.options(), config.epochs)
        self._train, self._val, self._test = train, split.val.to(device), split.test.to(device)

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        progress, config = self.progress, self.config
        return progress.epoch >= config.epochs or (config.patience > 0 and progress.waited >= config.patience)

    def run_epoch(self) -> Epoch:
        """One step, then an evaluation."""
        start = time.perf_counter()
        loss = self.step()
        value = float(loss)
        self.progress.seconds += time.perf_counter() - start
        self.progress.epoch += 1
        train, val, test = self.evaluate()
        result = Epoch(self.progress.epoch, value, train, val, test)
        self._judge(result)
        return result

    def step(self) -> Tensor:
        """Forward, backward, update; the loss before it, a 0-d tensor."""
        config, model, x, edges = self.config, self.model, self.data.x, self.data.edge_index
        pseudo = config.pseudo_labels
        own_predictions = self.predict() if pseudo.enabled and pseudo.predict == "eval" else None
        model.train()
        self.optimizer.zero_grad()
        if isinstance(self.optimizer, NaturalGradient):
            with self.optimizer.capture():
                logits = model(x, edges)
                counted = self._counter.count(self.progress.epoch + 1, logits.detach() if own_predictions is None else own_predictions)
                start = time.perf_counter()
                self.optimizer.observe(Categorical(logits).weighted(*self._counter.fisher(config.optimizer.fisher_nodes, counted)))
                self.progress.statistics_seconds += time.perf_counter() - start
        else:
            logits = model(x, edges)
            counted = self._counter.count(self.progress.epoch + 1, logits.detach() if own_predictions is None else own_predictions)
        loss = counted.loss(logits)
        loss.backward()
        self.optimizer.step()
        self.average.update()
        return loss.detach()

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Logits ``[N, C]`` without dropout, with the averaged weights if there are any."""
        self.model.eval()
        with self.average.shown():
            return check_logits(self.model(self.data.x, self.data.edge_index), self.data.nodes, self.data.classes)

    def evaluate(self) -> tuple[Measures, Measures | None, Measures | None]:
        """Measures of the training, validation and test nodes."""
        logits, y = self.predict(), self.data.y
        val, test = (measure(logits[part], y[part]) if len(part) else None for part in (self._val, self._test))
        return measure(logits[self._train], y[self._train]), val, test

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
            score = -epoch.val.nll if select == "loss" else epoch.val.accuracy
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch.epoch
            with self.average.shown():
                self.best.model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if epoch.val is None:
            return
        if progress.first_hit is None and epoch.val.accuracy >= self.config.target:
            progress.first_hit = epoch.epoch
        progress.waited = 0 if epoch.val.nll < progress.lowest else progress.waited + 1
        progress.lowest = min(progress.lowest, epoch.val.nll)

    def _check_model(self) -> None:
        state = torch.get_rng_state()
        try:
            self.predict()
        except ConfigError:
            raise
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"model {self.config.model.name!r} fails on {self.data.name} as model(x: {list(self.data.x.shape)}, edge_index): {error}"
            ) from error
        torch.set_rng_state(state)


def seed_all(seed: int) -> None:
    """Seed torch's generators, which weights and dropout are drawn from."""
    torch.manual_seed(seed)


def build_optimizer(model: nn.Module, config: OptimizerConfig, seed: int) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        model: What is trained.
        config: How.
        seed: Of the sampled labels.
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
            fisher=Fisher(fisher.kind, fisher.samples, fisher.sharing, fisher.subsample, seed if fisher.seed == 0 else fisher.seed),
            strict=config.strict,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
