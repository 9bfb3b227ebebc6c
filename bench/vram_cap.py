"""A smaller card on a larger one: caps torch's allocator so that the process stays inside a VRAM budget.

The allocator is not alone: CUDA's context, cuBLAS, bitsandbytes and Triton's kernels lie outside it, and NVML counts
them for the process. So the cap is the budget less what NVML sees outside the allocator, measured when CUDA is up and
again after the first optimizer step, when the kernels are loaded. Whether the whole process stayed inside the budget is
for the reader of NVML's process peak.

A cap is not a smaller card in all respects: compute, bandwidth and the size that device properties tell are the
card's. What the process can still get, which libraries ask ``torch.cuda.mem_get_info`` for (Unsloth sizes the chunks of
its loss by it), is told as the cap leaves it.
"""

import os
from typing import Any

from bench.errors import Unsupported
from bench.meters.sampler import GpuReader

MIB, GIB = 2**20, 2**30
RESERVE_BEFORE_STEP_BYTES = 256 * MIB
"""Held free for kernels that the first step loads: 84 to 242 MiB in the published H100 runs of 1B and 8B models."""
RESERVE_BYTES = 32 * MIB
"""Held free afterwards: 0 to 14 MiB came later in the same runs, the profiler's share included."""


def apply(budget_bytes: int | None, reserve_bytes: int) -> dict[str, str]:
    """Measure what lies outside the allocator, cap the allocator at what is left, and return both as audit readings.

    Nothing happens, and nothing is returned, without a budget. Call it again to follow what has been loaded since.
    Raises Unsupported without a GPU, without NVML's memory per process, and for a budget that the context fills.
    """
    if budget_bytes is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        raise Unsupported("a VRAM budget needs an NVIDIA GPU")
    outside_bytes = _outside_bytes()
    cap_bytes = budget_bytes - outside_bytes - reserve_bytes
    if cap_bytes <= 0:
        raise Unsupported(
            f"a budget of {budget_bytes / GIB:.2f} GiB leaves nothing for tensors: CUDA's context and libraries take "
            f"{outside_bytes / GIB:.2f} GiB, and {reserve_bytes / GIB:.2f} GiB are held free for kernels"
        )
    _, card_bytes = torch.cuda.cudart().cudaMemGetInfo(0)
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / card_bytes), 0)
    if torch.cuda.memory_reserved(0) > cap_bytes:
        torch.cuda.empty_cache()
    _tell_what_is_left(cap_bytes)
    return {"vram_outside_allocator_bytes": str(outside_bytes), "vram_allocator_cap_bytes": str(cap_bytes)}


def _outside_bytes() -> int:
    """NVML's memory of this process less what torch's allocator holds, with CUDA up and cuBLAS loaded."""
    import torch

    ones = torch.ones(64, 64, device="cuda:0", dtype=torch.float16)
    _ = ones @ ones
    torch.cuda.synchronize()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    process_bytes = GpuReader(int(visible) if visible.isdigit() else 0, os.getpid()).memory()[0]
    if not process_bytes:
        raise Unsupported("a VRAM budget needs NVML's memory per process, which this machine does not tell")
    return int(process_bytes - torch.cuda.memory_reserved(0))


def _tell_what_is_left(cap_bytes: int) -> None:
    """Have ``torch.cuda.mem_get_info`` tell as free no more than the cap leaves; the total stays the card's."""
    import torch

    @torch.compiler.disable
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        free, total = torch.cuda.cudart().cudaMemGetInfo(0)
        return max(0, min(free, cap_bytes - torch.cuda.memory_reserved(0))), total

    torch.cuda.mem_get_info = torch.cuda.memory.mem_get_info = mem_get_info
