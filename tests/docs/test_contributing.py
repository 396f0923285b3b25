"""The example of CONTRIBUTING.md is true: its files, and no other edit, make an approximation that passes the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import FENCE, ROOT

pytestmark = pytest.mark.xdist_group("contributing")

PATHS = (
    "natgrad_apps/curvature/isotropic.py",
    "configs/curvature/isotropic.yaml",
    "tests/reference/test_isotropic.py",
    "docs/methods/isotropic.md",
)
HEADING = re.compile(r"^### \d\. .*: `(?P<path>[\w/.]+)`$")


def listings(text: str) -> dict[str, str]:
    """The first block under each heading that names a file."""
    found: dict[str, str] = {}
    path: str | None = None
    code: list[str] | None = None
    for line in text.splitlines():
        if code is not None:
            if line == "```":
                assert path is not None
                found.setdefault(path, "\n".join(code) + "\n")
                path = code = None
            else:
                code.append(line)
        elif heading := HEADING.match(line):
            path = heading["path"]
        elif path is not None and FENCE.match(line):
            code = []
    return found


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the files of the example in it."""
    tree = tmp_path_factory.mktemp("extended")
    for name in ("natgrad_apps", "configs", "tests", "agents"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tree)
    for name in PATHS[:3]:
        (tree / name).write_text(listings((ROOT / "CONTRIBUTING.md").read_text())[name])
    return tree


def run_checked(tree: Path, *module: str) -> str:
    """Run a Python module in the tree, whose package hides an installed one."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_example_names_its_files() -> None:
    assert tuple(listings((ROOT / "CONTRIBUTING.md").read_text())) == PATHS


def test_example_passes_contract_and_reference_tests(extended: Path) -> None:
    output = run_checked(extended, "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", "isotropic", "tests/contract", PATHS[2])
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) > 20, "the contract tests did not find the new curvature"


def test_example_is_in_the_style_of_the_project(extended: Path) -> None:
    files = [name for name in PATHS if name.endswith(".py")]
    run_checked(extended, "ruff", "check", "--no-cache", *files)
    run_checked(extended, "ruff", "format", "--no-cache", "--check", *files)
