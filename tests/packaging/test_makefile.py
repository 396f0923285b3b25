"""`make` sets the environment up once, again when its inputs change or an installation was cut off, and from any folder.

A stand-in for the interpreter records what it is asked, so nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.installed import ROOT

STAND_IN = r"""#!/usr/bin/env bash
set -eu
case "$*" in
  "-c import sys; sys.exit(sys.version_info < (3, 10))") [ ! -e "$STATE/old" ] ;;
  "--version") echo "Python 3.8.1" ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> "$STATE/log" ;;
  "-m pip --version") ;;
  "-m pip install "*) [ -e .venv/.installing ]; echo "pip ${*: -1}" >> "$STATE/log"; [ ! -e "$STATE/fail" ] ;;
  *) echo "python $*" >> "$STATE/log" ;;
esac
"""


class Sandbox:
    """A folder whose name has a space, with the Makefile, what it reads, and the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.state = folder / "a check out", folder / "state"
        (self.tree / "tools").mkdir(parents=True)
        self.state.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools/setup_venv.sh"):
            shutil.copy2(ROOT / name, self.tree / name)
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make in the tree, as from a shell that knows nothing of the tests' own make."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        environment |= {"STATE": str(self.state), "PYTHON": str(self.python)}
        return subprocess.run(["make", *arguments], cwd=self.tree, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def log(self) -> list[str]:
        """What the stand-in was asked since the last call."""
        path = self.state / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_second_run_installs_nothing(sandbox: Sandbox) -> None:
    assert sandbox.make("test").returncode == 0
    assert sandbox.log() == ["venv", "pip .[all,dev]", "python -m pytest -n 2 --dist loadgroup"]
    assert sandbox.make("test").returncode == 0
    assert sandbox.log() == ["python -m pytest -n 2 --dist loadgroup"]


def test_developers_environment_serves_the_demo(sandbox: Sandbox) -> None:
    sandbox.make("test")
    sandbox.log()
    sandbox.make("demo")
    assert not [line for line in sandbox.log() if line.startswith(("venv", "pip"))]


def test_users_environment_is_extended_for_the_tests(sandbox: Sandbox) -> None:
    sandbox.make("demo")
    assert sandbox.log() == ["venv", "pip .[rl]"]
    sandbox.make("test")
    assert sandbox.log()[:1] == ["pip .[all,dev]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(sandbox: Sandbox, name: str) -> None:
    sandbox.make("test")
    sandbox.log()
    later = (sandbox.tree / ".venv" / ".installed-dev").stat().st_mtime + 10
    os.utime(sandbox.tree / name, (later, later))
    sandbox.make("test")
    assert sandbox.log()[:1] == ["pip .[all,dev]"]


def test_installation_that_was_cut_off_starts_again(sandbox: Sandbox) -> None:
    (sandbox.state / "fail").touch()
    done = sandbox.make("test")
    assert done.returncode != 0
    assert sandbox.log() == ["venv", "pip .[all,dev]"], "the tests must not run"
    (sandbox.state / "fail").unlink()
    half_copied = sandbox.tree / ".venv" / "half_copied"
    half_copied.touch()
    done = sandbox.make("test")
    assert done.returncode == 0
    assert "did not end" in done.stdout
    assert sandbox.log()[:2] == ["venv", "pip .[all,dev]"]
    assert not half_copied.exists()


def test_old_python_is_refused_before_anything_is_made(sandbox: Sandbox) -> None:
    (sandbox.state / "old").touch()
    done = sandbox.make("test")
    assert done.returncode != 0
    assert "needs Python 3.10 or newer" in done.stderr
    assert "Python 3.8.1" in done.stderr
    assert not (sandbox.tree / ".venv").exists()


def test_help_lists_every_target(sandbox: Sandbox) -> None:
    shown = {line.split()[0] for line in sandbox.make().stdout.splitlines()}
    assert {"demo", "test", "test-all", "lint", "types", "bench", "docs", "clean", "help"} <= shown
