"""A processor that passes for an accelerator, for machines that have none: what would mix the two memories is refused.

Tensors that were made on, moved to or computed from `ACCELERATOR` say that they lie there, and are the processor's all
the same: values, and with them every decision that code takes by values, are those of a run on the processor. What an
accelerator refuses is refused: operations on tensors of both memories (but for numbers, and for places that index its
tensors), its tensors as NumPy arrays, and another device's random generator. Not seen are kernels that an accelerator
lacks for a type, mixed precision (which is off: torch has none for a device that is not there) and several devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACCELERATOR = torch.device("cuda", 0)
_PROCESSOR = torch.device("cpu")
_aten = torch.ops.aten
#: Whose places may lie in either memory.
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
#: Whose results the processor needs before it goes on; copies to it are the others.
_WAITED_FOR = (_aten._local_scalar_dense.default, _aten.nonzero.default)


class MemoriesMixed(Exception):
    """What an accelerator would have refused."""


@contextmanager
def pretended_accelerator() -> Iterator[torch.device]:
    """Give the device that the processor passes for meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", _Generator)
        with _Watching(), _Translating():
            yield ACCELERATOR


@dataclass
class Asked:
    """How often an accelerator had to compute something, views apart, and the processor to wait for what it has."""

    operations: int = 0
    waits: int = 0


@contextmanager
def asked_of_accelerator() -> Iterator[Asked]:
    """Count what the pretended accelerator is asked for meanwhile."""
    outer, _memory.asked = _memory.asked, Asked()
    try:
        yield _memory.asked
    finally:
        _memory.asked = outer


class _Generator(torch.Generator):
    """The processor's random numbers, whatever device they are asked of."""

    asked_of: torch.device

    def __new__(cls, device: torch.device | str = _PROCESSOR) -> _Generator:
        made = super().__new__(cls, device=_PROCESSOR)
        made.asked_of = torch.device(device)
        return made

    def __init__(self, device: torch.device | str = _PROCESSOR) -> None:
        """Take what `__new__` has used."""


class _Memory:
    """Which storages count as the accelerator's. Kept as long as tests run: code keeps tables for its devices, too."""

    def __init__(self) -> None:
        # While there is a reference to a storage, none of the next has its address.
        self._storages: dict[int, StorageWeakRef] = {}
        #: Whether it is for the accelerator's tensors what torch makes on its way through a function.
        self.lent = False
        self.asked = Asked()

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._storages

    def take(self, values: Any) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._storages[reference.cdata] = reference

    def give_back(self, tensor: Tensor) -> None:
        self._storages.pop(tensor.untyped_storage()._cdata, None)


_memory = _Memory()


class _Watching(TorchDispatchMode):
    """Sees every operation, those of gradients too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = any(_memory.holds(tensor) for tensor in tensors)
        if ours and func is not _aten.copy_.default:
            met = [args[0], *args[2:3]] if func in _INDEXING and _memory.holds(args[0]) else tensors
            strangers = [tuple(t.shape) for t in met if isinstance(t, Tensor) and t.ndim and not _memory.holds(t)]
            if strangers:
                raise MemoriesMixed(f"{func} of the accelerator's tensors and the processor's, of shapes {strangers}.")
        if ours:
            _memory.asked.operations += not func.is_view
            _memory.asked.waits += func in _WAITED_FOR
        result = func(*args, **(kwargs or {}))
        if ours or (_memory.lent and not tensors):
            _memory.take(result)
        return result


class _Translating(TorchFunctionMode):
    """Sees every call of torch, and does on the processor what was asked of the accelerator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__ and _memory.holds(args[0]):
            return ACCELERATOR
        if func in (Tensor.numpy, Tensor.__array__) and _memory.holds(args[0]):
            raise MemoriesMixed("an accelerator's tensor as a NumPy array.")
        if func is Tensor.cpu:
            return _moved(args[0], _PROCESSOR)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        asked = kwargs.get("device")
        ours = any(map(_memory.holds, tree_leaves((args, kwargs)))) if asked is None else _is_accelerator(asked)
        generator = kwargs.get("generator")
        if isinstance(generator, _Generator) and ours != _is_accelerator(generator.asked_of):
            raise MemoriesMixed(f"{func} by a generator of {generator.asked_of}.")
        if asked is not None and ours:
            kwargs["device"] = _PROCESSOR
        outer, _memory.lent = _memory.lent, ours
        try:
            result = func(*args, **kwargs)
        finally:
            _memory.lent = outer
        if asked is not None and ours:
            _memory.take(result)
        return result


def _is_accelerator(device: torch.device | str) -> bool:
    return torch.device(device).type == ACCELERATOR.type


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        return _moved(tensor, ACCELERATOR if _memory.holds(args[0]) else _PROCESSOR, args[0].dtype)
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    return _moved(tensor, device, dtype, layout)


def _moved(
    tensor: Tensor,
    device: torch.device | None,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format | None = None,
) -> Tensor:
    options: dict[str, Any] = {"dtype": dtype or tensor.dtype, "memory_format": layout or torch.preserve_format}
    if device is None or device.type == "meta":
        return tensor.to(device, **options)
    there = _is_accelerator(device)
    if there == _memory.holds(tensor):
        return tensor.to(**options)
    copied = tensor.to(copy=True, **options)
    if there:
        _memory.take(copied)
    else:
        _memory.give_back(copied)
        _memory.asked.waits += 1
    return copied
