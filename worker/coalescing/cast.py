"""A denoiser that runs in another dtype than the pipeline around it."""

from __future__ import annotations

import functools
from typing import Any

import torch


class Cast:
    """Looks like the denoiser to a pipeline, which may compute in float32 where the denoiser is in bfloat16.

    So it is in the vectorised way, too, where measuring showed that another dtype is faster
    (`worker.models.variant`): what is between two forward passes stays in the dtype of the other parts.
    """

    def __init__(self, denoiser: Any, dtype: torch.dtype) -> None:
        """Stand before `denoiser`; `dtype` is what goes in and comes out."""

        @functools.wraps(denoiser.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._run(*args, **kwargs)

        self.__dict__.update({"_denoiser": denoiser, "dtype": dtype, "forward": forward})

    @property  # type: ignore[misc]  # what makes it a proxy
    def __class__(self) -> type:
        return type(self._denoiser)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_denoiser"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the denoiser in its own dtype."""
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        inner, outer = self._denoiser.dtype, self.__dict__["dtype"]
        outputs = self._denoiser(*_cast(list(args), inner), **_cast(kwargs, inner))
        return _cast(outputs, outer)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a value whose float tensors of more than one number have a dtype; timesteps keep theirs."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, list | tuple):
        return type(value)(_cast(each, dtype) for each in value)
    if type(value) is dict:
        return {name: _cast(each, dtype) for name, each in value.items()}
    if isinstance(value, dict):  # an output of diffusers
        return type(value)(**{name: _cast(each, dtype) for name, each in value.items()})
    return value
