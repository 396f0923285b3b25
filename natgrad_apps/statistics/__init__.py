"""Capture of layer inputs and output gradients, the Fisher estimate, and the moments of a batch."""

from natgrad_apps.statistics.capture import Capture
from natgrad_apps.statistics.fisher import Fisher, Subsample
from natgrad_apps.statistics.moments import LayerStatistics, ParameterStatistics, Statistics

__all__ = ["Capture", "Fisher", "LayerStatistics", "ParameterStatistics", "Statistics", "Subsample"]
