"""Python text in files of the RL Zoo, read as literals, calls of ``dict`` and names of activations; nothing is ever evaluated."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any

from natgrad_apps.agents.config import ACTIVATIONS
from natgrad_apps.errors import ConfigError

_ACTIVATIONS = {f"{prefix}nn.{cls.__name__}": name for name, cls in ACTIVATIONS.items() for prefix in ("", "th.", "torch.")}
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def mapping(value: Any, opaque: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """A mapping from itself, or from text that spells one, such as ``dict(net_arch=[64, 64], activation_fn=nn.ReLU)``.

    Args:
        value: The mapping or text.
        opaque: Keys whose values stay the text that they are, because they are not used.

    Returns:
        What could be read, and one sentence for each value that could not.

    Raises:
        ConfigError: It spells no mapping.
    """
    if isinstance(value, Mapping):
        return {str(key): _ACTIVATIONS.get(item, item) if isinstance(item, str) else item for key, item in value.items()}, []
    try:
        items = _items(ast.parse(str(value).strip(), mode="eval").body)
    except _UNREADABLE as error:
        raise ConfigError(f"must be a mapping, or text such as dict(net_arch=[64, 64]); got {value!r}: {error}") from error
    found: dict[str, Any] = {}
    problems = []
    for key, node in items.items():
        try:
            found[key] = ast.unparse(node) if key in opaque else _read(node)
        except _UNREADABLE as error:
            problems.append(f"{key}={ast.unparse(node)} is not legal: {error}")
    return found, problems


def _items(node: ast.expr) -> dict[str, ast.expr]:
    """The values of ``dict(key=...)`` or ``{'key': ...}``, unread."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {_known(item.arg): item.value for item in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(_known(key)) for key in node.keys]
        return {str(key): value for key, value in zip(keys, node.values, strict=True)}
    raise ValueError("it is neither dict(key=...) nor {'key': ...}")


def _read(node: ast.expr) -> Any:
    if isinstance(node, (ast.Call, ast.Dict)):
        return {key: _read(value) for key, value in _items(node).items()}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_read(item) for item in node.elts]
    text = ast.unparse(node)
    if text in _ACTIVATIONS:
        return _ACTIVATIONS[text]
    try:
        return ast.literal_eval(node)
    except ValueError:
        legal = ", ".join(name for name in _ACTIVATIONS if name.startswith("nn."))
        raise ValueError(f"{text!r} is no number, text, list or dict(...), and none of the activations {legal}") from None


def _known(key: Any) -> Any:
    if key is None:
        raise ValueError("** is not legal in a mapping")
    return key
