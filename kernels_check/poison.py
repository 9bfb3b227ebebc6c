"""Memory that shows a kernel's mistakes: new tensors are filled with NaN and lie between guards.

An element that a kernel does not write stays NaN (the largest integer in integer tensors); a read past a tensor finds
NaN; a write past it changes a guard, which ``Memory.damage`` reports. The NaN is a signalling one, told by its bits:
any arithmetic makes it a quiet one, so that a kernel that reads past a tensor and writes the result past another is
seen too. Works on any device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GUARD_ELEMENTS = 4096
"""On each side; a multiple of every alignment that Triton specialises on."""


class Memory:
    """The guarded tensors of one call."""

    def __init__(self) -> None:
        self._flats: list[tuple[str, Tensor]] = []

    def guarded(self, like: "Tensor", name: str, device: "torch.device | str | None" = None) -> "Tensor":
        """A poisoned tensor between guards, with shape, strides and dtype of ``like``."""
        import torch

        span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
        length, bits = span + 2 * GUARD_ELEMENTS, _integer(like.dtype)
        flat = torch.full((length,), _poison(like.dtype), dtype=bits, device=device or like.device).view(like.dtype)
        self._flats.append((name, flat))
        made = torch.tensor([], dtype=like.dtype, device=flat.device)
        return made.set_(flat.untyped_storage(), GUARD_ELEMENTS, like.shape, like.stride())

    def copied(self, source: "Tensor", name: str, device: "torch.device | str") -> "Tensor":
        """``source`` between guards on ``device``: same values, same strides, whatever lies between them included."""
        made = self.guarded(source, name, device)
        flat = self._flats[-1][1]
        span = flat.numel() - 2 * GUARD_ELEMENTS
        flat[GUARD_ELEMENTS : GUARD_ELEMENTS + span] = source.as_strided((span,), (1,)).to(flat.device)
        return made

    def damage(self) -> list[str]:
        """The tensors before or after which something was written."""
        found = []
        for name, flat in self._flats:
            bits = flat.view(_integer(flat.dtype))
            for side, guard in (("before", bits[:GUARD_ELEMENTS]), ("after", bits[-GUARD_ELEMENTS:])):
                intact = guard == _poison(flat.dtype)
                if not bool(intact.all()):
                    found.append(f"{int((~intact).sum())} element(s) written {side} {name}")
        return found


def _integer(dtype: "torch.dtype") -> "torch.dtype":
    """The integer type that shows the bits of ``dtype``; itself where it holds integers."""
    import torch

    if not dtype.is_floating_point:
        return dtype
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _poison(dtype: "torch.dtype") -> int | bool:
    """A signalling NaN's bits (8-bit floats: all ones but the sign, their NaN); the largest integer."""
    import torch

    signalling = {
        torch.float16: 0x7D00, torch.bfloat16: 0x7FA0, torch.float32: 0x7FA00000, torch.float64: 0x7FF4 << 48,
    }  # fmt: skip
    if dtype.is_floating_point:
        return signalling.get(dtype, 0x7F)
    return True if dtype == torch.bool else torch.iinfo(dtype).max


@contextmanager
def poisoned(memory: Memory) -> Iterator[None]:
    """While it lasts, uninitialised tensors made from Python come from ``memory``; those of PyTorch's compiler, which
    have no memory (fake tensors), do not."""
    import torch

    def replaced(real: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            made = real(*args, **kwargs)
            if torch.compiler.is_compiling() or type(made) is not torch.Tensor:
                return made
            if made.numel() == 0 or made.is_meta or made.is_complex():
                return made
            return memory.guarded(made, f"a new tensor of shape {tuple(made.shape)}").requires_grad_(made.requires_grad)

        return make

    owners = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    kept = [(owner, name, getattr(owner, name)) for owner, name in owners]
    try:
        for owner, name, real in kept:
            setattr(owner, name, replaced(real))
        yield
    finally:
        for owner, name, real in kept:
            setattr(owner, name, real)
