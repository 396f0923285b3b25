"""Noisy K-FAC or EKFAC on several splits of a set at once: every split is a group of the same layers.

A net of 50 hidden units keeps a processor busy with calls, not with arithmetic; here one call serves all splits, which makes twenty splits
cheaper than two. Factors, inverses, eigenbases and posteriors are those of the package, whose classes carry a leading dimension of groups
(``K`` splits). What is written again is what `Variational` and the hooks do around them for one hidden layer: forward
and backward pass, momentum, bound of the step, and the updates of prior and noise. `fit_splits` draws the same numbers from the same
generators as `fit_split`, so it follows the package's training split by split up to rounding; tests/benchmarks/test_stacked.py holds the
two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import NoisyEKFAC, NoisyKFAC
from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import Scaling, Split, Table
from natgrad_apps.bayes.distributions import DiagonalNormal, EigenNormal, Normal
from natgrad_apps.bayes.fitted import PREDICTION_SEED, Schema, build_model, evaluate, warm_up_of
from natgrad_apps.bayes.fitting import EPOCH_SEED
from natgrad_apps.bayes.prediction import RegressionPrediction
from natgrad_apps.bayes.recipes import build_method
from natgrad_apps.curvature.kfac import cached
from natgrad_apps.steps.kl_trust_region import KLTrustRegion
from natgrad_apps.types import BlockSpec, DampingValue, State

_Method = NoisyKFAC | NoisyEKFAC


def fit_splits(table: Table, splits: Sequence[Split], recipe: RecipeConfig, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What `fit_split` gives for each split, but for the seconds.

    Args:
        table: A regression set.
        splits: Rows; all of the same sizes.
        recipe: Noisy K-FAC or EKFAC with sampled targets and one weight sample a step, on one hidden layer of rectified units.
        seeds: Of each split.
    """
    return _Stack(table, splits, recipe, seeds).run()


@dataclass
class _Layer:
    """The layers of one depth.

    Attributes:
        weight: Posterior means ``[K, d_out, d_in]``, the bias in the last column.
        state: Curvature.
        normal: Deviation from the mean.
        prior: Precisions ``[K]``.
        average: Momentum of the gradient.
    """

    weight: Tensor
    state: State
    normal: Normal
    prior: Tensor
    average: Tensor


class _Stack:
    def __init__(self, table: Table, splits: Sequence[Split], recipe: RecipeConfig, seeds: Sequence[int]) -> None:
        method = build_method(recipe.method, recipe.inference.method_arguments())
        assert isinstance(method, _Method)
        assert isinstance(method.step, KLTrustRegion)
        assert recipe.inference.num_samples == 1
        self.table, self.splits, self.recipe, self.seeds, self.method = table, splits, recipe, seeds, method
        self.curvature = method.curvature()
        self.count, self.radius = len(splits[0].train), method.step.radius
        scalings = [(Scaling.fit(table.x[s.train]), Scaling.fit(table.y[s.train])) for s in splits]
        self.scalings = scalings
        self.x = torch.stack([_with_ones(table, s.train, by_x) for s, (by_x, _) in zip(splits, scalings, strict=True)])
        targets = [by_y.apply(table.y[s.train]) for s, (_, by_y) in zip(splits, scalings, strict=True)]
        self.y = torch.as_tensor(np.stack(targets), dtype=torch.float32)
        self.temperature = warm_up_of(recipe, self.count)
        settings = recipe.inference
        self.noise = torch.full((len(splits),), settings.noise_precision, dtype=torch.float64)
        self.draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.scores = [torch.Generator().manual_seed(seed) for seed in seeds]
        schema = Schema(table.name, table.features, table.target, (), self.count, table.hidden)
        models = [build_model(recipe, schema, seed) for seed in seeds]
        self.layers = [self._layer([model[i] for model in models]) for i in (0, 2)]

    def _layer(self, parts: Sequence[nn.Module]) -> _Layer:
        rows = [torch.cat([part.weight.detach(), part.bias.detach()[:, None]], 1) for part in parts if isinstance(part, nn.Linear)]
        weight, prior = torch.stack(rows), torch.full((len(rows),), self.recipe.inference.prior_precision, dtype=torch.float64)
        spec = BlockSpec("", "linear", (len(rows),), weight.shape[1], weight.shape[2], weight.dtype, weight.device)
        method, first = self.method, self.method.initial_curvature
        state = self.curvature.init(spec)
        for name, size in (("A0", spec.d_in), ("G0", spec.d_out)):
            state.moments[name] = (torch.eye(size) * first**0.5).expand(len(rows), size, size).clone()
        if isinstance(method, NoisyEKFAC):
            state.moments["s"] = torch.full_like(weight, first)
        state.count.fill_(method.initial_batches)
        scale = self.temperature.at(0) / self.count
        precision = (first + prior * scale).to(weight)[:, None, None].expand_as(weight) / scale
        return _Layer(weight, state, DiagonalNormal(precision), prior, torch.zeros_like(weight))

    @torch.no_grad()
    def run(self) -> list[dict[str, Any]]:
        """Train and test."""
        training, batches = self.recipe.training, self.recipe.training.batches(self.count)
        total = training.steps(self.count)
        groups, parts = torch.arange(len(self.splits))[:, None], tuple[Tensor, ...]()
        for step in range(total):
            epoch, index = divmod(step, batches)
            if index == 0:
                orders = [torch.randperm(self.count, generator=torch.Generator().manual_seed(s * EPOCH_SEED + epoch)) for s in self.seeds]
                parts = torch.stack(orders).tensor_split(batches, dim=1)
            self._step(step, self.x[groups, parts[index]], self.y[groups, parts[index]], training.lr_factor(step / total))
        return [self._evaluate(k) | {"steps": total} for k in range(len(self.splits))]

    def _step(self, step: int, x: Tensor, y: Tensor, factor: float) -> None:
        method, rows = self.method, x.shape[1]
        scale = self.temperature.at(step) / self.count
        first, second = self._sample(self.draws)
        hidden, outputs = _forward(first, second, x)
        error = outputs - y
        back = (hidden[..., :-1] > 0) * second[:, :, :-1]  # d output / d preactivation, [K, N, H]
        std = self.noise.rsqrt().float()[:, None]
        slope = (error / std.square() / rows).unsqueeze(-1)
        gradients = [(slope * back).mT @ x, slope.mT @ hidden]
        drawn = torch.stack([torch.empty(rows, 1).normal_(generator=g) for g in self.scores]) / std.unsqueeze(-1)
        seen = ((x, drawn * back), (hidden, drawn))
        due = step % method.inverse_period == 0
        correction = 1 - method.momentum ** (step + 1)
        updates, quadratics = [], []
        for layer, gradient, (a, g) in zip(self.layers, gradients, seen, strict=True):
            self._observe(layer, a, g)
            intrinsic = (layer.prior * scale).float()
            if due:
                self.curvature.refresh([layer.state], self._damping(intrinsic + method.damping))
            if due or method.follows_moments:
                layer.normal = method.layer_normal(layer.state, scale, self._damping(intrinsic).value)
            layer.average.lerp_(gradient + intrinsic[:, None, None] * layer.weight, 1 - method.momentum)
            update = self.curvature.multiply_power(layer.state, layer.average, -1) * (-method.lr * factor / correction)
            updates.append(update)
            quadratics.append(self._quadratic(layer.state, update))
        bound = 2 * self.radius
        size = torch.stack(quadratics).sum(0)
        shrink = torch.where(size > bound, (bound / size.clamp_min(bound)).sqrt() * (1 - 1e-6), 1.0)
        for layer, update in zip(self.layers, updates, strict=True):
            layer.weight += update * shrink[:, None, None]
        self._learn(error)

    def _sample(self, generators: Sequence[torch.Generator]) -> list[Tensor]:
        drawn: list[list[Tensor]] = [[], []]
        for generator in generators:  # both layers of a split in turn, as the package draws them
            for layer, values in zip(self.layers, drawn, strict=True):
                values.append(torch.empty(layer.weight.shape[1:]).normal_(generator=generator))
        return [layer.weight + layer.normal.root(torch.stack(z)) for layer, z in zip(self.layers, drawn, strict=True)]

    def _damping(self, value: Tensor) -> DampingValue:
        """A value for each group; EKFAC adds it to matrices."""
        return DampingValue(value[:, None, None] if isinstance(self.method, NoisyEKFAC) else value, factored=True)

    def _observe(self, layer: _Layer, a: Tensor, g: Tensor) -> None:
        state, rows = layer.state, a.shape[1]
        moments = {"A0": a.mT @ a / rows, "G0": g.mT @ g / rows}
        if isinstance(self.method, NoisyEKFAC):
            if "vectors_A0" not in state.cache:
                state.cache |= {f"vectors_{name}": torch.linalg.eigh(moments[name].double())[1].float() for name in ("A0", "G0")}
            rotated = [v @ state.cache[f"vectors_{name}"] for name, v in (("A0", a), ("G0", g))]
            moments["s"] = rotated[1].square().mT @ rotated[0].square() / rows
        self.curvature.accumulate(state, moments)

    def _quadratic(self, state: State, v: Tensor) -> Tensor:
        """``v^T F v`` of each group, ``[K]``."""
        if isinstance(self.method, NoisyEKFAC):
            (q_a,), (q_g,) = (cached(state, f"vectors_{letter}").blocks for letter in "AG")
            return (state.moments["s"] * (q_g.mT @ v @ q_a).square()).sum((1, 2))
        return (v * (state.moments["G0"] @ v @ state.moments["A0"])).sum((1, 2))

    def _learn(self, error: Tensor) -> None:
        settings = self.recipe.inference
        if settings.learn_noise:
            seen = error.square().mean(1).double()
            self.noise = self.noise.reciprocal().lerp(seen, settings.noise_rate).reciprocal()
        if settings.learn_prior:
            for layer in self.layers:
                normal = layer.normal
                spread = normal.variance if isinstance(normal, EigenNormal) else normal.variances()  # rotations keep the trace
                best = (layer.weight.double().square() + spread.double()).mean((1, 2))
                layer.prior = layer.prior.reciprocal().lerp(best, settings.prior_rate).reciprocal()

    def _evaluate(self, k: int) -> dict[str, Any]:
        rows, (by_x, by_y) = self.splits[k].test, self.scalings[k]
        x = _with_ones(self.table, rows, by_x)
        generator = torch.Generator().manual_seed(self.seeds[k] + PREDICTION_SEED)
        found = []
        for _ in range(self.recipe.prediction.num_samples):
            first, second = (self._drawn(layer, k, generator) for layer in self.layers)
            found.append(_forward(first, second, x)[1].double())
        prediction = RegressionPrediction(torch.stack(found), self.noise[k].rsqrt()).rescaled(float(by_y.mean), float(by_y.scale))
        learned = {"prior_precision": [float(layer.prior[k]) for layer in self.layers], "noise_std": float(prediction.noise_std)}
        return {**evaluate(prediction, torch.as_tensor(self.table.y[rows])), **learned}

    def _drawn(self, layer: _Layer, k: int, generator: torch.Generator) -> Tensor:
        z = torch.zeros_like(layer.weight)
        z[k] = torch.empty(layer.weight.shape[1:]).normal_(generator=generator)
        return (layer.weight + layer.normal.root(z))[k]


def _with_ones(table: Table, rows: Any, by_x: Scaling) -> Tensor:
    x = torch.as_tensor(by_x.apply(table.x[rows]), dtype=torch.float32)
    return torch.cat([x, torch.ones(len(x), 1)], 1)


def _forward(first: Tensor, second: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden units with a one behind them ``[..., N, H + 1]``, and outputs ``[..., N]``."""
    hidden = (x @ first.mT).relu()
    hidden = torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], -1)
    return hidden, (hidden @ second.mT).squeeze(-1)
