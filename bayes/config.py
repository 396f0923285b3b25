"""The configuration of a run: every key of the YAML file and of the command line."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import nn

from natgrad_apps.bayes.data import TableFile
from natgrad_apps.bayes.recipes import check_method
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.hints import Range

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}

Positive = Annotated[int, Range(low=1)]
NonNegative = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(low=0, open_low=True)]
Rate = Annotated[float, Range(low=0, high=1, open_low=True)]
Seed = Annotated[int, Range(low=0, high=2**31 - 1)]


@dataclass(frozen=True)
class ModelConfig:
    """A multilayer perceptron.

    Attributes:
        hidden: Widths of the hidden layers; null is one layer of 50, or of the width that the published protocol of a UCI set has.
        activation: Nonlinearity behind each of them.
        weights: File with the state_dict of a trained network of these widths (torch.save), which becomes the first mean; null starts at
            random. Its inputs, and a regression target, must have been standardized with the same training rows.
        bayesian: Modules whose weights are Bayesian, such as [last] or ["0", "2"]; null is all of them.
        others: Whether the weights of the other modules are trained along (a MAP estimate by Adam) or frozen.
    """

    hidden: list[Positive] | None = None
    activation: Literal["relu", "tanh", "elu", "silu", "gelu"] = "relu"
    weights: str | None = None
    bayesian: list[str] | None = None
    others: Literal["trained", "frozen"] = "trained"


@dataclass(frozen=True)
class InferenceConfig:
    """How the posterior is found; null keeps the method's own default.

    Attributes:
        lr: Learning rate; null is 0.01 for vadam and vprop, 0.05 for the noisy methods, 0.1 for the others.
        decay: Weight of the old value in the running average of the curvature.
        momentum: Weight of the old value in the running average of the gradient.
        damping: Extrinsic damping; it shortens steps and is no part of the posterior. null is 0.001 where the method has one.
        options: Further arguments of the method by name.
        num_samples: Weight samples a step.
        temperature: Weight of the KL divergence; 1 is Bayes.
        warm_up: Share of the run in which the KL divergence's weight rises to the temperature; 0 for none.
        warm_up_start: Its first weight, as a share of the temperature.
        prior_precision: Precision of the weights' prior, the first value if it is learned.
        learn_prior: Whether each layer's prior precision is learned.
        prior_rate: Fraction of the way to the optimum in one step, if it is learned.
        noise_precision: Precision of the noise of a standardized regression target, the first value if it is learned.
        learn_noise: Whether it is learned.
        noise_rate: Weight of a batch in the running average that learns it.
    """

    lr: PositiveFloat | None = None
    decay: Annotated[float, Range(low=0, high=1, open_high=True)] | None = None
    momentum: Annotated[float, Range(low=0, high=1, open_high=True)] | None = None
    damping: Annotated[float, Range(low=0)] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    num_samples: Positive = 1
    temperature: PositiveFloat = 1.0
    warm_up: Annotated[float, Range(low=0, high=1)] = 0.5
    warm_up_start: Rate = 0.1
    prior_precision: PositiveFloat = 1.0
    learn_prior: bool = True
    prior_rate: Rate = 0.001
    noise_precision: PositiveFloat = 1.0
    learn_noise: bool = True
    noise_rate: Rate = 0.02

    def method_arguments(self) -> dict[str, Any]:
        """Arguments for the method's class: `options`, and those of the four common ones that were given."""
        given = {name: getattr(self, name) for name in ("lr", "decay", "momentum", "damping")}
        return {**{name: value for name, value in given.items() if value is not None}, **self.options}


@dataclass(frozen=True)
class FitConfig:
    """How long, and on what batches.

    Attributes:
        epochs: Passes over the training rows.
        max_steps: Largest number of steps, which shortens the training on large data sets; null for none.
        batch_size: Rows of a batch; an epoch is cut into batches that differ by one row at most.
        lr_schedule: constant; cosine falls to 0 over the run; step divides the rate by 10 after half of it.
    """

    epochs: Positive = 1000
    max_steps: Positive | None = 10_000
    batch_size: Positive = 100
    lr_schedule: Literal["constant", "cosine", "step"] = "cosine"

    def batches(self, rows: int) -> int:
        """Number of batches of an epoch.

        Args:
            rows: Number of training rows.
        """
        return max(round(rows / self.batch_size), 1)

    def steps(self, rows: int) -> int:
        """Number of steps of the whole training.

        Args:
            rows: Number of training rows.
        """
        return min(self.batches(rows) * self.epochs, self.max_steps or sys.maxsize)

    def lr_factor(self, done: float) -> float:
        """Share of the first learning rate when this share of the run is done."""
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return 0.1 if self.lr_schedule == "step" and done >= 0.5 else 1.0


@dataclass(frozen=True)
class PredictionConfig:
    """How predictions are made.

    Attributes:
        kind: sampled predicts with weights drawn from the posterior; linearized with the model linearized at its mean, which is Gaussian in
            closed form for regression and draws logits for classes.
        num_samples: Weight samples.
        interval: Probability of the interval that predictions come with.
    """

    kind: Literal["sampled", "linearized"] = "sampled"
    num_samples: Positive = 100
    interval: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.95


@dataclass(frozen=True)
class ForeignConfig:
    """Inputs that the uncertainty is to tell from test inputs.

    Attributes:
        kind: moved adds a number of training deviations to every column of the test rows, up or down at random; permuted shuffles each
            column among the test rows; rotated turns square images by 90 degrees; table reads rows from a file.
        distance: Training deviations of moved.
        table: CSV, TSV or Parquet file with the columns of the inputs, for the kind table.
    """

    kind: Literal["moved", "permuted", "rotated", "table"] = "moved"
    distance: PositiveFloat = 3.0
    table: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "table") != (self.table is not None):
            raise ConfigError(f"foreign.kind=table and foreign.table go together, got kind {self.kind!r} and table {self.table!r}")


@dataclass(frozen=True)
class RecipeConfig:
    """What is the same for every data set.

    Attributes:
        method: Such as noisy_kfac, noisy_ekfac, noisy_adam, vadam, vogn.
        model: The network.
        inference: How its posterior is found.
        training: How long.
        prediction: How it predicts.
    """

    method: str = "noisy_kfac"
    model: ModelConfig = field(default_factory=ModelConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    training: FitConfig = field(default_factory=FitConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)

    def __post_init__(self) -> None:
        check_method(self.method, self.inference.method_arguments())


@dataclass(frozen=True)
class TrainConfig(RecipeConfig):
    """One training run.

    Attributes:
        method: Such as noisy_kfac, noisy_ekfac, noisy_adam, vadam, vogn.
        model: The network.
        inference: How its posterior is found.
        training: How long.
        prediction: How it predicts.
        dataset: diabetes, breast_cancer, digits, a UCI set such as concrete, or a CSV, TSV or Parquet file.
        table: How such a file is read.
        split: Number of the published split of a UCI set; else the seed of a random one.
        test_fraction: Share of the rows that test, where no split is published.
        foreign: Inputs that the uncertainty is to tell from test inputs (AUROC, FPR95, uncertainty.png).
        log_every: Steps between two rows of metrics.csv.
        checkpoint_every: Steps between two checkpoints; one is written at the start, at the end and at an interruption anyway.
        seed: Seed of first weights, batches, weight samples and predictions.
        device: Where the network lives; auto takes CUDA where there is one.
        threads: CPU threads of torch; null leaves torch's choice.
    """

    dataset: str = "diabetes"
    table: TableFile = field(default_factory=TableFile)
    split: NonNegative = 0
    test_fraction: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.1
    foreign: ForeignConfig = field(default_factory=ForeignConfig)
    log_every: Positive = 50
    checkpoint_every: Positive = 1000
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Range(low=1, high=1024)] | None = None
