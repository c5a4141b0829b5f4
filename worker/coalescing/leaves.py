"""What two arguments of a denoiser have to have in common to count as equal, or as of one form."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)

# By tensor: its version when it was hashed, and the hash. Positions of tokens come again at every step, and
# reading them from a GPU would wait for all that was launched.
_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


class UnknownValueError(Exception):
    """An argument is of a type that nobody can compare."""


def digest(value: Any) -> Hashable:
    """Return something that is equal for equal values.

    Raises:
        UnknownValueError: for what is neither a tensor nor plain.
    """
    if isinstance(value, torch.Tensor):
        return _tensor_digest(value)
    if isinstance(value, list | tuple):
        return type(value), tuple(digest(element) for element in value)
    if isinstance(value, dict):
        return type(value), tuple((name, digest(element)) for name, element in value.items())
    if isinstance(value, _PLAIN):
        return type(value), value
    raise UnknownValueError(f"an argument is a {type(value).__name__}")


def form_of(value: Any) -> Hashable:
    """Return what values of one form have in common: a tensor's sizes, not its content; plain values whole.

    Raises:
        UnknownValueError: for what is neither a tensor nor plain.
    """
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, list | tuple):
        return type(value), tuple(form_of(element) for element in value)
    return digest(value)


def _tensor_digest(tensor: torch.Tensor) -> Hashable:
    version = None if tensor.is_inference() else tensor._version  # noqa: SLF001 - torch has no public name for it
    if version is not None and tensor in _known:
        seen, found = _known[tensor]
        if seen == version:
            return found  # type: ignore[no-any-return]  # the dictionary has no types
    data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    found = tuple(tensor.shape), tensor.dtype, tensor.device, hashlib.blake2b(data, digest_size=16).digest()
    if version is not None:
        _known[tensor] = version, found
    return found


def leaves(value: Any) -> list[Any]:
    """Return what is in lists, tuples and dicts, in order."""
    if isinstance(value, dict):
        return [leaf for element in value.values() for leaf in leaves(element)]
    if isinstance(value, list | tuple):
        return [leaf for element in value for leaf in leaves(element)]
    return [value]


def equal(ours: Any, theirs: Any) -> bool:
    """Tell whether two results are bitwise the same."""
    pairs = list(zip(leaves(ours), leaves(theirs), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
