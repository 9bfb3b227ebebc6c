"""Tokens/s on a GPU, scaled from the nearest measured record by a roofline.

A token's time is taken as the larger of two: its floating-point operations (forward, backward, and the forward again
where activations are recomputed) over the GPU's dense 16-bit peak, and its bytes (base weights read three times a pass,
activations written and read) over the bandwidth. The record's own share of that bound carries over to the target. That
share is not the same everywhere, so the interval widens with every doubling between the record and the target.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from bench.advise.gpus import GpuSpec, by_nvml_name
from bench.advise.parts import weights_parts
from bench.advise.setup import Kind, Setup, not_modelled, setup_of
from bench.advise.shapes import Shape, shape_of
from bench.cell import Frozen
from bench.derived import derive, known_config
from bench.record import Record

BASE_FACTOR = 1.30
"""Interval where nothing but the rank differs from the record: twice the standard deviation between processes of one
cell on one machine (0.13 of the logarithm, a 1B model that waits for the CPU: docs/statistics.md)."""
PER_DOUBLING = {"compute": 0.20, "bandwidth": 0.10, "parameters": 0.10, "tokens": 0.10}
"""Growth of the interval (in logarithms) for each doubling of the ratio between record and target."""
OTHER_PRECISION = 0.30
OTHER_CHECKPOINTING = 0.25
OTHER_FAMILY = 0.20
"""Growth where the nearest record has another precision, checkpointing or model type. These figures are judgement, not
measurement: records of one GPU cannot tell them."""


class SpeedPoint(Frozen):
    """A measured rate, and what is needed to scale it."""

    record_id: str
    gpu: str
    model: str
    shape: Shape
    backend: str
    precision: str
    r: int
    batch: int
    sequence: int
    kind: Kind
    tokens_per_s: float
    """Positions computed, padding included: the work that was done."""


class Rate(Frozen):
    """Predicted tokens/s with its interval, and the record it is scaled from."""

    value: float
    low: float
    high: float
    from_record: str
    bound: str
    """What limits it by the roofline: compute or bandwidth."""


def _speed_point(record: Record) -> SpeedPoint | None:
    """The record's rate; None where it has none, or is of something that is not modelled."""
    cell = record.cell
    if record.status != "ok" or not_modelled(cell) or cell.attention == "eager":
        return None
    config, rate = known_config(record), derive(record, lambda _: None).padded_tokens_per_s
    gpus = record.environment.gpus
    if config is None or rate is None or not gpus or by_nvml_name(gpus[0].name) is None:
        return None
    setup = setup_of(cell)
    tokens = max(record.steps.padded_tokens) / cell.gradient_accumulation_steps
    return SpeedPoint(
        record_id=record.id, gpu=gpus[0].name, model=cell.model, shape=shape_of(config, cell.model),
        backend=cell.backend, precision=cell.precision, r=cell.r or 0, batch=cell.batch_size,
        sequence=round(tokens / cell.batch_size), kind=setup.kind, tokens_per_s=rate,
    )  # fmt: skip


def speed_points(records: Iterable[Record]) -> list[SpeedPoint]:
    """One a cell: of its runs the median one."""
    cells: dict[str, list[SpeedPoint]] = defaultdict(list)
    for record in records:
        if point := _speed_point(record):
            cells[record.cell_digest].append(point)
    return [sorted(runs, key=lambda run: run.tokens_per_s)[len(runs) // 2] for runs in cells.values()]


def predict_rate(points: Sequence[SpeedPoint], shape: Shape, setup: Setup, gpu: GpuSpec) -> Rate | None:
    """Tokens/s of a setup on a GPU; None where no record has its backend."""
    same = [point for point in points if point.backend == setup.backend]
    if not same:
        return None
    reach, point = min(((_reach(p, shape, setup, gpu), p) for p in same), key=lambda pair: pair[0])
    there = by_nvml_name(point.gpu)
    assert there is not None  # _speed_point keeps known GPUs alone
    was, _ = seconds_per_token(point.shape, _setup_of_point(point), there)
    now, bound = seconds_per_token(shape, setup, gpu)
    value, factor = point.tokens_per_s * was / now, math.exp(math.log(BASE_FACTOR) + reach)
    return Rate(value=value, low=value / factor, high=value * factor, from_record=point.record_id, bound=bound)


def seconds_per_token(shape: Shape, setup: Setup, gpu: GpuSpec) -> tuple[float, str]:
    """The roofline's bound, and which of the two it is."""
    active = shape.linear_weights + shape.sparse_layers * 3 * shape.hidden * max(shape.mlp - shape.shared_mlp, 0)
    passes = 2 if setup.kind == "off" else 3  # forward, gradient of the input, and the forward again
    scores = 4 * shape.layers * shape.queries * setup.sequence
    trainable = shape.trainable(setup.r, setup.target_modules)
    flops = passes * 2 * active + 4 * shape.embedding_weights + (passes + 1) * (2 * trainable + scores)
    weights = sum(part.size_bytes for part in weights_parts(shape, setup))
    activations = shape.layers * (18 * shape.hidden + 8 * shape.mlp) * 2 * passes
    moved = passes * weights / setup.tokens + activations
    compute, bandwidth = flops / (gpu.tensor_tflops * 1e12), moved / (gpu.bandwidth_gb_s * 1e9)
    return max((compute, "compute"), (bandwidth, "bandwidth"))


def _reach(point: SpeedPoint, shape: Shape, setup: Setup, gpu: GpuSpec) -> float:
    """How far the record lies from the target, in logarithms of the interval's factor."""
    there = by_nvml_name(point.gpu)
    assert there is not None
    doublings = {
        "compute": gpu.tensor_tflops / there.tensor_tflops,
        "bandwidth": gpu.bandwidth_gb_s / there.bandwidth_gb_s,
        "parameters": shape.parameters / point.shape.parameters,
        "tokens": setup.tokens / (point.batch * point.sequence),
    }
    far = sum(PER_DOUBLING[name] * abs(math.log2(ratio)) for name, ratio in doublings.items())
    far += OTHER_PRECISION * (point.precision != setup.precision) + OTHER_CHECKPOINTING * (point.kind != setup.kind)
    return far + OTHER_FAMILY * (point.shape.model_type != shape.model_type)


def _setup_of_point(point: SpeedPoint) -> Setup:
    return Setup(
        backend=point.backend, precision=point.precision, r=point.r, batch=point.batch, sequence=point.sequence,
        kind=point.kind,  # type: ignore[arg-type]
    )  # fmt: skip
