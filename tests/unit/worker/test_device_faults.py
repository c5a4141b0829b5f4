"""What torch's exceptions say about the device."""

from __future__ import annotations

import pytest
import torch

from worker.device_faults import is_device_fault, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_want_of_memory_is_no_fault_of_the_device(error: BaseException) -> None:
    """Libraries that need memory of their own say so in words of their own."""
    assert is_out_of_memory(error)
    assert not is_device_fault(error)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "CUDA error: device-side assert triggered",
    ],
)
def test_a_fault_of_the_device_is_no_want_of_memory(words: str) -> None:
    """After one of these nothing on it can be trusted."""
    assert is_device_fault(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("shape '[2, 4]' is invalid for input of size 9"),
        ValueError("CUDA error: said by somebody else"),
    ],
)
def test_all_else_is_neither(error: BaseException) -> None:
    """A refusal, or a mistake of a layer: the job's own."""
    assert not is_out_of_memory(error)
    assert not is_device_fault(error)
