"""Training of one posterior on one split of a data set, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import Scaling, Split, Table
from natgrad_apps.bayes.fitted import Fitted, Scales, Schema, evaluate
from natgrad_apps.bayes.partial import start_from
from natgrad_apps.bayes.prediction import Kind
from natgrad_apps.bayes.variational import StepInfo
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.words import one_line

EPOCH_SEED = 1_000_003


class Fit(Fitted):
    """A posterior in training.

    Batches of epoch ``e`` depend on seed and ``e`` only, so a resumed training sees the same ones.

    Args:
        table: The data.
        split: Rows that train and test.
        recipe: Network, method, training.
        seed: Of everything.
        device: Where the network lives.

    Attributes:
        steps_done: Steps taken.

    Raises:
        ConfigError: Method and model do not fit.
    """

    def __init__(self, table: Table, split: Split, recipe: RecipeConfig, seed: int, device: torch.device | str = "cpu") -> None:
        self.table, self.split = table, split
        x, y = table.x[split.train], table.y[split.train]
        scales = Scales(Scaling.fit(x, table.one_unit), None if table.classes else Scaling.fit(y))
        schema = Schema(table.name, table.features, table.target, table.classes, len(x), table.hidden)
        super().__init__(schema, scales, recipe, seed, device)
        self._x = self.inputs(x)
        if scales.y is None:
            self._y = torch.as_tensor(y, dtype=torch.int64, device=self.device)
        else:
            self._y = torch.as_tensor(scales.y.apply(y)[:, None], dtype=torch.float32, device=self.device)
        self._first_lr = self.vi.lr
        self.steps_done = 0
        self._batches = recipe.training.batches(len(x))
        self._epoch, self._parts = -1, tuple[Tensor, ...]()

    def start_from_file(self) -> None:
        """Take over the weights of the file that the recipe names, if it does.

        Raises:
            ConfigError: The file cannot be read, or its weights do not fit the network.
        """
        if self.recipe.model.weights is not None:
            start_from(self.vi.model, read_weights(Path(self.recipe.model.weights)))

    @property
    def steps_total(self) -> int:
        """Steps of the whole training."""
        return self.recipe.training.steps(len(self._x))

    def step(self) -> StepInfo:
        """Train on the next batch."""
        epoch, index = divmod(self.steps_done, self._batches)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * EPOCH_SEED + epoch)
            order = torch.randperm(len(self._x), generator=generator).to(self.device)
            self._epoch, self._parts = epoch, order.tensor_split(self._batches)
        rows = self._parts[index]
        self.vi.set_lr(self._first_lr * self.recipe.training.lr_factor(self.steps_done / self.steps_total))
        info = self.vi.step(self._x[rows], self._y[rows])
        self.steps_done += 1
        return info

    def evaluate(self, num_samples: int | None = None, kind: Kind | None = None) -> dict[str, float]:
        """Metrics on the test rows.

        Args:
            num_samples: Weight samples; None for those of the recipe.
            kind: Of the prediction; None for that of the recipe.
        """
        rows = self.split.test
        return evaluate(self.predict(self.table.x[rows], num_samples, kind), torch.as_tensor(self.table.y[rows], device=self.device))

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs."""
        return {"vi": self.vi.state_dict(), "steps_done": self.steps_done}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: It belongs to another model or method.
        """
        self.vi.load_state_dict(saved["vi"])
        self.steps_done = int(saved["steps_done"])
        self._epoch = -1


def read_weights(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; nothing in the file is executed.

    Raises:
        ConfigError: There is no such file, or it holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file of weights {str(path)!r}") from error
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ConfigError(
            f"the weights {str(path)!r} cannot be read: {one_line(error)[:200]}; save them with torch.save(net.state_dict(), FILE)"
        ) from error


def published_split(table: Table, index: int) -> Split:
    """A published split.

    Raises:
        ConfigError: There are not so many.
    """
    if index >= len(table.splits):
        raise ConfigError(f"{table.name} has the splits 0-{len(table.splits) - 1}, got {index}")
    return table.splits[index]


def fit_split(table: Table, split: Split, recipe: RecipeConfig, seed: int, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train to the end and measure.

    Args:
        table: The data.
        split: Rows.
        recipe: How.
        seed: Of everything.
        check: Called before every step; stops the training by raising.

    Returns:
        Metrics of the test rows, what was learned besides the weights, and ``seconds`` of training and prediction.
    """
    start = time.perf_counter()
    fit = Fit(table, split, recipe, seed)
    while fit.steps_done < fit.steps_total:
        check()
        fit.step()
    return {**fit.evaluate(), **fit.learned(), "steps": fit.steps_done, "seconds": time.perf_counter() - start}
