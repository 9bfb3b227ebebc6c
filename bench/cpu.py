"""What a processor without a GPU needs so that the same run trains there: correctly, and in a demo's time.

Neither is used on a GPU. Numbers from a CPU show that the harness works; they are not speed results.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def bf16_matmul() -> AbstractContextManager[Any]:
    """Where torch has no fast bf16 matrix product (no AVX-512), compute it in float32 and round the result to bf16.

    That is what a bf16 tensor core does too (float32 accumulation), and here it is some ten times faster than torch's
    fallback. Inactive with a GPU or with AVX-512.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    if torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"):
        return nullcontext()
    aten = torch.ops.aten
    products = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}

    class Float32Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in products and args[0].dtype is torch.bfloat16 and args[0].device.type == "cpu":
                widened = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
                return func(*widened, **kwargs).bfloat16()
            return func(*args, **kwargs)

    return Float32Products()


def exact_nf4_gradients(model: Any) -> None:
    """Forbid bitsandbytes' repacking of NF4 weights on a CPU.

    After any no-grad forward it repacks weights for a kernel without autograd (AVX512-BF16 processors), and gradients
    are silently wrong from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
