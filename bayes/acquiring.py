"""Pool-based active learning: which row's label to ask for next, and what that is worth against rows at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import Split, Table
from natgrad_apps.bayes.data.table import Rows
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.prediction import ClassificationPrediction, Prediction, RegressionPrediction
from natgrad_apps.errors import ConfigError

Acquisition = Literal["mutual_information", "entropy", "random"]


@dataclass(frozen=True)
class Pool:
    """Rows of a table by what is known of them.

    Attributes:
        labelled: Rows whose targets are known, ``[n]``.
        candidates: Rows whose targets may be asked for, ``[m]``.
        test: Rows that measure, ``[t]``.
    """

    labelled: Rows
    candidates: Rows
    test: Rows

    def acquire(self, chosen: Rows) -> Pool:
        """The pool when the targets of some candidates are known.

        Args:
            chosen: Their places among the candidates.
        """
        left = np.setdiff1d(np.arange(len(self.candidates)), chosen)
        return Pool(np.concatenate([self.labelled, self.candidates[chosen]]), self.candidates[left], self.test)


def draw_pool(table: Table, sizes: tuple[int, int | None, int], seed: int) -> Pool:
    """Rows drawn without replacement.

    Args:
        table: The data.
        sizes: Number of labelled rows, of candidates (None: all others), and of test rows.
        seed: Equal seeds give equal rows.

    Raises:
        ConfigError: There are fewer rows.
    """
    start, pool, test = sizes
    needed = start + test + (1 if pool is None else pool)
    if needed > len(table.x):
        raise ConfigError(
            f"{table.name} has {len(table.x)} rows; {start} labelled, {'some' if pool is None else pool} candidates and {test} test rows "
            f"need {needed}; lower start, pool or test"
        )
    order = np.random.default_rng(seed).permutation(len(table.x))
    end = None if pool is None else start + test + pool
    return Pool(order[:start], order[start + test : end], order[start : start + test])


def score(found: Prediction, acquisition: Acquisition) -> Tensor:
    r"""How much the label of a row is worth, ``[m]``, in nats.

    * ``mutual_information`` of the label and the weights (MacKay 1992; Houlsby et al. 2011): for classes `Prediction.epistemic`; for
      regression, with the function taken as normal, ``1/2 log(1 + epistemic variance / noise variance)``. Noise being the same everywhere,
      that is the order of the predictive variances.
    * ``entropy`` of the label: the same order for regression; for classes noise counts too.

    Args:
        found: Predictions of the candidates.
        acquisition: Not ``random``.
    """
    if isinstance(found, RegressionPrediction):
        ratio = found.epistemic / found.aleatoric
        gain = 0.5 * torch.log1p(ratio)
        return gain if acquisition == "mutual_information" else gain + 0.5 * (2 * torch.pi * torch.e * found.aleatoric).log()
    assert isinstance(found, ClassificationPrediction)
    return found.epistemic if acquisition == "mutual_information" else found.entropy


@dataclass(frozen=True)
class Rounds:
    """How a pool is worked off.

    Attributes:
        acquisition: What chooses.
        rounds: Acquisitions; one more model than that is trained.
        per_round: Rows of one acquisition, those with the highest scores.
    """

    acquisition: Acquisition
    rounds: int
    per_round: int


def learn_actively(
    table: Table, pool: Pool, recipe: RecipeConfig, plan: Rounds, seed: int, check: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Train, ask, train anew from the first weights, and so on.

    Args:
        table: The data.
        pool: Its rows.
        recipe: Network, method and training of every model.
        plan: What to ask for.
        seed: Of first weights, batches, samples and random choices.
        check: Called before every step; stops by raising.

    Returns:
        For each model the number of ``labels`` and the metrics of the test rows.

    Raises:
        ConfigError: There are fewer candidates than are asked for.
    """
    if plan.rounds * plan.per_round > len(pool.candidates):
        raise ConfigError(
            f"{plan.rounds} rounds of {plan.per_round} ask for more labels than the {len(pool.candidates)} candidates have; "
            "lower rounds or per_round, or give a larger pool"
        )
    generator = np.random.default_rng(seed)
    curve = []
    for left in range(plan.rounds, -1, -1):
        fit = Fit(table, Split(pool.labelled, pool.test), recipe, seed)
        while fit.steps_done < fit.steps_total:
            check()
            fit.step()
        curve.append({"labels": len(pool.labelled), **fit.evaluate()})
        if left:
            pool = pool.acquire(_choose(fit, pool, plan, generator))
    return curve


def _choose(fit: Fit, pool: Pool, plan: Rounds, generator: np.random.Generator) -> Rows:
    if plan.acquisition == "random":
        return generator.choice(len(pool.candidates), plan.per_round, replace=False)
    values = score(fit.predict(fit.table.x[pool.candidates]), plan.acquisition)
    return values.topk(plan.per_round).indices.cpu().numpy()
