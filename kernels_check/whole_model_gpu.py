"""What Unsloth asks about a GPU before it takes its GPU code path, answered on a machine without one."""

import types
from typing import Any


def stand_in_for_a_gpu() -> None:
    """Answer the queries of torch.cuda, and put what is asked to lie on ``cuda`` on the CPU, in this whole process.

    Nothing here is measured: memory sizes and the like are constants.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    memory_bytes = 20 << 30
    properties = types.SimpleNamespace(
        name="CPU in place of a GPU", total_memory=memory_bytes, major=9, minor=0, multi_processor_count=132,
        warp_size=32, max_threads_per_multi_processor=2048,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "get_device_properties": properties, "get_device_capability": (9, 0), "get_device_name": properties.name,
        "current_device": 0, "device_count": 1, "mem_get_info": (memory_bytes, memory_bytes), "memory_stats": {},
        "is_bf16_supported": True, "synchronize": None, "empty_cache": None, "set_device": None,
        "memory_reserved": 0, "max_memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": 0,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    torch._C._cuda_getCurrentRawStream = lambda index: 0  # type: ignore[attr-defined]

    def on_cpu(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return "cpu" if isinstance(value, str) and value.startswith("cuda") else value

    class OnCpu(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = {k: "cpu" if k == "device" and isinstance(v, int) else on_cpu(v) for k, v in (kwargs or {}).items()}
            places = [on_cpu(value) for value in args]
            if function is torch.device and places and isinstance(places[0], int):
                return torch.device("cpu", 0)  # caches are kept by device index
            if getattr(function, "__name__", "") == "to" and len(places) > 1 and type(places[1]) is int:
                places[1] = "cpu"
            return function(*places, **named)

    OnCpu().__enter__()


def claim_bfloat16() -> None:
    """After ``import unsloth``: it grants bfloat16 to a present device alone, and would load float16 in its place."""
    import unsloth.models.llama as llama

    llama.SUPPORTS_BFLOAT16 = True
    llama.is_bfloat16_supported = lambda: True
