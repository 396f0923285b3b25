"""What is in the wheel and in the source archive."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from natgrad_apps._version import __version__
from tests.packaging.installed import Build

pytestmark = pytest.mark.xdist_group("packaging")


def expected_names(tree: Path) -> set[str]:
    """Modules and presets of a checkout, under the names that they must have in an archive."""
    core = {path.relative_to(tree).as_posix() for path in (tree / "natgrad_apps").rglob("*.py")}
    folders = [path for name in ("agents", "bayes") for path in (tree / name).rglob("*.py")]
    applications = {"natgrad_apps/" + path.relative_to(tree).as_posix() for path in folders}
    presets = {"natgrad_apps/" + path.relative_to(tree).as_posix() for path in (tree / "configs").rglob("*.yaml")}
    return core | applications | presets | {"natgrad_apps/py.typed", "natgrad_apps/bayes/data/uci_sha256.txt"}


def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_package_and_nothing_else(build: Build) -> None:
    names = zipfile.ZipFile(build.wheel).namelist()
    assert len(names) == len(set(names))
    outside = {name for name in names if not name.startswith("natgrad_apps/") and ".dist-info/" not in name}
    assert not outside, "a top-level `agents` would overwrite another distribution's"
    inside = {name for name in names if name.startswith("natgrad_apps/")}
    assert inside == expected_names(build.tree)


def test_wheel_built_without_the_source_archive_is_the_same(build: Build, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(build.tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (direct,) = tmp_path.glob("*.whl")
    assert direct.name == build.wheel.name
    first, second = zipfile.ZipFile(direct), zipfile.ZipFile(build.wheel)
    assert sorted(first.namelist()) == sorted(second.namelist())
    differing = [name for name in first.namelist() if not name.endswith("/RECORD") and first.read(name) != second.read(name)]
    assert not differing


def test_source_archive_can_be_worked_on(build: Build) -> None:
    with tarfile.open(build.sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "links do not survive every unpacking"
    names = {member.name.split("/", 1)[1] for member in members if "/" in member.name}
    expected = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "constraints.txt",
        "pyproject.toml",
        "tests/conftest.py",
    }
    assert expected <= names
    assert expected_names(build.tree) <= names


def test_metadata(build: Build) -> None:
    found = metadata(build.wheel)
    assert (found["Name"], found["Version"], found["License-Expression"]) == ("natgrad-apps", __version__, "MIT")
    assert found["Requires-Python"] == ">=3.10"
    assert found.get_all("License-File") == ["LICENSE"]
    assert set(found.get_all("Provides-Extra", [])) == {"rl", "bayes", "graphs", "all", "dev"}


def test_requirements_are_ranges_and_the_core_needs_torch(build: Build) -> None:
    requirements = [Requirement(line) for line in metadata(build.wheel).get_all("Requires-Dist", [])]
    assert {requirement.name for requirement in requirements if requirement.marker is None} == {"numpy", "torch", "typing-extensions"}
    pinned = [str(requirement) for requirement in requirements if any(part.operator in {"==", "==="} for part in requirement.specifier)]
    assert not pinned


def test_command_is_declared(build: Build) -> None:
    with zipfile.ZipFile(build.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(name).decode()
    programs = {"natgrad-acktr": "agents", "natgrad-bayes": "bayes", "natgrad-graph": "graphs"}
    assert text.split("\n")[0] == "[console_scripts]"
    assert set(text.split("\n")[1:]) - {""} == {f"{program} = natgrad_apps.{folder}.cli:main" for program, folder in programs.items()}
