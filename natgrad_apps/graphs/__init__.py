"""Natural gradients for graph networks of torch-geometric. Importing this package registers the layers of torch-geometric with the core."""

from natgrad_apps.graphs.coverage import Covered, coverage, describe
from natgrad_apps.graphs.layers import factorization

__all__ = ["Covered", "coverage", "describe", "factorization"]
