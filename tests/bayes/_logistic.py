"""Bayesian logistic regression: data, and its ELBO by quadrature instead of sampling."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import Variational


def data_folder() -> Path:
    """Folder of the sets; the test is skipped where they are not."""
    folder = Path(os.environ.get("NATGRAD_DATA", "")) / "libsvm"
    if not os.environ.get("NATGRAD_DATA") or not folder.is_dir():
        pytest.skip("NATGRAD_DATA does not lead to the data sets")
    return folder


def a1a() -> tuple[Tensor, Tensor]:
    """Training part: features ``[1605, 123]`` and labels in {0, 1}, ``[1605, 1]``."""
    rows = (data_folder() / "a1a").read_text().splitlines()
    x, y = torch.zeros(len(rows), 123), torch.zeros(len(rows), 1)
    for i, row in enumerate(rows):
        label, *entries = row.split()
        y[i] = float(label) > 0
        for entry in entries:
            index, value = entry.split(":")
            x[i, int(index) - 1] = float(value)
    return x, y


def australian() -> tuple[Tensor, Tensor]:
    """Training part of the fixed split: features ``[345, 14]`` and labels in {0, 1}, ``[345, 1]``."""
    folder = data_folder() / "australian_presplit"
    x = torch.from_numpy(np.loadtxt(folder / "australian_scale_X_tr.csv"))
    y = torch.from_numpy(np.loadtxt(folder / "australian_scale_y_tr.csv"))
    return x, y.unsqueeze(1)


def negative_elbo(vi: Variational, model: nn.Linear, x: Tensor, y: Tensor) -> float:
    """Exact up to quadrature: the logit of a row is normal with mean ``m`` and variance ``v = x^T Sigma x``.

    ``E log(1 + exp(-s z))`` with ``s = +-1`` by 64-point Gauss-Hermite: for the variances here (below 10) its error is below 1e-9 a row.
    """
    with torch.no_grad():
        mean = model(x).squeeze(1)
        rows = torch.cat([x, torch.ones(len(x), 1)], 1)
        size = rows.shape[1]
        columns = []
        for unit in torch.eye(size):
            product = vi.posterior.multiply_covariance({"weight": unit[:-1].unsqueeze(0), "bias": unit[-1:]})
            columns.append(torch.cat([product["weight"].flatten(), product["bias"]]))
        variance = ((rows @ torch.stack(columns)) * rows).sum(1)
        nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite.hermgauss(64))
        logits = mean.unsqueeze(1) + (2 * variance).sqrt().unsqueeze(1) * nodes
        loss = nn.functional.softplus(-(2 * y - 1) * logits) @ weights / np.pi**0.5
        return float(loss.sum() + vi.posterior.kl(vi.prior))


def mean_field_optimum(x: Tensor, y: Tensor, precision: float, intercept: float) -> float:
    """Lowest negative ELBO of independent weights: quadrature and L-BFGS over means and log-deviations, nothing of the package.

    Args:
        x: Features.
        y: Labels.
        precision: Of the prior of a weight.
        intercept: Of the prior of the intercept.
    """
    rows, sign = torch.cat([x, torch.ones(len(x), 1)], 1), 2 * y - 1
    p = torch.cat([torch.full((x.shape[1],), precision), torch.full((1,), intercept)])
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite.hermgauss(20))
    mean = torch.zeros(len(p), requires_grad=True)
    log_std = (-0.5 * (p + rows.square().sum(0) / 8).log()).requires_grad_()
    optimizer = torch.optim.LBFGS([mean, log_std], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        variance = (2 * log_std).exp()
        logits = (rows @ mean).unsqueeze(1) + (2 * rows.square() @ variance).sqrt().unsqueeze(1) * nodes
        kl = 0.5 * (p * (variance + mean.square()) - 1 - p.log() - 2 * log_std).sum()
        total: Tensor = (nn.functional.softplus(-sign * logits) @ weights).sum() / np.pi**0.5 + kl
        return total

    def closure() -> float:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return float(objective().detach())
