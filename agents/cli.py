"""Console script ``natgrad-acktr``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import Options, Verb, parse, read_config, verb_parser
from natgrad_apps.runner.command import run_command
from natgrad_apps.runner.folder import CONFIG
from natgrad_apps.runner.hints import Range

KIND = "agents"
DESCRIPTION = "Train and evaluate ACKTR agents: natural-gradient actor-critic with a KL trust region."
ZOO_HELP = "hyperparameters in the form of the RL Zoo, of which the entry of --environment.id is taken, over those of --config"
WORKERS = 2
_COUNT = Annotated[int, Range(low=1)]
_SEED = Annotated[int, Range(low=0, high=2**31 - 1)]


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
    actions: dict[str, Callable[[Options], None]] = {"train": _train, "evaluate": _evaluate, "plot": _plot, "check": _check}
    actions[options.verb](options)


def _verbs() -> dict[str, Verb]:
    train = verb_parser(
        f"{PROGRAM} train --config FILE --out DIR [--seeds N] [--KEY VALUE ...]\n       {PROGRAM} train --resume DIR",
        "Train an agent and leave a run folder, or continue an interrupted run.",
        TrainConfig,
    )
    train.add_argument("--config", metavar="FILE", help="YAML file, or the name of a preset such as cartpole")
    train.add_argument("--zoo", metavar="FILE", help=ZOO_HELP)
    train.add_argument("--out", metavar="DIR", help="run folder; it must not exist or be empty")
    train.add_argument("--resume", metavar="DIR", help="continue the run in this folder from its last checkpoint to its original end")
    train.add_argument("--seeds", metavar="N", help="train N seeds, from the configuration's on, each in a folder seed_K of --out")
    train.add_argument("--workers", metavar="N", help=f"with --seeds, or resuming them: runs side by side (default: {WORKERS})")
    train.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")

    evaluate = verb_parser(f"{PROGRAM} evaluate DIR [--episodes N] [options]", "Run episodes with a trained agent; write evaluation.json.")
    evaluate.add_argument("path", metavar="DIR", help="run folder or checkpoint")
    evaluate.add_argument("--episodes", metavar="N", help="number of episodes (default: evaluation.final_episodes of the run)")
    evaluate.add_argument("--checkpoint", metavar="last|best", help="which checkpoint of a run folder (default: last)")
    evaluate.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the most probable one")
    evaluate.add_argument(
        "--seed", metavar="N", help="seed of first states and of random actions (default: that of the run's final evaluation)"
    )
    evaluate.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: that of the run)")
    evaluate.add_argument("--video", metavar="N", help="film N more episodes, as mp4 files in the folder videos beside evaluation.json")
    evaluate.add_argument("--out", metavar="DIR", help="folder of evaluation.json (default: the run folder)")

    plot = verb_parser(
        f"{PROGRAM} plot DIR [DIR ...] [--out FILE]",
        "Draw learning curves; runs that differ in their seed only give one curve with a bootstrap band.",
    )
    plot.add_argument("paths", nargs="+", metavar="DIR", help="run folders")
    plot.add_argument(
        "--out", metavar="FILE", help="PNG file (default: figures/learning_curve.png of one run, learning_curves.png here for several)"
    )

    check = verb_parser(
        f"{PROGRAM} check --config FILE [--KEY VALUE ...]",
        "Check a configuration, make its environment and agent, and report layers and cost. Writes nothing.",
        TrainConfig,
    )
    check.add_argument("--config", metavar="FILE", help="YAML file, or the name of a preset such as cartpole")
    check.add_argument("--zoo", metavar="FILE", help=ZOO_HELP)
    return {
        "train": Verb(train, "train an agent, or continue a run", TrainConfig),
        "evaluate": Verb(evaluate, "run episodes with a trained agent"),
        "plot": Verb(plot, "draw learning curves"),
        "check": Verb(check, "check a configuration and report layers and cost", TrainConfig),
    }


def _train(options: Options) -> None:
    run, out = options.text("resume"), options.text("out")
    if os.environ.get("WORLD_SIZE", "1") != "1" and (options.text("seeds") or (run is not None and _many().is_group(Path(run)))):
        raise ConfigError("--seeds starts its own processes; run it without torchrun")
    seeds, workers = options.number("seeds", _COUNT), options.number("workers", _COUNT)
    if workers is not None and (seeds is None if run is None else Path(run, CONFIG).exists()):
        raise ConfigError(f"--workers is the number of runs side by side; {'give --seeds N too' if run is None else f'{run} is one run'}")
    if run is not None:
        given = [name for name in ("config", "zoo", "out", "seeds") if options.text(name) is not None] + list(options.settings)
        if given or options.flag("print_config"):
            raise ConfigError(
                f"--resume takes every setting from {run}/config.yaml; drop {', '.join('--' + n for n in given) or '--print_config'}, "
                f"or start a new run with --config {run}/config.yaml --out NEW"
            )
        if not _many().is_group(Path(run)):
            _training().resume(Path(run))
        else:
            _many().resume_seeds(Path(run), workers or WORKERS)
        return
    config = _config(options)
    if options.flag("print_config"):
        sys.stdout.write(schema.to_yaml(config))
        return
    if out is None:
        raise ConfigError("--out DIR is needed: the folder that the run is kept in")
    if seeds is None:
        _training().train(config, Path(out))
    else:
        _many().train_seeds(config, Path(out), seeds, workers or WORKERS)


def _config(options: Options) -> TrainConfig:
    zoo, env_id = options.text("zoo"), options.settings.get("environment.id")
    above = None
    if zoo is not None:
        from natgrad_apps.agents.zoo import read_zoo  # noqa: PLC0415

        if env_id is None:
            raise ConfigError(f"--zoo {zoo!r} holds settings by environment: say which with --environment.id")
        entry = read_zoo(Path(zoo), env_id)
        _warn(entry.warning)
        above = entry.settings
    config = read_config(TrainConfig, KIND, options.text("config"), options, above)
    _warn(config.agent.doubt())
    return config


def _warn(text: str) -> None:
    # Of several processes one speaks.
    if text and os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: warning: {text}", file=sys.stderr, flush=True)


def _training() -> ModuleType:
    # SB3 takes seconds to load, so nothing that can go wrong before is made to wait for it.
    from natgrad_apps.agents import training  # noqa: PLC0415

    return training


def _many() -> ModuleType:
    from natgrad_apps.agents import many  # noqa: PLC0415

    return many


def _evaluate(options: Options) -> None:
    from natgrad_apps.agents.evaluating import Request, evaluate_checkpoint  # noqa: PLC0415

    path, out = options.text("path"), options.text("out")
    assert path is not None  # the parser requires it
    which = options.text("checkpoint") or "last"
    if which not in {"last", "best"}:
        raise ConfigError(f"--checkpoint is last or best, got {which!r}")
    request = Request(
        path=Path(path),
        which=which,
        episodes=options.number("episodes", _COUNT),
        seed=options.number("seed", _SEED),
        device=options.text("device"),
        stochastic=options.flag("stochastic"),
        out=None if out is None else Path(out),
        videos=options.number("video", _COUNT) or 0,
    )
    evaluate_checkpoint(request)


def _plot(options: Options) -> None:
    from natgrad_apps.agents.plotting import plot_runs  # noqa: PLC0415

    paths, out = options.paths("paths"), options.text("out")
    default = paths[0] / "figures" / "learning_curve.png" if len(paths) == 1 else Path("learning_curves.png")
    target = default if out is None else Path(out)
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--out {str(target)!r} must end in .png")
    print(plot_runs(paths, target))


def _check(options: Options) -> None:
    config = _config(options)
    from natgrad_apps.agents.checking import check  # noqa: PLC0415

    print(check(config))


if __name__ == "__main__":
    sys.exit(main())
