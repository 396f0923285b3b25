"""What a run was made with: package versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Versions of distributions, None for those that are not installed; Python itself comes first."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit(file: Path) -> dict[str, str | bool | None]:
    """Commit of the checkout that a source file belongs to.

    Args:
        file: A file of the package. It must be under version control itself: an environment inside somebody's repository says nothing about
            this package.

    Returns:
        ``commit`` (None if there is none) and ``modified`` (whether tracked files differ from the commit).
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.resolve().name) is None:
        return {"commit": None, "modified": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "modified": None if changes is None else bool(changes)}


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Where the run takes place."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git(folder: Path, *arguments: str) -> str | None:
    command: Sequence[str] = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
