"""The baseline without uncertainty of the weights: least squares by Adam on the same network, batches and number of steps."""

from __future__ import annotations

from typing import Any

import torch

from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import Scaling, Split, Table
from natgrad_apps.bayes.fitted import Schema, build_model, evaluate
from natgrad_apps.bayes.prediction import RegressionPrediction

LR = 0.01
"""Adam's, falling to 0 along a cosine as in the other rows."""


def fit_deterministic(table: Table, split: Split, recipe: RecipeConfig, seed: int) -> dict[str, Any]:
    """Train, and measure with the noise that the training residuals show.

    Args:
        table: A regression set.
        split: Rows.
        recipe: Network, batches, number of steps.
        seed: Of first weights and batches.
    """
    x, y = table.x[split.train], table.y[split.train]
    by_x, by_y = Scaling.fit(x), Scaling.fit(y)
    inputs = torch.as_tensor(by_x.apply(x), dtype=torch.float32)
    targets = torch.as_tensor(by_y.apply(y), dtype=torch.float32)
    model = build_model(recipe, Schema(table.name, table.features, table.target, (), len(x), table.hidden), seed)
    training = recipe.training
    batches, total = training.batches(len(x)), training.steps(len(x))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: training.lr_factor(step / total))
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[torch.Tensor, ...] = ()
    for step in range(total):
        if step % batches == 0:
            parts = torch.randperm(len(x), generator=generator).tensor_split(batches)
        rows = parts[step % batches]
        optimizer.zero_grad()
        (model(inputs[rows]).squeeze(1) - targets[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        noise = (model(inputs).squeeze(1) - targets).square().mean().sqrt().double()
        found = model(torch.as_tensor(by_x.apply(table.x[split.test]), dtype=torch.float32)).squeeze(1).double()
    prediction = RegressionPrediction(found[None], noise).rescaled(float(by_y.mean), float(by_y.scale))
    return {**evaluate(prediction, torch.as_tensor(table.y[split.test])), "noise_std": float(prediction.noise_std), "steps": total}
