"""torch's allocator, read inside the training process: peaks since the last reset, in bytes.

``allocated`` is what live tensors hold, ``reserved`` what the caching allocator took from the driver. Both leave out
the CUDA context and libraries, which only NVML sees.
"""

import sys


def reset_peaks() -> None:
    """Start both peak counters at the present values. Does nothing before torch is imported or without CUDA in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peaks_bytes() -> dict[str, int | None]:
    """Peaks since the last reset; None where CUDA is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {"torch_allocated_peak_bytes": None, "torch_reserved_peak_bytes": None}
    return {
        "torch_allocated_peak_bytes": torch.cuda.max_memory_allocated(),
        "torch_reserved_peak_bytes": torch.cuda.max_memory_reserved(),
    }
