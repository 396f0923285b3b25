"""Splits side by side in one stack are the package's trainings one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks._stacked import fit_splits
from natgrad_apps.bayes.config import FitConfig, InferenceConfig, PredictionConfig, RecipeConfig
from natgrad_apps.bayes.data.uci import read_uci
from natgrad_apps.bayes.fitting import fit_split
from tests.bayes_runner._uci import write_uci


@pytest.mark.parametrize("method", ["noisy_kfac", "noisy_ekfac"])
def test_a_stack_follows_the_package(method: str, tmp_path: Path) -> None:
    """Same draws from the same generators, so only rounding differs: products of other shapes in float32, over 45 steps and 5 refreshes.

    45 steps of 2 batches of 8 rows have warm-up, bounded steps (the first ones predict more than 0.001 nats), a refresh at every tenth
    step, learned noise and learned priors. A wrong sign, order or scale anywhere moves the metrics by more than a percent.
    """
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    recipe = RecipeConfig(
        method=method,
        inference=InferenceConfig(prior_rate=0.02),
        training=FitConfig(epochs=30, batch_size=8, max_steps=45),
        prediction=PredictionConfig(num_samples=20),
    )
    seeds = [3, 4]
    stacked = fit_splits(table, table.splits, recipe, seeds)
    for split, seed, found in zip(table.splits, seeds, stacked, strict=True):
        expected = fit_split(table, split, recipe, seed)
        assert found["steps"] == expected["steps"] == 45
        names = ["rmse", "loglik_pointwise", "loglik_joint", "noise_std"]
        np.testing.assert_allclose([found[n] for n in names], [expected[n] for n in names], rtol=2e-4)
        np.testing.assert_allclose(found["prior_precision"], list(expected["prior_precision"].values()), rtol=2e-4)
