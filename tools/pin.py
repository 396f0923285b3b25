"""Write constraints.txt: one resolution of every extra, pinned, around a torch that is chosen by hand.

Usage: ``python tools/pin.py`` (``make constraints``). Nothing is installed. The new pins are written only if the resolution succeeds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HEADER = """\
# What `make demo` and `make test` install: one resolution of every extra, written by `make constraints` on Python 3.11.
# pyproject.toml holds the ranges that the package itself asks for.
#
# torch is chosen by hand, in this line, and holds for every Python. On Linux, PyPI's own build of torch brings several gigabytes
# of CUDA; `make test PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'` takes the small CPU build of the same version.
torch=={torch}

# The rest, for the Pythons that these versions support.
"""


def chosen_torch(text: str) -> str:
    """Version in the line ``torch==VERSION``.

    Args:
        text: The present constraints.

    Raises:
        SystemExit: There is no such line.
    """
    match = re.search(r"^torch==(\S+)", text, flags=re.MULTILINE)
    if match is None:
        raise SystemExit(f"{CONSTRAINTS.name} has no line 'torch==VERSION'; add one with the version that the pins are to fit")
    return match.group(1)


def resolve(torch: str) -> dict[str, str]:
    """Versions that pip would install for every extra into an empty environment, by name.

    Args:
        torch: The version of torch that all others must fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, pin = Path(folder, "report.json"), Path(folder, "torch.txt")
        pin.write_text(f"torch=={torch}\n")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), "-c", str(pin), "-e", f"{ROOT}[all,dev]"], check=True)
        installed = json.loads(report.read_text())["install"]
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in installed}
    del found["natgrad-apps"], found["torch"]
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def main() -> None:
    """Resolve, then replace the file."""
    torch = chosen_torch(CONSTRAINTS.read_text())
    pins = resolve(torch)
    lines = [f'{name}=={version}; python_version >= "3.11"' for name, version in pins.items()]
    CONSTRAINTS.write_text(HEADER.format(torch=torch) + "\n".join(lines) + "\n")
    print(f"{CONSTRAINTS.name}: torch {torch} and {len(lines)} others")


if __name__ == "__main__":
    main()
