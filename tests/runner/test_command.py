"""Exit codes, options and signals of the shared command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import interrupts
from natgrad_apps.runner.arguments import Options, Verb, find_config, parse, read_config, verb_parser
from natgrad_apps.runner.command import RunFailedError, run_command
from natgrad_apps.runner.hints import Range
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.progress import ProgressView


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        n_steps: How many.
        extra: Whatever.
    """

    n_steps: Annotated[int, Range(low=1)] = 5
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A configuration."""

    part: Part = field(default_factory=Part)
    seed: int = 0


def verbs() -> dict[str, Verb]:
    go = verb_parser("prog go", "Go.", Config)
    go.add_argument("--config")
    go.add_argument("--fast", action="store_true")
    stop = verb_parser("prog stop", "Stop.")
    stop.add_argument("paths", nargs="+")
    show = verb_parser("prog show", "Show.")
    show.add_argument("path", metavar="DIR")
    return {"go": Verb(go, "go", Config), "stop": Verb(stop, "stop"), "show": Verb(show, "show")}


def split(*words: str) -> Options:
    return parse("prog", "A program.", verbs(), words)


def raiser(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("bad key"), 2, "prog: error: bad key"),
        (InterruptedRunError("prog --resume x"), 130, "prog --resume x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RunFailedError("it broke"), 1, "prog: failed: it broke"),
        (RuntimeError("boom"), 1, "RuntimeError: boom"),
    ],
)
def test_exit_codes(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("prog", raiser(error)) == code
    captured = capsys.readouterr()
    assert text in captured.err
    # Only a failure without a log shows where it happened.
    assert ("Traceback" in captured.err) == isinstance(error, RuntimeError)
    assert not captured.out


def test_the_shared_parts_import_no_application() -> None:
    """In a process of its own: this one has imported SB3 for other tests."""
    code = (
        "import importlib, pkgutil, sys, natgrad_apps.runner as r\n"
        "names = [m.name for m in pkgutil.iter_modules(r.__path__)]\n"
        "[importlib.import_module('natgrad_apps.runner.' + n) for n in names]\n"
        "print(len(names), sorted(set(sys.modules) & {'stable_baselines3', 'gymnasium', 'pyro', 'torch_geometric'}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    count, _, found = done.stdout.partition(" ")
    assert int(count) > 10
    assert found.strip() == "[]"


def test_success_is_zero() -> None:
    assert run_command("prog", lambda: None) == 0


def test_settings_and_options_are_separated() -> None:
    options = split("go", "--part.n_steps", "7", "--fast", "--part.extra.a", "1e-3", "--part.extra.b=x", "--config", "c.yaml")
    assert dict(options.settings) == {"part.n_steps": "7", "part.extra.a": "1e-3", "part.extra.b": "x"}
    assert options.flag("fast")
    assert options.text("config") == "c.yaml"
    assert read_config(Config, "agents", None, options) == Config(Part(7, {"a": 0.001, "b": "x"}))


def test_positional_arguments() -> None:
    assert split("stop", "a", "b").paths("paths") == [Path("a"), Path("b")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a verb is needed; available: go, stop, show"),
        (["goo"], "unknown verb 'goo'; available: go, stop, show; did you mean 'go'"),
        (["go", "--n_steps", "3"], "unknown option --n_steps of 'go'; did you mean '--part.n_steps'"),
        (["go", "--part.n_stepz=3"], "did you mean '--part.n_steps'"),
        (["go", "--part.n_steps"], "expected one argument"),
        (["go", "--part.extra.a"], "option --part.extra.a needs a value"),
        (["go", "stray"], "stray"),
        (["stop"], "paths"),
        (["show"], "arguments are required: DIR;"),
    ],
)
def test_bad_command_lines(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(*words)


def test_the_file_overrides_defaults_and_the_command_line_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("part: {n_steps: 8, extra: {a: 1}}\nseed: 4\n")
    config = read_config(Config, "agents", str(file), split("go", "--seed", "9", "--part.extra.b", "2"))
    assert config == Config(Part(8, {"a": 1, "b": 2}), 9)


def test_faults_name_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("part:\n  n_steps: 0\n")
    with pytest.raises(ConfigError, match=r"part.n_steps \(c.yaml:2\)"):
        read_config(Config, "agents", str(file), split("go"))
    with pytest.raises(ConfigError, match=r"part.n_steps \(command line\)"):
        read_config(Config, "agents", str(file), split("go", "--part.n_steps", "-1"))


def test_configurations_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        find_config("agents", str(tmp_path))
    with pytest.raises(ConfigError, match=r"neither a file nor a preset; presets: .*did you mean 'cartpole'"):
        find_config("agents", "cartpol")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(Config, "agents", str(binary), split("go"))


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        split("go", "--help")
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--part.n_steps VALUE How many. Legal: a whole number >= 1 (default: 5)" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with InterruptFlag() as flag:
        assert not flag.is_set
        os.kill(os.getpid(), number)
        assert flag.is_set
        assert flag.name == number.name
    assert signal.getsignal(number) is before


def test_the_second_interrupt_is_immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    with InterruptFlag() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # an echo
        assert flag.name == "SIGTERM"
        monkeypatch.setattr(interrupts, "ECHO_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with ProgressView("run", 100, 0, lines.append) as view:
        view.update(10, {"return": "1.50"})
        view.update(20, {"return": "2.50"})  # too soon after the last line
        view.update(100, {"return": "3.50"}, last=True)
    assert lines == ["run  10/100 steps  return 1.50", "run  100/100 steps  return 3.50"]
    assert capsys.readouterr().err.splitlines() == lines
