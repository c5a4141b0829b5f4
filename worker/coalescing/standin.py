"""What a job's pipeline finds in the denoiser's place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from worker.coalescing.call import named_arguments

Post = Callable[[dict[str, Any]], Any]


class StandIn:
    """Looks like the denoiser to a pipeline, and hands its calls to somebody else.

    Config, dtype, device, submodules and whatever else a pipeline may ask for are the denoiser's own, its
    class included, so that `isinstance` says what it says of the denoiser.
    """

    def __init__(self, denoiser: Any, post: Post, *, shared: bool = True) -> None:
        """Stand in for `denoiser`.

        Args:
            denoiser: the module whose calls are handed on.
            post: gets a call's arguments by name and returns what the denoiser would return.
            shared: whether other pipelines use the denoiser at the same time: then one's cache context must
                not be set on it (they matter to caches only, and a denoiser with caches is never shared).
        """
        mine = {
            "_denoiser": denoiser,
            "_post": post,
            "_signature": inspect.signature(denoiser.forward),
            "_shared": shared,
            "_changes": [],
        }
        self.__dict__.update(mine)

    @property  # type: ignore[misc]  # what makes it a proxy
    def __class__(self) -> type:
        return type(self._denoiser)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call on, and wait for its result."""
        return self._post(named_arguments(self._signature, args, kwargs))

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_denoiser"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._changes.append(name)
        setattr(self._denoiser, name, value)

    def cache_context(self, name: str, **place: Any) -> AbstractContextManager[None]:
        """Do what `CacheMixin.cache_context` does, unless others would see it."""
        if self._shared:
            return nullcontext()
        context: AbstractContextManager[None] = self._denoiser.cache_context(name, **place)
        return context


def changes_of(standin: StandIn) -> list[str]:
    """Return the names of what was set on the denoiser through its stand-in."""
    return list(standin.__dict__["_changes"])
