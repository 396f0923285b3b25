"""Check that the type checker sees the code that it says is clean.

Usage: ``python tools/types_canary.py`` (``make types``), after ``mypy`` passed. A checker that does not follow the links, that skips a
folder or that takes a symbol for ``Any`` passes everything, so errors are planted and must be found:

* in a copy of one module of every package, read in place of the module (``--shadow-file``): its body must be checked;
* in a file that uses every public name with a wrong type: each name must have a type.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLANTED = "\n_planted: int = 'not an integer'  # the canary\n"
PUBLIC = ("natgrad_apps", "natgrad_apps.likelihoods", "natgrad_apps.agents", "natgrad_apps.bayes", "natgrad_apps.graphs")


def mypy(*arguments: str) -> list[str]:
    """Lines that mypy prints, with the settings of the project.

    Args:
        arguments: What to check.
    """
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", "--show-absolute-path", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()


def packages() -> list[Path]:
    """Every folder of the package that holds modules, the applications' through their links."""
    package = ROOT / "natgrad_apps"
    inside = [path.parent for path in package.rglob("__init__.py")]
    linked = [path.parent for link in package.iterdir() if link.is_symlink() for path in link.resolve().rglob("__init__.py")]
    through_links = [package / folder.relative_to(ROOT) for folder in linked]
    return sorted({*inside, *through_links})


def planted_in(folder: Path) -> Path:
    """Module of a package that receives the error: the longest, which has most to lose."""
    return max(folder.glob("*.py"), key=lambda path: (path.stat().st_size, path.name))


def exported(module: str) -> list[str]:
    """Names in the ``__all__`` of a package.

    Args:
        module: Its dotted name.

    Raises:
        SystemExit: The package has no literal ``__all__``.
    """
    tree = ast.parse(Path(ROOT, *module.split("."), "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise SystemExit(f"{module} has no literal __all__, so its public names cannot be checked")


def unseen_modules(folder: Path) -> list[str]:
    """Modules in which a planted error was not reported.

    Args:
        folder: A temporary folder.
    """
    modules = [planted_in(package) for package in packages()]
    shadows: list[str] = []
    for number, module in enumerate(modules):
        shadow = folder / f"shadow_{number}.py"
        shadow.write_text(module.read_text() + PLANTED)
        shadows += ["--shadow-file", str(module), str(shadow)]
    cache = folder / "cache"
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", cache)
    reported = {line.split(":", 1)[0] for line in mypy("--cache-dir", str(cache), *shadows) if '"str"' in line and '"int"' in line}
    print(f"types canary: planted an error in {len(modules)} modules, {len(reported)} reported")
    return [str(module.relative_to(ROOT)) for module in modules if str(module) not in reported]


def untyped_names(folder: Path) -> list[str]:
    """Public names that can be assigned to an integer without an error.

    Args:
        folder: A temporary folder.
    """
    lines, names = ["from __future__ import annotations\n"], [""]
    for module in PUBLIC:
        lines.append(f"import {module}\n")
        names.append("")
    for module in PUBLIC:
        for name in exported(module):
            if name != "__version__":
                lines.append(f"value_{len(lines)}: dict[int, bytes] = {module}.{name}\n")
                names.append(f"{module}.{name}")
    canary = folder / "canary.py"
    canary.write_text("".join(lines))
    reported = {int(line.split(":")[1]) for line in mypy(str(canary)) if line.startswith(str(canary)) and "[assignment]" in line}
    checked = [name for name in names if name]
    print(f"types canary: misused {len(checked)} public names, {len(reported)} reported")
    return [name for number, name in enumerate(names, 1) if name and number not in reported]


def main() -> int:
    """Plant the errors; fail if one of them is not found."""
    with tempfile.TemporaryDirectory() as folder:
        unseen, untyped = unseen_modules(Path(folder)), untyped_names(Path(folder))
    for module in unseen:
        print(f"{module}: mypy did not report an error that was planted in it", file=sys.stderr)
    for name in untyped:
        print(f"{name}: mypy takes it for Any, or did not find it", file=sys.stderr)
    return 1 if unseen or untyped else 0


if __name__ == "__main__":
    raise SystemExit(main())
