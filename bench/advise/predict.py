"""Bytes with intervals: a fit applied to a setup.

The interval is the spread of errors on left-out architectures, times Student's t with the architectures as units, and
wider with distance from the records: half as wide again where backend, precision and checkpointing were never measured
together, and 15 % for every doubling beyond the records' model size, tokens, sequence or rank. On another GPU than the
records' the driver's share (context and libraries) is unknown within ``OTHER_GPU_MIB`` either way. These widenings are
judgement; ``peftmark calibrate`` on own records narrows them.
"""

import math

from bench.advise.fit import METERS, Fit, PredictedMeter, kind_of
from bench.advise.parts import MIB, Estimate, estimate, loading
from bench.advise.setup import Setup
from bench.advise.shapes import Shape
from bench.cell import Frozen

UNMEASURED_KIND = 0.5
PER_DOUBLING = 0.15
OTHER_GPU_MIB = 300


class Interval(Frozen):
    """Bytes, at 95 %."""

    low: float
    value: float
    high: float


class Prediction(Frozen):
    """Peaks of training, and of loading where that is higher."""

    peaks: dict[PredictedMeter, Interval]
    estimate: Estimate
    loading_bytes: float
    """NVML process while the model is made ready."""
    needed_bytes: float
    """Upper end of the NVML process peak, loading included: what has to be free."""
    beyond: list[str]
    """Where the setup lies outside what was measured."""


def predict(fit: Fit, shape: Shape, setup: Setup, nvml_name: str | None = None) -> Prediction:
    """Memory of a setup; ``nvml_name`` of the GPU it is to run on, None for the records' own."""
    made = estimate(shape, setup, fit.coefficients)
    beyond, widening = _beyond(fit, shape, setup)
    other = 0.0 if nvml_name is None or nvml_name in fit.gpus else OTHER_GPU_MIB * MIB
    peaks = {}
    for meter in METERS:
        value = getattr(made, meter)
        reach = math.exp(fit.t_quantile * fit.spread[meter] * math.sqrt(1 + 1 / len(fit.architectures)) * widening)
        extra = other if meter == "nvml_process" else 0.0
        peaks[meter] = Interval(low=value / reach - extra, value=value, high=value * reach + extra)
    if other:
        beyond.append("context and libraries on this GPU")
    ready = loading(shape, setup, fit.coefficients).nvml_process
    return Prediction(
        peaks=peaks, estimate=made, loading_bytes=ready,
        needed_bytes=max(peaks["nvml_process"].high, ready + other), beyond=beyond,
    )  # fmt: skip


def _beyond(fit: Fit, shape: Shape, setup: Setup) -> tuple[list[str], float]:
    told, widening = [], 1.0
    if kind_of(setup) not in fit.covers.kinds:
        told.append(kind_of(setup))
        widening += UNMEASURED_KIND
    asked = {"parameters": shape.parameters, "tokens": setup.tokens, "sequence": setup.sequence, "r": setup.r}
    for name, value in asked.items():
        low, high = getattr(fit.covers, name)
        if doublings := max(math.log2(low / value), math.log2(value / high), 0.0):
            told.append(f"{name} {value:,} (measured {low:,.0f} to {high:,.0f})")
            widening += PER_DOUBLING * doublings
    return told, widening
