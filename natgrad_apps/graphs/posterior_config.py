"""The configuration of the verb ``uncertainty``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.config import DataConfig, ModelConfig, NonNegative, Positive, Rate, Seed, Share, TrainConfig
from natgrad_apps.runner.hints import Range


@dataclass(frozen=True)
class PosteriorConfig:
    """Noisy K-FAC over the weights. Every pair of a temperature and a prior precision is fitted, and the validation nodes choose one.

    Attributes:
        temperature: Weights of the KL divergence to the prior; below 1 the posterior is cold.
        prior_precision: Precisions of the normal prior of every weight.
        lr: Learning rate.
        momentum: Weight of the previous step.
        decay: Weight of the old value in the running average of the Fisher.
        damping: Extrinsic damping.
        kl_clip: Bound of a step, in nats.
        inverse_period: Epochs between two factorizations.
        epochs: Full-batch steps of each fit.
        num_samples: Weights drawn for the predictions.
    """

    temperature: list[Rate] = field(default_factory=lambda: [0.05])
    prior_precision: list[Rate] = field(default_factory=lambda: [10.0])
    lr: Rate = 0.05
    momentum: Share = 0.9
    decay: Share = 0.9
    damping: Annotated[float, Range(low=0)] = 1e-3
    kl_clip: Rate = 0.01
    inverse_period: Positive = 10
    epochs: Positive = 100
    num_samples: Annotated[int, Range(low=2)] = 30

    def __post_init__(self) -> None:
        for name in ("temperature", "prior_precision"):
            if not getattr(self, name):
                raise ConfigError(f"posterior.{name} must be a list of at least one number, such as [0.05]")

    def grid(self) -> list[tuple[float, float]]:
        """Pairs of temperature and prior precision."""
        return list(itertools.product(self.temperature, self.prior_precision))


@dataclass(frozen=True)
class UncertaintyConfig:
    """A posterior over the weights of a node classifier, and what it knows about each node.

    Attributes:
        dataset: Graph, as for train.
        split: As for train; its validation nodes choose the temperature and set the size of the conformal sets.
        data: Your own tables, and the sizes of random splits.
        model: The network.
        posterior: How the posterior is fitted.
        miscoverage: Share of nodes whose conformal set may miss their class.
        left_out: A class, counted from 0, that a second fit is not shown, to measure how well uncertainty tells its nodes; null skips that.
        checkpoint_every: Epochs between two checkpoints.
        seed: Seed of weights, dropout, weight samples and random splits.
        device: Where the network lives; auto takes CUDA where there is one.
        threads: CPU threads of torch; null leaves torch's choice.
    """

    dataset: str = "karate"
    split: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    miscoverage: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.1
    left_out: NonNegative | None = None
    checkpoint_every: Positive = 50
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Range(low=1, high=1024)] | None = None

    def graph(self) -> TrainConfig:
        """A training run on the same graph, split and device with the same network."""
        return TrainConfig(
            dataset=self.dataset,
            split=self.split,
            data=self.data,
            model=self.model,
            seed=self.seed,
            device=self.device,
            threads=self.threads,
        )
