"""The verbs ``evaluate``, ``predict`` and ``plot``: what a fitted posterior says of old and new rows."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import natgrad_apps
from natgrad_apps.bayes import snapshot
from natgrad_apps.bayes.config import ForeignConfig
from natgrad_apps.bayes.data import read_frame, read_inputs
from natgrad_apps.bayes.fitted import Fitted, evaluate
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.foreign import describe, detection, foreign_inputs, uncertainty
from natgrad_apps.bayes.plotting import plot_run
from natgrad_apps.bayes.prediction import Kind, Prediction, RegressionPrediction
from natgrad_apps.bayes.run_data import read_labelled, resolve_device
from natgrad_apps.bayes.training import PACKAGES, PROGRAM, open_fit
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic, provenance
from natgrad_apps.runner.folder import require_run


@dataclass(frozen=True)
class Request:
    """What to look at, and how.

    Attributes:
        path: Run folder or checkpoint.
        data: Table of new rows; None for the run's own test rows.
        samples: Weight samples; None for those of the run.
        kind: Of the predictions, sampled or linearized; None for that of the run.
        device: Where the network lives; None for the run's device.
        out: Folder of ``evaluation.json``, or file of the predictions; None for the run folder.
    """

    path: Path
    data: Path | None = None
    samples: int | None = None
    kind: Kind | None = None
    device: str | None = None
    out: Path | None = None


def evaluate_checkpoint(request: Request) -> None:
    """Measure, print, and write ``evaluation.json``.

    Args:
        request: What and how.

    Raises:
        ConfigError: There is no intact checkpoint, or the rows cannot be used.
    """
    owner, saved = snapshot.find(request.path)
    record: dict[str, Any] = {
        "runner": PROGRAM,
        "checkpoint": saved.folder.name,
        "data": None if request.data is None else str(request.data),
    }
    if request.data is None:
        fit, foreign = open_trained(saved.files, request.device)
        result, device, seed = fit.evaluate(request.samples, request.kind), fit.device, fit.seed
        own = uncertainty(fit.predict(fit.table.x[fit.split.test], request.samples, request.kind))
        outside = uncertainty(fit.predict(foreign_inputs(fit, foreign), request.samples, request.kind))
        record["foreign"] = {"inputs": describe(foreign), **detection(own, outside)}
        rows = len(own)
    else:
        fitted = _open_fitted(saved.files, request.device)
        x, y = read_labelled(request.data, fitted.schema)
        result, device, seed = evaluate(fitted.predict(x, request.samples, request.kind), y.to(fitted.device)), fitted.device, fitted.seed
        rows = len(y)
    record |= {
        "test": result,
        "rows": rows,
        "seeds": {"run": seed},
        "packages": provenance.package_versions(PACKAGES),
        "source": provenance.git_commit(Path(natgrad_apps.__file__)),
        "machine": provenance.machine(device),
    }
    print("  ".join(f"{name} {value:.4g}" for name, value in result.items()) + f"   rows {rows}   (posterior of step {saved.step:,})")
    if "foreign" in record:
        print("foreign inputs, {inputs}: auroc {auroc:.3f}  fpr95 {fpr95:.3f}".format(**record["foreign"]))
    _write(request.out or owner, "evaluation.json", record)


def predict_rows(request: Request) -> None:
    """Predictions of a table's rows as CSV: mean and interval, or probabilities, with the parts of the uncertainty.

    Args:
        request: What and how.

    Raises:
        ConfigError: There is no intact checkpoint, or the rows cannot be used.
    """
    if request.data is None:
        raise ConfigError("--data FILE is needed: the table whose rows are to be predicted")
    owner, saved = snapshot.find(request.path)
    fitted = _open_fitted(saved.files, request.device)
    found = fitted.predict(read_inputs(request.data, fitted.schema.features), request.samples, request.kind)
    target = request.out or owner / "predictions.csv"
    if target.suffix.lower() != ".csv":
        raise ConfigError(f"--out {str(target)!r} must end in .csv")
    frame = read_frame(request.data)[[]].assign(**columns(found, fitted))
    buffer = io.StringIO()
    frame.to_csv(buffer, index_label="row")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(target, buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    print(f"written: {target} ({len(frame)} rows)")


def columns(found: Prediction, fitted: Fitted) -> dict[str, Any]:
    """Predictions by name of the column.

    Args:
        found: Predictions.
        fitted: What made them.
    """
    if isinstance(found, RegressionPrediction):
        interval = fitted.recipe.prediction.interval
        values = {
            "mean": found.mean,
            "std": found.std,
            "aleatoric_std": found.aleatoric.sqrt(),
            "epistemic_std": found.epistemic.sqrt(),
            "lower": found.quantile((1 - interval) / 2),
            "upper": found.quantile((1 + interval) / 2),
        }
        return {name: value.numpy(force=True) for name, value in values.items()}
    names = fitted.schema.classes
    result: dict[str, Any] = {"class": [names[k] for k in found.mean.argmax(1).tolist()]}
    result |= {f"probability_{name}": found.mean[:, k].numpy(force=True) for k, name in enumerate(names)}
    parts = {"entropy": found.entropy, "aleatoric": found.aleatoric, "epistemic": found.epistemic}
    return result | {name: value.numpy(force=True) for name, value in parts.items()}


def plot_folder(path: Path) -> list[Path]:
    """Draw the pictures of a run anew.

    Raises:
        ConfigError: It is no run folder with a checkpoint.
    """
    require_run(path)
    _, saved = snapshot.find(path)
    return plot_run(*open_trained(saved.files), path)


def open_trained(files: Any, device: str | None = None) -> tuple[Fit, ForeignConfig]:
    """The training of a checkpoint, with its data, and what is foreign to them.

    Args:
        files: Of the checkpoint.
        device: Where the network lives; None for the run's device.

    Raises:
        ConfigError: The checkpoint or its data cannot be used.
    """
    config = snapshot.read_config(files)
    if device is not None:
        config = dataclasses.replace(config, device=resolve_device(device))  # type: ignore[arg-type]
    fit = open_fit(config)
    snapshot.restore(files, fit)
    return fit, config.foreign


def _open_fitted(files: Any, device: str | None) -> Fitted:
    chosen = resolve_device(device or snapshot.read_config(files).device)
    return snapshot.open_fitted(files, chosen)[0]


def _write(folder: Path, name: str, record: object) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder / name, record)
    except OSError as error:
        raise ConfigError(f"{str(folder / name)!r} cannot be written: {error.strerror}") from error
    print(f"written: {folder / name}")
