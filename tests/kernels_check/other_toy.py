"""A second toy family: runs after the first one's process died."""

from kernels_check.case import Case
from tests.kernels_check import toy


def cases() -> list[Case]:
    """The right kernel alone."""
    case = toy.cases()[0]
    return [toy._case("sums", {"right": case.candidates["right"]})]
