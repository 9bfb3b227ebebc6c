"""The inputs that break normalisation kernels; shared by the families that normalise rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kernels_check.case import DTYPES, TWO_DTYPES, Inputs, expanded_rows, strided


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kind of input. ``scale`` multiplies X, ``offset`` is its mean before; ``layout`` says how X and dY lie."""

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0
    offset: float = 0.25
    layout: str = "contiguous"
    poison: float | None = None
    frozen: bool = False
    dtypes: tuple[str, ...] = DTYPES

    def draw(self, generator: torch.Generator, dtype: torch.dtype, *, weight_mean: float = 1.0) -> Inputs:
        """X, W, b and dY. With ``poison`` one element of X holds it."""

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        width = self.shape[-1]
        rows = torch.exp2(torch.randint(-3, 4, (*self.shape[:-1], 1), generator=generator).float())  # unlike rows
        x = (normal(*self.shape) * rows * self.scale + self.offset * self.scale).to(dtype)
        dy = normal(*self.shape).to(dtype)
        if self.poison is not None:
            x.view(-1, width)[0, width // 2] = self.poison
        if self.layout == "strided":
            x, dy = strided(x), strided(dy)
        elif self.layout == "transposed":
            x, dy = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, dy))
        elif self.layout == "expanded":
            dy = expanded_rows(dy[0], self.shape[0])
        weight = (weight_mean + 0.3 * normal(width)).to(dtype)
        bias = (0.3 * normal(width)).to(dtype)
        return {"X": x, "W": weight, "b": bias, "dY": dy}


def variants() -> Iterator[Variant]:
    """Odd and prime widths, one row, one column, many rows, long rows, layouts, magnitudes, NaN and infinity."""
    yield Variant(name="plain", shape=(2, 3, 256))
    yield Variant(name="prime width", shape=(3, 5, 509))
    yield Variant(name="narrow odd width", shape=(3, 3, 37))
    yield Variant(name="one row", shape=(1, 1, 1000))
    yield Variant(name="one column", shape=(3, 2, 1))
    yield Variant(name="many rows", shape=(1031, 24), dtypes=("bfloat16",))
    yield Variant(name="long rows", shape=(2, 1, 4099), dtypes=TWO_DTYPES)
    yield Variant(name="strided", shape=(3, 5, 100), layout="strided", dtypes=TWO_DTYPES)
    yield Variant(name="transposed", shape=(3, 4, 65), layout="transposed", dtypes=TWO_DTYPES)
    yield Variant(name="expanded gradient", shape=(4, 3, 130), layout="expanded", dtypes=TWO_DTYPES)
    yield Variant(name="tiny", shape=(4, 2, 200), scale=2.0**-12)
    yield Variant(name="huge", shape=(4, 2, 200), scale=2.0**10)
    yield Variant(name="frozen weight", shape=(3, 7, 301), frozen=True, dtypes=TWO_DTYPES)
    yield Variant(name="NaN", shape=(2, 3, 61), poison=float("nan"))
    yield Variant(name="infinity", shape=(2, 3, 61), poison=float("inf"))
