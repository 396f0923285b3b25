"""The wheel and an editable installation work from another folder, in child processes too."""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from natgrad_apps._version import __version__
from tests.packaging.installed import ROOT, Installation

pytestmark = pytest.mark.xdist_group("packaging")

# Tests of the checkout rather than of the package.
READ_THE_CHECKOUT = ("packaging", "docs", "benchmarks", "test_meta.py")
APPLICATIONS = ("stable_baselines3", "gymnasium", "pyro", "torch_geometric", "matplotlib", "tensorboard", "rich", "jsonargparse", "yaml")

WHERE = """
import importlib, json, pkgutil, sys
import natgrad_apps
core = [name for name in {applications!r} if name in sys.modules]
from natgrad_apps._resources import available_configs, config_folder
presets = {{kind.name: {{name: str(path) for name, path in available_configs(kind.name).items()}} for kind in config_folder().iterdir()}}
files = {{}}
for info in pkgutil.walk_packages(natgrad_apps.__path__, "natgrad_apps."):
    files[info.name] = importlib.import_module(info.name).__file__
print(json.dumps({{"version": natgrad_apps.__version__, "core": core, "presets": presets, "files": files}}))
"""

SPAWN = """
import multiprocessing, sys
import torch
from natgrad_apps import KFAC
from natgrad_apps.agents import ACKTR

def child(queue, given, kind):
    queue.put((given, kind is ACKTR, kind.__module__, sys.modules[kind.__module__].__file__, "agents" in sys.modules))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue, KFAC(decay=0.5), ACKTR))
    process.start()
    given, same, module, file, leaked = queue.get(timeout=120)
    process.join()
    assert given == KFAC(decay=0.5)
    assert same and module.startswith("natgrad_apps.agents"), module
    assert not leaked
    print(file)
"""


@dataclass(frozen=True)
class Survey:
    """What a process in another folder finds.

    Attributes:
        version: Of the package.
        core: Dependencies of applications that importing the core imported.
        presets: Files of the presets, by kind and name.
        files: Files of all modules, by dotted name.
    """

    version: str
    core: list[str]
    presets: dict[str, dict[str, str]]
    files: dict[str, str]


@pytest.fixture(params=["from_wheel", "editable"])
def installation(request: pytest.FixtureRequest) -> Installation:
    """Each way of installing in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Installation)
    return found


@functools.cache
def survey_of(installation: Installation) -> Survey:
    """Import every module and look up every preset, once an installation: the applications take seconds to import."""
    return Survey(**json.loads(installation.run("-c", WHERE.format(applications=APPLICATIONS)).stdout))


@pytest.fixture
def survey(installation: Installation) -> Survey:
    """What a process in another folder finds."""
    return survey_of(installation)


def test_every_module_is_imported_from_the_installation(installation: Installation, survey: Survey) -> None:
    outside = {name: file for name, file in survey.files.items() if not Path(file).is_relative_to(installation.package)}
    assert not outside
    assert any(name.startswith("natgrad_apps.agents.") for name in survey.files)
    assert survey.version == __version__


def test_core_imports_no_application(survey: Survey) -> None:
    assert survey.core == []


def test_presets_are_found(installation: Installation, survey: Survey) -> None:
    expected: dict[str, set[str]] = {}
    for path in (ROOT / "configs").rglob("*.yaml"):
        expected.setdefault(path.parent.name, set()).add(path.stem)
    assert {kind: set(names) for kind, names in survey.presets.items()} == expected
    assert all(Path(file).is_relative_to(installation.package) for names in survey.presets.values() for file in names.values())


def test_top_level_agents_cannot_be_imported(installation: Installation) -> None:
    done = installation.run("-c", "import agents", check=False)
    assert done.returncode != 0
    assert "No module named 'agents'" in done.stderr


def test_objects_travel_to_spawned_children(installation: Installation) -> None:
    script = installation.elsewhere / "spawn.py"
    script.write_text(SPAWN)
    assert Path(installation.run(str(script)).stdout.strip()).is_relative_to(installation.package)


def test_command_runs(installation: Installation) -> None:
    done = installation.execute(installation.python.parent / "natgrad-acktr", "--help")
    assert {"train", "evaluate", "plot", "check"} <= set(done.stdout.replace(",", " ").replace("{", " ").replace("}", " ").split())


@pytest.mark.slow
def test_types_reach_a_user_of_the_wheel(from_wheel: Installation) -> None:
    """Without py.typed, or with an attribute typed Any, mypy would not report the assignment."""
    script = from_wheel.elsewhere / "user.py"
    script.write_text("from natgrad_apps import KFAC\nfrom natgrad_apps.agents import ACKTR\nx: int = KFAC()\ny: int = ACKTR\n")
    done = from_wheel.run("-m", "mypy", "--python-executable", str(from_wheel.python), script.name, check=False)
    errors = [line.split(" error: ")[0] for line in done.stdout.splitlines() if "[assignment]" in line]
    assert errors == ["user.py:3:", "user.py:4:"], done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_suite_passes_against_the_wheel(from_wheel: Installation, capfd: pytest.CaptureFixture[str]) -> None:
    """The quick tests, in a folder that holds the tests and nothing else."""
    folder = from_wheel.elsewhere / "suite"
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__", *READ_THE_CHECKOUT))
    shutil.copy2(ROOT / "pyproject.toml", folder)
    (folder / "tests" / "test_where.py").write_text(
        f"import natgrad_apps\n\n\ndef test_where():\n    assert natgrad_apps.__file__ == {str(from_wheel.package / '__init__.py')!r}\n"
    )
    done = from_wheel.run(
        "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "--rootdir", str(folder), str(folder / "tests"), timeout=1700
    )
    with capfd.disabled():
        print("\nagainst the wheel:", done.stdout.splitlines()[-1])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100, "the copy of the tests is not the suite"
