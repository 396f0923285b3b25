"""Where the numbers of a run are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter

from natgrad_apps.runner.metrics import MetricsFile


class RunWriter(KVWriter):
    """Sends what SB3's logger dumps to ``metrics.csv`` and to TensorBoard.

    Args:
        metrics: The CSV file.
        folder: Folder of the TensorBoard events.
        from_step: Step after which older events are void, for a resumed run; None for a new one.
    """

    def __init__(self, metrics: MetricsFile, folder: Path, from_step: int | None) -> None:
        self.metrics = metrics
        self._events = SummaryWriter(str(folder), purge_step=None if from_step is None else from_step + 1)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one row; what is no number is left out."""
        numbers = {k: v for k, v in key_values.items() if isinstance(v, (int, float, np.number)) and not isinstance(v, bool)}
        plain = {k: int(v) if isinstance(v, (int, np.integer)) else float(v) for k, v in numbers.items()}
        self.metrics.write(step, plain)
        for name, value in plain.items():
            if "tensorboard" not in (key_excluded.get(name) or ()):
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Close both."""
        self.metrics.close()
        self._events.close()
