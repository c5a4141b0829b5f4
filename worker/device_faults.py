"""What an exception of torch's says about the device: too little memory, or broken. No class tells."""

from __future__ import annotations

import torch

# torch has a class for these only since 2.8, and Metal raises plain RuntimeErrors.
_DEVICE_WORDS = (
    "CUDA error",
    "cuDNN error",
    "CUBLAS_STATUS",
    "HIP error",
    "MPS backend",
    "device-side assert",
)
# The last ones are cuBLAS's and cuDNN's, which need memory of their own, and the host's.
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or the host had too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def is_device_fault(error: BaseException) -> bool:
    """Tell whether the device itself failed, so that nothing on it can be trusted any more."""
    if is_out_of_memory(error) or "NOT_SUPPORTED" in str(error):  # cuDNN's and cuBLAS's word for a refusal
        return False
    accelerator_error = getattr(torch, "AcceleratorError", ())
    if isinstance(error, accelerator_error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_WORDS)
