"""Natural-gradient learning: one K-FAC core for optimization, reinforcement learning, Bayesian and graph learning."""

from __future__ import annotations

from natgrad_apps._version import __version__
from natgrad_apps.curvature.diagonal import Diagonal
from natgrad_apps.curvature.ekfac import EKFAC
from natgrad_apps.curvature.exact import Exact
from natgrad_apps.curvature.gram_kfac import GramKFAC
from natgrad_apps.curvature.kfac import KFAC
from natgrad_apps.damping.levenberg_marquardt import LevenbergMarquardt
from natgrad_apps.damping.tikhonov import FactoredTikhonov, Tikhonov
from natgrad_apps.optim import NaturalGradient
from natgrad_apps.preconditioner import Preconditioner
from natgrad_apps.refresh.periodic import Periodic, Staggered
from natgrad_apps.statistics.fisher import Fisher, Subsample
from natgrad_apps.steps.kl_clip import KLClip
from natgrad_apps.steps.kl_trust_region import KLTrustRegion
from natgrad_apps.steps.plain import Plain
from natgrad_apps.types import Info

__all__ = [
    "EKFAC",
    "KFAC",
    "Diagonal",
    "Exact",
    "FactoredTikhonov",
    "Fisher",
    "GramKFAC",
    "Info",
    "KLClip",
    "KLTrustRegion",
    "LevenbergMarquardt",
    "NaturalGradient",
    "Periodic",
    "Plain",
    "Preconditioner",
    "Staggered",
    "Subsample",
    "Tikhonov",
    "__version__",
]
