"""A posterior with what it needs to predict in the target's own unit; it needs no data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.bayes import metrics
from natgrad_apps.bayes.config import ACTIVATIONS, ModelConfig, RecipeConfig
from natgrad_apps.bayes.data import Scaling
from natgrad_apps.bayes.data.table import Floats
from natgrad_apps.bayes.partial import Partial, PointEstimate, last_layer
from natgrad_apps.bayes.prediction import ClassificationPrediction, Kind, Prediction, RegressionPrediction, predict
from natgrad_apps.bayes.prior import Prior
from natgrad_apps.bayes.recipes import build_method
from natgrad_apps.bayes.tasks import Classification, Regression, RegressionTask
from natgrad_apps.bayes.variational import Variational
from natgrad_apps.bayes.warm_up import WarmUp

DEFAULT_HIDDEN = 50
PREDICTION_SEED = 5_000_011
LAST = "last"


@dataclass(frozen=True)
class Schema:
    """What is known of the training data besides its numbers.

    Attributes:
        name: Of the data set.
        features: Names of the inputs.
        target: Name of the target.
        classes: Names of the classes; empty for regression.
        rows: Number of training rows.
        width: Of the hidden layer that the published protocol has; None where there is none.
    """

    name: str
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...]
    rows: int
    width: int | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Schema:
        """Inverse of `to_dict`."""
        return cls(**{**saved, "features": tuple(saved["features"]), "classes": tuple(saved["classes"])})


@dataclass(frozen=True)
class Scales:
    """Standardization of inputs and target.

    Attributes:
        x: Of the inputs.
        y: Of the target; None for classes.
    """

    x: Scaling
    y: Scaling | None

    def to_dict(self) -> dict[str, Any]:
        """As plain lists."""
        return {"x": self.x.to_dict(), "y": None if self.y is None else self.y.to_dict()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Scales:
        """Inverse of `to_dict`."""
        return cls(Scaling.from_dict(saved["x"]), None if saved["y"] is None else Scaling.from_dict(saved["y"]))


class Fitted:
    """A network with a posterior over its weights, and the units of inputs and target.

    Args:
        schema: Names and sizes.
        scales: Units.
        recipe: Network, method, priors.
        seed: Of first weights, weight samples and predictions.
        device: Where the network lives.

    Attributes:
        vi: The posterior; before any step it is that of the first weights.

    Raises:
        ConfigError: Method and model do not fit.
    """

    def __init__(self, schema: Schema, scales: Scales, recipe: RecipeConfig, seed: int, device: torch.device | str = "cpu") -> None:
        self.schema, self.scales, self.recipe, self.seed, self.device = schema, scales, recipe, seed, torch.device(device)
        settings = recipe.inference
        regression = not schema.classes
        task = Regression(settings.noise_precision, settings.learn_noise, settings.noise_rate) if regression else Classification()
        self.vi = Variational(
            choose_modules(build_model(recipe, schema, seed).to(self.device), recipe.model),
            method=build_method(recipe.method, settings.method_arguments()),
            task=task,
            num_data=schema.rows,
            prior=Prior(settings.prior_precision, settings.learn_prior, settings.prior_rate),
            temperature=warm_up_of(recipe, schema.rows),
            num_samples=settings.num_samples,
            seed=seed,
        )

    def inputs(self, x: Floats) -> Tensor:
        """Standardized inputs ``[N, D]``.

        Args:
            x: In their own units.
        """
        return torch.as_tensor(self.scales.x.apply(x), dtype=torch.float32, device=self.device)

    def predict(self, x: Floats, num_samples: int | None = None, kind: Kind | None = None) -> Prediction:
        """Predictions in the unit of the target; the same on every call.

        Args:
            x: Inputs ``[N, D]`` in their own units.
            num_samples: Weight samples; None for those of the recipe.
            kind: Of the prediction; None for that of the recipe.
        """
        settings = self.recipe.prediction
        generator = torch.Generator(device=self.device).manual_seed(self.seed + PREDICTION_SEED)
        count, chosen = num_samples or settings.num_samples, kind or settings.kind
        found = predict(self.vi, self.inputs(x), count, generator, kind=chosen)
        if isinstance(found, RegressionPrediction) and self.scales.y is not None:
            return found.rescaled(float(self.scales.y.mean), float(self.scales.y.scale))
        return found

    def learned(self) -> dict[str, Any]:
        """What was learned besides the weights: noise deviation in the target's unit, prior precisions."""
        found: dict[str, Any] = {"prior_precision": {name: float(value) for name, value in self.vi.prior.precision.items()}}
        if isinstance(self.vi.task, RegressionTask) and self.scales.y is not None:
            found["noise_std"] = float(self.vi.task.noise_std) * float(self.scales.y.scale)
        return found


def warm_up_of(recipe: RecipeConfig, rows: int) -> WarmUp:
    """The temperature over the steps of a training.

    Args:
        recipe: Says for which share of them it rises.
        rows: Number of training rows.
    """
    settings = recipe.inference
    steps = round(settings.warm_up * recipe.training.steps(rows))
    return WarmUp(settings.warm_up_start * settings.temperature, steps, settings.temperature)


def build_model(recipe: RecipeConfig, schema: Schema, seed: int) -> nn.Sequential:
    """The multilayer perceptron of a recipe, with torch's own first weights.

    Args:
        recipe: Widths and nonlinearity.
        schema: Numbers of inputs and outputs.
        seed: Of the first weights; the global generator is left alone.
    """
    inputs, outputs = len(schema.features), len(schema.classes) or 1
    hidden = recipe.model.hidden if recipe.model.hidden is not None else [schema.width or DEFAULT_HIDDEN]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n in hidden:
            layers += [nn.Linear(inputs, n), ACTIVATIONS[recipe.model.activation]()]
            inputs = n
        return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def choose_modules(model: nn.Module, config: ModelConfig) -> nn.Module | Partial:
    """The model, or the choice of its Bayesian modules.

    Args:
        model: From `build_model`.
        config: Names of modules; ``last`` is the last one with weights.

    Raises:
        ConfigError: A name fits nothing.
    """
    if config.bayesian is None:
        return model
    names = [last_layer(model) if name == LAST else name for name in config.bayesian]
    return Partial(model, names, PointEstimate() if config.others == "trained" else None)


def evaluate(found: Prediction, y: Tensor) -> dict[str, float]:
    """Every metric of predictions, by name.

    Args:
        found: In the unit of the target.
        y: Targets ``[N]`` in their own unit, or classes.
    """
    if isinstance(found, RegressionPrediction):
        means, deviations = found.mixture
        pointwise = metrics.pointwise_log_likelihood(metrics.gaussian_log_density(means, deviations, y))
        return {
            "rmse": metrics.rmse(found.mean, y),
            "nll": -pointwise,
            "loglik_pointwise": pointwise,
            "loglik_joint": metrics.joint_log_likelihood(metrics.gaussian_log_density(found.samples, found.noise_std, y)),
            "crps": metrics.crps(means, deviations, y),
        }
    assert isinstance(found, ClassificationPrediction)
    density = metrics.categorical_log_density(found.samples, y)
    pointwise = metrics.pointwise_log_likelihood(density)
    return {
        "accuracy": metrics.accuracy(found.mean, y),
        "nll": -pointwise,
        "loglik_pointwise": pointwise,
        "loglik_joint": metrics.joint_log_likelihood(density),
        "brier": metrics.brier(found.mean, y),
        "ece": metrics.calibration_error(found.mean, y),
    }
