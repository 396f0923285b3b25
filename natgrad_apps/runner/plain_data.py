"""Numbers, texts, arrays and containers of them as bytes that hold no code: JSON for the structure, ``.npy`` for the arrays.

Reading calls no constructor that the bytes name, unlike pickle, so a file from elsewhere can be wrong but not harmful.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import zipfile
from collections import OrderedDict, deque
from typing import Any

import numpy as np
from torch import Tensor

from natgrad_apps.errors import ConfigError

STRUCTURE = "structure.json"
_KIND = "__kind__"


def dump(tree: Any) -> bytes:
    """Bytes of a tree of None, booleans, integers, floats, texts, bytes, lists, tuples, deques, dictionaries, arrays and CPU tensors.

    A tensor comes back as an array, an `OrderedDict` as a dictionary in the same order.

    Raises:
        TypeError: Something else is in the tree.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    structure = json.dumps(_encode(tree, arrays))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(STRUCTURE, structure)
        for i, array in enumerate(arrays):
            part = io.BytesIO()
            np.save(part, array, allow_pickle=False)
            archive.writestr(f"{i}.npy", part.getvalue())
    return buffer.getvalue()


def load(data: bytes, name: str) -> Any:
    """The tree of `dump`.

    Args:
        data: What it returned.
        name: Name of the file, for the error.

    Raises:
        ConfigError: The bytes are not of that kind.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:

            def array(index: int) -> np.ndarray[Any, Any]:
                value: np.ndarray[Any, Any] = np.load(io.BytesIO(archive.read(f"{index:d}.npy")), allow_pickle=False)
                return value

            return _decode(json.loads(archive.read(STRUCTURE)), array)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, binascii.Error) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error


def _encode(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError("an array of Python objects is no plain data")
        arrays.append(array)
        return {_KIND: "number" if isinstance(value, np.generic) else "array", "index": len(arrays) - 1}
    if isinstance(value, bytes):
        return {_KIND: "bytes", "value": base64.b64encode(value).decode()}
    if type(value) is list:
        return [_encode(v, arrays) for v in value]
    if type(value) is tuple:
        return {_KIND: "tuple", "value": [_encode(v, arrays) for v in value]}
    if type(value) is deque:
        return {_KIND: "deque", "value": [_encode(v, arrays) for v in value], "maxlen": value.maxlen}
    if type(value) in {dict, OrderedDict}:  # SB3's vectorized environments give ordered ones
        return {_KIND: "dict", "value": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]}
    kind = type(value).__name__
    raise TypeError(f"{kind} is no plain data; legal are numbers, texts, bytes, arrays, and lists, tuples, deques, dicts of them")


def _decode(value: Any, array: Any) -> Any:
    if isinstance(value, list):
        return [_decode(v, array) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if kind == "array":
        return array(value["index"])
    if kind == "number":
        return array(value["index"])[()]
    if kind == "bytes":
        return base64.b64decode(value["value"], validate=True)
    items = value["value"]
    if kind == "tuple":
        return tuple(_decode(v, array) for v in items)
    if kind == "deque":
        return deque((_decode(v, array) for v in items), maxlen=value["maxlen"])
    if kind == "dict":
        return {_decode(k, array): _decode(v, array) for k, v in items}
    raise ValueError(f"unknown kind {kind!r}")
