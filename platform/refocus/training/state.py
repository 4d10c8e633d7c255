"""Training state on disk without pickle: tensors as safetensors, everything else as JSON.

What came over a network is never unpickled: a pickle may run any code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refocus.errors import ModelCorrupt

TENSORS = "state.safetensors"
STRUCTURE = "state.json"

# JSON has only string keys, and optimizers number their parameters.
_TENSOR, _INTEGER_KEYS, _TUPLE = "__tensor__", "__integer_keys__", "__tuple__"


def save_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write nested mappings, lists, numbers, strings and tensors into `folder`.

    Raises
    ------
    TypeError
        If the state holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    structure = _taken_apart(state, "", tensors)
    save_file(tensors, folder / TENSORS)
    (folder / STRUCTURE).write_text(json.dumps(structure))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU.

    Raises
    ------
    ModelCorrupt
        If a file is missing, truncated or does not fit the other.
    """
    try:
        tensors = load_file(folder / TENSORS)
        structure = json.loads((folder / STRUCTURE).read_text())
        return _put_together(structure, tensors)
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ModelCorrupt(
            f"the training state in {folder} cannot be read ({type(error).__name__}: {error}); "
            "resume from an earlier checkpoint."
        ) from error


def _taken_apart(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        parts = {str(key): _taken_apart(item, f"{path}/{key}", tensors) for key, item in value.items()}
        return {_INTEGER_KEYS: parts} if value and all(isinstance(key, int) for key in value) else parts
    if isinstance(value, (list, tuple)):
        items = [_taken_apart(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"training state at {path} is a {type(value).__name__}, which has no safe form on disk")


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_put_together(item, tensors) for item in value[_TUPLE])
    if _INTEGER_KEYS in value:
        return {int(key): _put_together(item, tensors) for key, item in value[_INTEGER_KEYS].items()}
    return {key: _put_together(item, tensors) for key, item in value.items()}
