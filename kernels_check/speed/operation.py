"""What the timed operations share: sizes, implementations, and the least bytes and operations that they need.

Forward is timed with no gradient asked for. Forward and backward are timed together, as training runs them: weights
are frozen but for LoRA's, and the incoming gradient is given.

``traffic``: every input read once and every output written once; with the backward also every incoming gradient and
what the backward needs of the inputs again, and every gradient written. Intermediate results are not counted: an
implementation may keep them on the chip. ``flops``: 2 m n k for each matrix product, nothing else. From both and the
machine's measured rates follows the least time; the share of it is the same for all implementations of an operation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kernels_check.case import Inputs, Results

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Direction = Literal["forward", "forward+backward"]
FORWARD: Direction = "forward"
BOTH: Direction = "forward+backward"
CandidateName = Literal["unsloth", "liger", "eager", "compile"]
DTYPE = "bfloat16"
ITEM = 2
"""Bytes of one bfloat16."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one model's layers."""

    name: str
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 2
    length: int = 2048
    vocabulary: int = 128256
    rank: int = 16

    @property
    def rows(self) -> int:
        return self.batch * self.length


SHAPES = (
    Shape(name="llama-1b", hidden=2048, inter=8192, heads=32, kv_heads=8, head_dim=64),
    Shape(name="llama-8b", hidden=4096, inter=14336, heads=32, kv_heads=8, head_dim=128),
    Shape(name="llama-70b", hidden=8192, inter=28672, heads=64, kv_heads=8, head_dim=128),
)
"""Llama 3.2 1B, 3.1 8B and 3.1 70B, 2 x 2048 tokens."""
MIDDLE = "llama-8b"
"""The one shape of a quick run, and of what is compiled for one shape only."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute an operation."""

    call: Callable[[Inputs], Results]
    """The forward; imports what it needs itself and raises ``loading.Missing`` where it is not installed."""
    both: Callable[[Inputs], Results] | None = None
    """Forward and backward where autograd does not lead from one to the other: returns ``dX`` for each input X."""
    kernels: tuple[str, ...] = ()
    """Regular expressions; each must match the name of a launched Triton kernel, or it is not exercised."""
    backward_kernels: tuple[str, ...] = ()
    overwrites: tuple[str, ...] = ()
    """Inputs that the forward overwrites."""
    backward_overwrites: tuple[str, ...] = ()
    compiled: bool = False
    """Whether ``call`` is timed under torch.compile."""
    proof: Callable[[Inputs], None] | None = None
    """Raises where the implementation would not be exercised and no kernel's name can show it."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation at one size. ``draw`` makes inputs on the generator's device; it gets the same seed every time."""

    family: str
    shape: str
    dims: Mapping[str, int]
    draw: "Callable[[torch.Generator], Inputs]"
    candidates: Mapping[str, Implementation]
    """``eager`` is always among them: the others are compared with it."""
    gradients: tuple[str, ...] = ()
    """Inputs whose gradients are computed; none: only the forward is timed."""
    traffic: Mapping[str, int]
    """Bytes by direction."""
    flops: Mapping[str, int]

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (FORWARD, BOTH) if self.gradients else (FORWARD,)


def with_compile(candidates: dict[str, Implementation], shape: Shape, *, everywhere: bool) -> dict[str, Implementation]:
    """Adds ``compile``, torch.compile of ``eager``; at the middle shape only unless ``everywhere``: compiling takes
    most of the time of a run."""
    if everywhere or shape.name == MIDDLE:
        return candidates | {"compile": replace(candidates["eager"], compiled=True)}
    return candidates


def function(operation: Operation, direction: Direction, implementation: Implementation) -> Callable[[Inputs], Results]:
    """What is timed: inputs to results, gradients among them with the backward. torch.compile starts anew for each."""
    import torch

    from kernels_check.execute import _with_gradients

    call = implementation.call
    if implementation.compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        call = torch.compile(call, dynamic=False, fullgraph=True)

    def forward(inputs: Inputs) -> Results:
        with torch.no_grad():
            return call(inputs)

    def both(inputs: Inputs) -> Results:
        return _with_gradients(call(inputs), inputs, operation.gradients)

    return forward if direction == FORWARD else implementation.both or both


def drawn(operation: Operation, direction: Direction, device: str) -> Inputs:
    """A set of inputs; without a backward, no incoming gradients (``dY`` of the output Y) in it."""
    import torch

    inputs = operation.draw(torch.Generator(device).manual_seed(SEED))
    if direction == FORWARD:
        return {name: value for name, value in inputs.items() if not name.startswith("d")}
    for name in operation.gradients:
        inputs[name].requires_grad_()
    return inputs


def overwritten(implementation: Implementation, direction: Direction) -> tuple[str, ...]:
    """Inputs that a call leaves changed."""
    return implementation.overwrites + (implementation.backward_overwrites if direction == BOTH else ())


def normal(generator: "torch.Generator", *shape: int, scale: float = 1.0) -> "Tensor":
    """Normally distributed bfloat16 numbers on the generator's device."""
    import torch

    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.bfloat16) * scale


def tensors(inputs: Inputs) -> "list[Tensor]":
    """All tensors among the inputs, those of modules included."""
    import torch

    found: dict[int, Any] = {}
    for value in inputs.values():
        held = [*value.parameters()] if isinstance(value, torch.nn.Module) else [value]
        found |= {id(tensor): tensor for tensor in held if isinstance(tensor, torch.Tensor)}
    return list(found.values())


def size_bytes(inputs: Inputs) -> int:
    """Bytes that the tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(inputs))
