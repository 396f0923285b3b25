"""Build the package and install it into environments away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the build reads.
COPIED = ("natgrad_apps", "agents", "bayes", "configs", "tests", "docs", "benchmarks", "tools")


@dataclass(frozen=True)
class Installation:
    """An environment with the package in it.

    Attributes:
        python: Its interpreter; every other distribution is that of the tests' own environment.
        package: Folder from which it must import `natgrad_apps`.
        elsewhere: An empty folder, in which nothing can be imported by accident.
    """

    python: Path
    package: Path
    elsewhere: Path

    def run(self, *arguments: str, check: bool = True, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run the interpreter in the empty folder, with no path of the tests' own process.

        Args:
            arguments: Its command line.
            check: Whether a failure fails the test, with what was printed.
            timeout: In seconds.
        """
        return self.execute(self.python, *arguments, check=check, timeout=timeout)

    def execute(self, program: Path, *arguments: str, check: bool = True, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a program in the same way."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        line = [str(program), *arguments]
        done = subprocess.run(line, cwd=self.elsewhere, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        if check:
            assert done.returncode == 0, f"{line} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def copy_of_checkout(target: Path) -> Path:
    """Copy what a build reads, links as links, so that it leaves nothing behind in the checkout."""
    target.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, target / path.name)
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def empty_environment(folder: Path) -> Path:
    """Interpreter of a new environment that sees the distributions of this one, but not an editable installation in it."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Lines of a .pth file are added to the path; the .pth files of the folder that is added are not read.
    Path(where, "tests_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def pip_install(python: Path, *what: str) -> None:
    """Install into the environment of `python` with the tests' own pip, offline."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run([*command, *what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Build:
    """The two archives and the tree from which they were made."""

    tree: Path
    sdist: Path
    wheel: Path
