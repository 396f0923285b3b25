"""Likelihoods: what the model's outputs say about the data, and the Fisher information of those outputs."""

from __future__ import annotations

from natgrad_apps.likelihoods.base import Likelihood, Targets
from natgrad_apps.likelihoods.bernoulli import Bernoulli
from natgrad_apps.likelihoods.categorical import Categorical
from natgrad_apps.likelihoods.gaussian import Gaussian
from natgrad_apps.likelihoods.joint import Joint

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Joint", "Likelihood", "Targets"]
