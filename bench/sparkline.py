"""Sparklines of text: a series as a row of blocks."""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "·"


def blocks(
    values: Sequence[float | None],
    *,
    log: bool = False,
    floor: float | None = None,
    spanned_by: Sequence[float | None] = (),
) -> str:
    """One block a value, the lowest (or ``floor``) as the lowest block; a gap where a value is not known.

    On a logarithmic scale (values above 0) the axis spans a factor of two at least, so that noise looks like noise.
    Where the axis is spanned by other values, what lies beyond gets the lowest or highest block.
    """
    known = [
        value for value in spanned_by or values if value is not None and math.isfinite(value) and (value > 0 or not log)
    ]
    if not known:
        return GAP * len(values)
    scale = math.log if log else float
    low, high = scale(min(known) if floor is None else floor), scale(max(known))
    if log:
        widen = max(0.0, (math.log(2) - (high - low)) / 2)
        low, high = low - widen, high + widen
    elif high <= low:
        high = low + 1
    drawn = []
    for value in values:
        if value is None or not math.isfinite(value) or (log and value <= 0):
            drawn.append(GAP)
        else:
            drawn.append(BLOCKS[min(len(BLOCKS) - 1, max(0, int((scale(value) - low) / (high - low) * len(BLOCKS))))])
    return "".join(drawn)


def thinned(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most ``width`` values: the highest of each of equal stretches, so that no peak is lost."""
    if len(values) <= width:
        return list(values)
    edges = [len(values) * i // width for i in range(width + 1)]
    stretches = ([v for v in values[a:b] if v is not None] for a, b in zip(edges, edges[1:], strict=False))
    return [max(stretch, default=None) for stretch in stretches]
