"""The version, read by the build without importing the package."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
