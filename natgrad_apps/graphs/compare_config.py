"""The configuration of paired runs of two optimizers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.config import NonNegative, Rate, TrainConfig
from natgrad_apps.runner.hints import Range

TUNE_SEED = 100_000
"""Seeds of the grid begin here, away from those of the runs that are reported."""


@dataclass(frozen=True)
class CompareConfig(TrainConfig):
    """Paired runs of the natural gradient and of Adam.

    Attributes:
        task: nodes, links or graphs: what is classified.
        dataset: karate, Cora, CiteSeer, PubMed, Computers, Photo, CS, Physics, CoraFull, CoraML, CiteSeerFull, DBLP, PubMedFull,
            ogbn-arxiv, ogbn-products (by the package ogb), or table; for task graphs motifs, or tu:NAME for a set of the TU collection.
        split: auto, public, full, complete, random or shchur.
        data: Your own tables, and the sizes of random splits.
        model: The network.
        optimizer: How weights are updated.
        sampling: Mini-batches.
        links: Options of task links.
        graphs: Options of task graphs.
        pseudo_labels: Predicted labels for nodes without one.
        epochs: Epochs of the run, at most.
        patience: Epochs without a better validation loss after which a run ends; 0 never ends it.
        select: Whether the epoch reported is that of the lowest validation loss, the highest validation accuracy (the first such one), or
            the last one.
        average: Weight of the old value in a running average of the weights, which is then what is evaluated and reported; 0 for none.
        target: Validation accuracy whose first epoch is reported.
        checkpoint_every: Epochs between two checkpoints.
        seed: Seed of weights, dropout, sampled labels and random splits.
        device: Where the network lives; auto takes CUDA where there is one.
        threads: CPU threads of torch; null leaves torch's choice.
        seeds: Paired runs of each optimizer; run k has the seed `seed` + k.
        tune_seeds: Runs of each point of the grid, with seeds of their own; 0 takes the first learning rate and optimizer.weight_decay.
        natural_gradient_lr: Learning rates of the natural gradient.
        adam_lr: Learning rates of Adam; as many as for the natural gradient.
        weight_decay: L2 coefficients that both try; empty takes optimizer.weight_decay.
    """

    seeds: Annotated[int, Range(low=2)] = 10
    tune_seeds: NonNegative = 2
    natural_gradient_lr: list[Rate] = field(default_factory=lambda: [0.03, 0.1])
    adam_lr: list[Rate] = field(default_factory=lambda: [0.01, 0.05])
    weight_decay: list[Annotated[float, Range(low=0)]] = field(default_factory=lambda: [5e-4, 2e-3])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.natural_gradient_lr or len(self.natural_gradient_lr) != len(self.adam_lr):
            given = f"{len(self.natural_gradient_lr)} and {len(self.adam_lr)}"
            raise ConfigError(
                f"natural_gradient_lr and adam_lr must be lists of the same length, so that both grids have one size; got {given}"
            )
        if self.seed + self.seeds > TUNE_SEED:
            raise ConfigError(
                f"seed + seeds must be at most {TUNE_SEED}, where the seeds of the grid begin, got {self.seed} + {self.seeds}"
            )
        if self.task != "nodes":
            raise ConfigError(f"compare is for task nodes, got {self.task!r}; run train with each optimizer instead")
        if self.optimizer.name != "natural_gradient":
            raise ConfigError(
                f"compare sets natural_gradient against adam, so optimizer.name must be natural_gradient, got {self.optimizer.name!r}"
            )

    def run(self, **changes: Any) -> TrainConfig:
        """One training run with some fields changed."""
        own = {f.name: getattr(self, f.name) for f in fields(TrainConfig)}
        return TrainConfig(**{**own, **changes})
