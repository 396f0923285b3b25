"""Sets that scikit-learn carries inside itself: no download."""

from __future__ import annotations

from typing import Any

import numpy as np

from natgrad_apps.bayes.data.table import Table
from natgrad_apps.errors import unknown_name

EMBEDDED = ("diabetes", "breast_cancer", "digits")


def load_embedded(name: str) -> Table:
    """One of scikit-learn's sets.

    Args:
        name: ``diabetes`` (regression, 442 x 10), ``breast_cancer`` (2 classes, 569 x 30) or ``digits`` (10 classes, 1797 x 64).

    Raises:
        ConfigError: There is no such set.
    """
    if name not in EMBEDDED:
        raise unknown_name("embedded data set", name, EMBEDDED)
    from sklearn import datasets  # noqa: PLC0415 - takes a second, and only these sets need it

    found: Any = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    classes = tuple(str(c) for c in getattr(found, "target_names", ())) if name != "diabetes" else ()
    return Table(
        name=name,
        x=np.asarray(found.data, dtype=np.float64),
        y=np.asarray(found.target, dtype=np.int64 if classes else np.float64),
        features=tuple(str(f) for f in found.feature_names),
        target="target",
        classes=classes,
        one_unit=name == "digits",
    )
