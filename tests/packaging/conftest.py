"""One build of the package and one environment for each way of installing it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.packaging.installed import Build, Installation, copy_of_checkout, empty_environment, pip_install


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Source archive of a copy of the checkout, and the wheel that is built from that archive."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    tree = copy_of_checkout(folder / "tree")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return Build(tree, sdist, wheel)


@pytest.fixture(scope="session")
def from_wheel(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel, installed."""
    folder = tmp_path_factory.mktemp("wheel")
    python = empty_environment(folder / "venv")
    pip_install(python, str(build.wheel))
    (package,) = folder.glob("venv/lib/python*/site-packages/natgrad_apps")
    (folder / "elsewhere").mkdir()
    return Installation(python, package, folder / "elsewhere")


@pytest.fixture(scope="session")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A copy of the checkout, installed editable."""
    folder = tmp_path_factory.mktemp("editable installation")
    tree = copy_of_checkout(folder / "tree")
    python = empty_environment(folder / "venv")
    pip_install(python, "--editable", str(tree))
    (folder / "elsewhere").mkdir()
    return Installation(python, tree / "natgrad_apps", folder / "elsewhere")
