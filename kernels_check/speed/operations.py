"""All timed operations."""

from collections.abc import Iterator
from dataclasses import dataclass

from kernels_check.speed.operation import DTYPE, MIDDLE, SHAPES, CandidateName, Direction, Operation, Shape

FAMILIES = (
    "rms_layernorm", "add_rms_layernorm", "layernorm", "rope", "swiglu", "geglu_exact", "geglu_approximate",
    "cross_entropy", "linear_cross_entropy", "lora_qkv", "lora_o", "lora_mlp", "lora_qkv_nf4", "lora_o_nf4",
    "lora_mlp_nf4", "nf4_dequantise", "nf4_gemv",
)  # fmt: skip
ORDER: tuple[CandidateName, ...] = ("eager", "unsloth", "liger", "compile")
VOCABULARIES = (32000, 128256)


def operations(only: list[str] | None = None, *, quick: bool = False) -> list[Operation]:
    """The operations of the named families (default: all), a family's together; quick: of the middle shape alone."""
    shapes = [shape for shape in SHAPES if not quick or shape.name == MIDDLE]
    found = [item for shape in shapes for item in of_shape(shape)]
    return [item for family in FAMILIES if not only or family in only for item in found if item.family == family]


def of_shape(shape: Shape) -> list[Operation]:
    """All operations at one shape; those that the layers' sizes play no part in are at the middle one's."""
    from kernels_check.speed import lora, losses, nf4, norms, pointwise

    made = [*norms.operations(shape), *pointwise.operations(shape), losses.linear_cross_entropy(shape)]
    if shape.name == MIDDLE:
        made += [losses.cross_entropy(shape, vocabulary) for vocabulary in VOCABULARIES]
    return [*made, *lora.operations(shape), *nf4.operations(shape)]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One operation, direction and candidate."""

    operation: Operation
    direction: Direction
    candidate: CandidateName

    @property
    def id(self) -> str:
        return f"{self.operation.family}-{self.operation.shape}-{DTYPE}-{self.direction}-{self.candidate}"

    @property
    def group(self) -> str:
        return f"{self.operation.family} {self.operation.shape} {DTYPE} {self.direction}"


def benchmarks(only: list[str] | None = None, *, quick: bool = False) -> Iterator[Benchmark]:
    """In the order in which they are timed."""
    for operation in operations(only, quick=quick):
        for direction in operation.directions:
            for candidate in ORDER:
                if candidate in operation.candidates:
                    yield Benchmark(operation=operation, direction=direction, candidate=candidate)
