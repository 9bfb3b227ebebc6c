"""Plain bars that a template draws without a script: used by the page of the kernels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One bar: share of its scale's longest, 0 to 100."""

    name: str
    share: float
    text: str
    candidate: bool


@dataclass(frozen=True)
class BarGroup:
    """The bars of one label."""

    label: str
    bars: list[Bar]
