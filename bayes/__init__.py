"""Bayesian neural networks by natural-gradient variational inference."""

from __future__ import annotations

from natgrad_apps.bayes.methods.full import FullGaussian
from natgrad_apps.bayes.methods.ivon import IVON
from natgrad_apps.bayes.methods.noisy import NoisyAdam, NoisyEKFAC, NoisyKFAC
from natgrad_apps.bayes.methods.slang import SLANG
from natgrad_apps.bayes.methods.vadam import Vadam, Vprop
from natgrad_apps.bayes.methods.vogn import VOGN
from natgrad_apps.bayes.methods.von import VON
from natgrad_apps.bayes.partial import Partial, PointEstimate, last_layer, start_from
from natgrad_apps.bayes.posterior import Posterior
from natgrad_apps.bayes.prior import Prior
from natgrad_apps.bayes.sampling import Samples
from natgrad_apps.bayes.tasks import Classification, Regression
from natgrad_apps.bayes.variational import DataSize, StepInfo, Variational
from natgrad_apps.bayes.warm_up import WarmUp

__all__ = [
    "IVON",
    "SLANG",
    "VOGN",
    "VON",
    "Classification",
    "DataSize",
    "FullGaussian",
    "NoisyAdam",
    "NoisyEKFAC",
    "NoisyKFAC",
    "Partial",
    "PointEstimate",
    "Posterior",
    "Prior",
    "Regression",
    "Samples",
    "StepInfo",
    "Vadam",
    "Variational",
    "Vprop",
    "WarmUp",
    "last_layer",
    "start_from",
]
