"""Console script ``natgrad-bayes``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from natgrad_apps.bayes.config import TrainConfig
from natgrad_apps.bayes.study_config import ActiveConfig, UciConfig
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import Options, Verb, parse, read_config, verb_parser
from natgrad_apps.runner.command import run_command
from natgrad_apps.runner.hints import Range

PROGRAM = "natgrad-bayes"
KIND = "bayes"
DESCRIPTION = "Fit Bayesian neural networks by natural-gradient variational inference; predict with calibrated uncertainty."
C = TypeVar("C", TrainConfig, UciConfig, ActiveConfig)
_COUNT = Annotated[int, Range(low=1)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Words after the program's name; None takes them from `sys.argv`.

    Returns:
        The exit code: 0 done, 1 failure, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(PROGRAM, lambda: _run(words))


def _run(words: Sequence[str]) -> None:
    options = parse(PROGRAM, DESCRIPTION, _verbs(), words)
    actions: dict[str, Callable[[Options], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "plot": _plot,
        "check": _check,
        "uci": _uci,
        "active": _active,
    }
    actions[options.verb](options)


def _verbs() -> dict[str, Verb]:
    train = verb_parser(
        f"{PROGRAM} train [--config FILE] --dataset NAME|FILE --out DIR [--KEY VALUE ...]\n       {PROGRAM} train --resume DIR",
        "Fit a posterior and leave a run folder, or continue an interrupted run.",
        TrainConfig,
    )
    evaluate = verb_parser(f"{PROGRAM} evaluate DIR [--data FILE] [options]", "Measure a fitted posterior; write evaluation.json.")
    predict = verb_parser(f"{PROGRAM} predict DIR --data FILE [--out FILE] [options]", "Predict the rows of a table; write a CSV file.")
    plot = verb_parser(f"{PROGRAM} plot DIR", "Draw the pictures of a run anew.")
    check = verb_parser(
        f"{PROGRAM} check [--config FILE] [--KEY VALUE ...]",
        "Check a configuration, try it, and report sizes and cost. Writes nothing.",
        TrainConfig,
    )
    uci = verb_parser(
        f"{PROGRAM} uci --dataset NAME --method NAME --splits 0-19 --out DIR [--KEY VALUE ...]\n       {PROGRAM} uci --resume DIR",
        "Train and test on published splits of a UCI set; a finished split is never trained again.",
        UciConfig,
    )
    active = verb_parser(
        f"{PROGRAM} active --dataset NAME|FILE --out DIR [--KEY VALUE ...]\n       {PROGRAM} active --resume DIR",
        "Ask for labels one after another, by what the model learns from them and at random; a finished curve is never made again.",
        ActiveConfig,
    )
    for parser in (train, check, uci, active):
        parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of a preset")
    for parser in (train, uci, active):
        parser.add_argument("--out", metavar="DIR", help="run folder; it must not exist or be empty")
        parser.add_argument("--resume", metavar="DIR", help="continue the run in this folder to its original end")
        parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    for parser in (evaluate, predict, plot):
        parser.add_argument("path", metavar="DIR", help="run folder or checkpoint")
    evaluate.add_argument("--data", metavar="FILE", help="table with targets (default: the test rows of the run)")
    evaluate.add_argument("--out", metavar="DIR", help="folder of evaluation.json (default: the run folder)")
    predict.add_argument("--data", metavar="FILE", help="table of inputs, with the columns of the training data")
    predict.add_argument("--out", metavar="FILE", help="CSV file (default: predictions.csv in the run folder)")
    for parser in (evaluate, predict):
        parser.add_argument("--samples", metavar="N", help="weight samples (default: prediction.num_samples of the run)")
        parser.add_argument("--kind", metavar="NAME", help="sampled or linearized predictions (default: prediction.kind of the run)")
        parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: that of the run)")
    return {
        "train": Verb(train, "fit a posterior, or continue a run", TrainConfig),
        "evaluate": Verb(evaluate, "measure a fitted posterior"),
        "predict": Verb(predict, "predict the rows of a table"),
        "plot": Verb(plot, "draw pictures of a run"),
        "check": Verb(check, "check a configuration and report its cost", TrainConfig),
        "uci": Verb(uci, "published splits of a UCI set", UciConfig),
        "active": Verb(active, "learning curves with labels that the model asks for", ActiveConfig),
    }


def _start(options: Options, cls: type[C]) -> tuple[C, Path] | None:
    """Configuration and folder of a new run; None if all was printed."""
    config: C = read_config(cls, KIND, options.text("config"), options)
    if options.flag("print_config"):
        sys.stdout.write(schema.to_yaml(config))
        return None
    out = options.text("out")
    if out is None:
        raise ConfigError("--out DIR is needed: the folder that the run is kept in")
    return config, Path(out)


def _resumed(options: Options) -> Path | None:
    """The folder of ``--resume``, which stands alone."""
    run = options.text("resume")
    if run is None:
        return None
    given = [name for name in ("config", "out") if options.text(name) is not None] + list(options.settings)
    given += ["print_config"] if options.flag("print_config") else []
    if given:
        raise ConfigError(
            f"--resume takes every setting from {run}/config.yaml; drop {', '.join('--' + n for n in given)}, "
            f"or start a new run with --config {run}/config.yaml --out NEW"
        )
    return Path(run)


def _train(options: Options) -> None:
    path = _resumed(options)
    started = None if path is not None else _start(options, TrainConfig)
    if path is None and started is None:
        return
    # matplotlib and TensorBoard take seconds to load, so nothing that can go wrong before is made to wait for them.
    from natgrad_apps.bayes import training  # noqa: PLC0415

    if path is not None:
        training.resume(path)
    elif started is not None:
        training.train(*started)


def _uci(options: Options) -> None:
    path = _resumed(options)
    started = None if path is not None else _start(options, UciConfig)
    if path is None and started is None:
        return
    from natgrad_apps.bayes import uci  # noqa: PLC0415

    if path is not None:
        uci.resume_uci(path)
    elif started is not None:
        uci.run_uci(*started)


def _active(options: Options) -> None:
    path = _resumed(options)
    started = None if path is not None else _start(options, ActiveConfig)
    if path is None and started is None:
        return
    from natgrad_apps.bayes import active  # noqa: PLC0415

    if path is not None:
        active.resume_active(path)
    elif started is not None:
        active.run_active(*started)


def _evaluate(options: Options) -> None:
    from natgrad_apps.bayes import evaluating  # noqa: PLC0415

    evaluating.evaluate_checkpoint(_request(options, evaluating.Request))


def _predict(options: Options) -> None:
    from natgrad_apps.bayes import evaluating  # noqa: PLC0415

    evaluating.predict_rows(_request(options, evaluating.Request))


def _plot(options: Options) -> None:
    from natgrad_apps.bayes.evaluating import plot_folder  # noqa: PLC0415

    path = options.text("path")
    assert path is not None  # the parser requires it
    for picture in plot_folder(Path(path)):
        print(picture)


def _check(options: Options) -> None:
    config = read_config(TrainConfig, KIND, options.text("config"), options)
    from natgrad_apps.bayes.checking import check  # noqa: PLC0415

    print(check(config))


R = TypeVar("R")


def _request(options: Options, cls: Callable[..., R]) -> R:
    path, data, out = options.text("path"), options.text("data"), options.text("out")
    assert path is not None  # the parser requires it
    return cls(
        path=Path(path),
        data=None if data is None else Path(data),
        samples=options.number("samples", _COUNT),
        kind=options.text("kind"),
        device=options.text("device"),
        out=None if out is None else Path(out),
    )


if __name__ == "__main__":
    sys.exit(main())
