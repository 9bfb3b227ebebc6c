"""Where a search goes: the advisor's memory model (bench.advise), set right by a probe's measured peak.

Only the number of probes depends on it, never the result. Before a probe has trained, a cell needs what the model says
of the NVML process, the allocator's slack included. Afterwards slack does not count, since under a cap the allocator
gives it back before it refuses, and all that grows with rank and tokens is scaled to the measured peak.
"""

from dataclasses import dataclass
from typing import Self

from bench.advise.fit import load_fit
from bench.advise.parts import CONTEXT, Coefficients, estimate, loading, weights_parts
from bench.advise.setup import not_modelled, setup_of
from bench.advise.shapes import Shape, shape_of
from bench.cell import Cell
from bench.errors import InputError


@dataclass(frozen=True)
class Guess:
    """The memory model of one architecture."""

    shape: Shape
    coefficients: Coefficients

    @classmethod
    def of(cls, cell: Cell) -> Self | None:
        """The cell's; None for a backend or method that is not modelled, or a configuration that is not known."""
        from bench.models.sources import config_for

        if not_modelled(cell) or not (config := config_for(cell)):
            return None
        try:
            shape = shape_of(config, cell.model)
        except InputError:  # not that of a decoder
            return None
        return cls(shape, load_fit().coefficients)

    def need_bytes(self, cell: Cell, scale: float | None = None) -> float:
        """GPU memory that loading and a step of the cell take; ``scale`` as measured on another value."""
        setup = setup_of(cell)
        ready = loading(self.shape, setup, self.coefficients).nvml_process
        if scale is None:
            return max(ready, estimate(self.shape, setup, self.coefficients).nvml_process)
        fixed, growing = self._split(cell)
        return max(ready, fixed + scale * growing)

    def scale(self, cell: Cell, measured_bytes: int) -> float:
        """What was measured (tensors, and what lies outside the allocator) over what is predicted, weights apart."""
        fixed, growing = self._split(cell)
        return max(0.1, (measured_bytes - fixed) / growing)

    def _split(self, cell: Cell) -> tuple[float, float]:
        """(weights and context, the other tensors), bytes."""
        made = estimate(self.shape, setup_of(cell), self.coefficients)
        weights = sum(part.size_bytes for part in weights_parts(self.shape, setup_of(cell)))
        context = sum(part.size_bytes for part in made.parts if part.name == CONTEXT)
        return weights + context, made.torch_allocated - weights
