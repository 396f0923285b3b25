"""Console script ``natgrad-graph``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.graphs.compare_config import CompareConfig
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.posterior_config import UncertaintyConfig
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import Options, Verb, parse, read_config, verb_parser
from natgrad_apps.runner.command import run_command

C = TypeVar("C")
PROGRAM = "natgrad-graph"
KIND = "graphs"
DESCRIPTION = "Classification of nodes, links and graphs with natural gradients."
DEVICES = ("auto", "cpu", "cuda", "mps")


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
        "compare": _compare,
        "uncertainty": _uncertainty,
        "plot": _plot,
        "check": _check,
    }
    actions[options.verb](options)


def _verbs() -> dict[str, Verb]:
    preset = "YAML file, or the name of a preset such as cora"
    train = verb_parser(
        f"{PROGRAM} train --config FILE --out DIR [--KEY VALUE ...]\n       {PROGRAM} train --resume DIR",
        "Train a network and leave a run folder, or continue an interrupted run.",
        TrainConfig,
    )
    train.add_argument("--config", metavar="FILE", help=preset)
    train.add_argument("--out", metavar="DIR", help="run folder; it must not exist or be empty")
    train.add_argument("--resume", metavar="DIR", help="continue the run in this folder from its last checkpoint to its original end")
    train.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")

    evaluate = verb_parser(f"{PROGRAM} evaluate DIR [options]", "Measure a trained network; write evaluation.json and predictions.csv.")
    evaluate.add_argument("path", metavar="DIR", help="run folder or checkpoint")
    evaluate.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: that of the run)")
    evaluate.add_argument("--out", metavar="DIR", help="folder of the files (default: the folder given)")

    compare = verb_parser(
        f"{PROGRAM} compare --config FILE --out DIR [--KEY VALUE ...]\n       {PROGRAM} compare --resume DIR",
        "Tune the natural gradient and Adam by grids of one size, run both with the same seeds, and print means and paired differences; a "
        "finished training is never repeated.",
        CompareConfig,
    )
    compare.add_argument("--config", metavar="FILE", help=preset)
    compare.add_argument("--out", metavar="DIR", help="run folder; it must not exist or be empty")
    compare.add_argument("--resume", metavar="DIR", help="continue the comparison in this folder")
    compare.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")

    uncertainty = verb_parser(
        f"{PROGRAM} uncertainty --config FILE --out DIR [--KEY VALUE ...]\n       {PROGRAM} uncertainty --resume DIR",
        "Fit a posterior over the weights; leave calibrated probabilities, uncertainty and conformal sets of every node.",
        UncertaintyConfig,
    )
    uncertainty.add_argument("--config", metavar="FILE", help="YAML file, or the name of a preset such as cora_uncertainty")
    uncertainty.add_argument("--out", metavar="DIR", help="run folder; it must not exist or be empty")
    uncertainty.add_argument("--resume", metavar="DIR", help="continue the run in this folder from its last checkpoint")
    uncertainty.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")

    plot = verb_parser(f"{PROGRAM} plot DIR [DIR ...] [--out FILE]", "Draw accuracy and loss of runs; of one run also its nodes by class.")
    plot.add_argument("paths", nargs="+", metavar="DIR", help="run folders")
    plot.add_argument("--out", metavar="FILE", help="PNG file of the curves (default: figures/curves.png, or curves.png for several)")

    check = verb_parser(
        f"{PROGRAM} check --config FILE [--KEY VALUE ...]",
        "Check a configuration, load its graph, try a few epochs, and report blocks and cost. Writes nothing.",
        TrainConfig,
    )
    check.add_argument("--config", metavar="FILE", help=preset)
    return {
        "train": Verb(train, "train a network, or continue a run", TrainConfig),
        "evaluate": Verb(evaluate, "measure a trained network"),
        "compare": Verb(compare, "paired seeds against a tuned Adam", CompareConfig),
        "uncertainty": Verb(uncertainty, "fit a posterior; calibrated probabilities, uncertainty, sets of classes", UncertaintyConfig),
        "plot": Verb(plot, "draw learning curves and nodes"),
        "check": Verb(check, "check a configuration and report blocks and cost", TrainConfig),
    }


def _train(options: Options) -> None:
    from natgrad_apps.graphs import training  # noqa: PLC0415 - seconds

    _start_or_resume(options, TrainConfig, training.train, training.resume)


def _uncertainty(options: Options) -> None:
    from natgrad_apps.graphs import assessing  # noqa: PLC0415 - seconds

    _start_or_resume(options, UncertaintyConfig, assessing.assess, assessing.resume)


def _start_or_resume(options: Options, kind: type[C], start: Callable[[C, Path], None], resume: Callable[[Path], None]) -> None:
    run, out = options.text("resume"), options.text("out")
    if run is not None:
        given = [name for name in ("config", "out") if options.text(name) is not None] + list(options.settings)
        if given or options.flag("print_config"):
            raise ConfigError(
                f"--resume takes every setting from {run}/config.yaml; drop {', '.join('--' + n for n in given) or '--print_config'}, "
                f"or start a new run with --config {run}/config.yaml --out NEW"
            )
        resume(Path(run))
        return
    config = read_config(kind, KIND, options.text("config"), options)
    if options.flag("print_config"):
        sys.stdout.write(schema.to_yaml(config))
        return
    start(config, _folder(out))


def _evaluate(options: Options) -> None:
    from natgrad_apps.graphs import assessed, evaluating  # noqa: PLC0415

    path, out, device = options.text("path"), options.text("out"), options.text("device")
    assert path is not None  # the parser requires it
    if device is not None and device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    evaluate = assessed.evaluate if assessed.is_assessment(Path(path)) else evaluating.evaluate
    evaluate(Path(path), None if out is None else Path(out), device)


def _compare(options: Options) -> None:
    from natgrad_apps.graphs import comparing  # noqa: PLC0415 - seconds

    _start_or_resume(options, CompareConfig, comparing.compare, comparing.resume)


def _plot(options: Options) -> None:
    from natgrad_apps.graphs import assessed, evaluating, plotting  # noqa: PLC0415

    paths, out = options.paths("paths"), options.text("out")
    posteriors = [path for path in paths if assessed.is_assessment(path)]
    if posteriors:
        if len(paths) > 1 or out is not None:
            raise ConfigError(
                f"{str(posteriors[0])!r} is a run of uncertainty, which has pictures of its own: plot it alone, without --out"
            )
        for picture in assessed.open_report(paths[0]).pictures(paths[0] / "figures"):
            print(picture)
        return
    default = paths[0] / "figures" / "curves.png" if len(paths) == 1 else Path("curves.png")
    target = default if out is None else Path(out)
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--out {str(target)!r} must end in .png")
    print(plotting.plot_curves(paths, target))
    if len(paths) == 1:
        trainer, _ = evaluating.open_checkpoint(paths[0])
        for picture in plotting.plot_predictions(trainer, target.with_name("embedding.png")):
            print(picture)


def _check(options: Options) -> None:
    config = read_config(TrainConfig, KIND, options.text("config"), options)
    from natgrad_apps.graphs.checking import check  # noqa: PLC0415

    print(check(config))


def _folder(out: str | None) -> Path:
    if out is None:
        raise ConfigError("--out DIR is needed: the folder that the run is kept in")
    return Path(out)


if __name__ == "__main__":
    sys.exit(main())
