"""Rules of the repository that no reviewer should have to remember."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import natgrad_apps
from natgrad_apps import curvature, damping, refresh, steps
from natgrad_apps.statistics import Fisher

ROOT = Path(__file__).resolve().parent.parent
CEILING = 500
FOLDERS = ("natgrad_apps", "agents", "bayes", "graphs", "tests", "benchmarks", "tools")


def sources() -> list[Path]:
    """Python files of the repository; links into the package are followed where they lie."""
    return [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not any(p.is_symlink() for p in path.parents)]


def configurations() -> list[Path]:
    return sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", sorted(curvature.available()))
def test_every_curvature_has_a_reference_test(name: str) -> None:
    assert (ROOT / "tests" / "reference" / f"test_{name}.py").is_file(), f"add tests/reference/test_{name}.py, a dense re-derivation"


@pytest.mark.parametrize("name", sorted(curvature.available()))
def test_every_curvature_has_a_configuration(name: str) -> None:
    path = ROOT / "configs" / "curvature" / f"{name}.yaml"
    assert path.is_file(), f"add configs/curvature/{name}.yaml"


def test_no_file_is_longer_than_the_ceiling() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > CEILING} == {}


def test_every_configuration_loads() -> None:
    found = configurations()
    assert found
    for path in found:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(content, dict), f"{path.relative_to(ROOT)} must be a mapping"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "curvature").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_curvature_configuration_builds(path: Path) -> None:
    """A preset is a curvature (``name`` and its fields), or a mapping of the optimizer's arguments with such a part."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = content.get("curvature", content)
    built = curvature.build(own)
    assert type(built) is curvature.available()[own["name"] if isinstance(own, dict) else own]
    builders = {"damping": damping.build, "refresh": refresh.build, "step": steps.build, "fisher": Fisher.of}
    for key, build in builders.items():
        if key in content:
            build(content[key])


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001"])
def test_numbers_in_configurations_are_numbers(written: str, tmp_path: Path) -> None:
    """YAML 1.1 reads ``1e-3`` as a string; a preset that holds one must fail loudly or be read as a number, never be used as text."""
    path = tmp_path / "preset.yaml"
    path.write_text(f"name: tikhonov\nvalue: {written}\n", encoding="utf-8")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(content["value"], str):
        with pytest.raises(ValueError, match="must be a number, got '1e-3'"):
            damping.build(content)
    else:
        assert damping.build(content).value == pytest.approx(1e-3)


def test_the_core_imports_no_application() -> None:
    """In a fresh interpreter, so that no other test can have imported them."""
    heavy = ("stable_baselines3", "gymnasium", "pyro", "torch_geometric", "matplotlib", "yaml", "jsonargparse", "rich", "tensorboard")
    code = f"import sys, natgrad_apps; print([name for name in {heavy!r} if name in sys.modules])"
    folder = Path(natgrad_apps.__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert result.stdout.strip() == "[]"


def test_public_names_exist_and_are_documented() -> None:
    for name in natgrad_apps.__all__:
        value = getattr(natgrad_apps, name)
        if name != "__version__":
            assert value.__doc__, f"{name} has no docstring"
