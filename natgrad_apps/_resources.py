"""The YAML presets that come with the package, found in a checkout, an editable installation and a wheel alike."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from natgrad_apps.errors import ConfigError, unknown_name


def config_folder() -> Path:
    """Folder of the presets, one sub-folder a kind.

    Raises:
        ConfigError: The package is not installed as plain files.
    """
    folder = resources.files("natgrad_apps") / "configs"
    if not isinstance(folder, Path) or not folder.is_dir():
        raise ConfigError(f"the presets are not in a folder: {folder}; install natgrad-apps unpacked, and keep the links of a checkout")
    return folder


def available_configs(kind: str) -> dict[str, Path]:
    """Presets of one kind, by name.

    Args:
        kind: Sub-folder, such as ``"agents"``.

    Raises:
        ConfigError: There is no such kind.
    """
    folder = config_folder()
    kinds = [path.name for path in folder.iterdir() if path.is_dir()]
    if kind not in kinds:
        raise unknown_name("kind of preset", kind, kinds)
    return {path.stem: path for path in sorted((folder / kind).glob("*.yaml"))}


def config_path(kind: str, name: str) -> Path:
    """File of one preset.

    Args:
        kind: Sub-folder, such as ``"agents"``.
        name: Name of the preset, such as ``"cartpole"``.

    Raises:
        ConfigError: There is no such kind or no such preset; the message lists those there are.
    """
    found = available_configs(kind)
    if name not in found:
        raise unknown_name(f"preset of {kind}", name, found)
    return found[name]
