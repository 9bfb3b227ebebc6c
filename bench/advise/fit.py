"""The memory model's coefficients from records: constrained least squares, and errors on architectures left out.

Residuals are logarithms of predicted over measured, of three meters at once. Every architecture weighs the same,
however many records it has. A weak pull towards the counted values (``PULL``) decides what the records cannot.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, get_args

from bench.advise.parts import Coefficients, estimate
from bench.advise.rank import RankAccuracy, accuracy_by_rank
from bench.advise.setup import Setup, not_modelled, setup_of
from bench.advise.shapes import Shape, shape_of
from bench.advise.speed import SpeedPoint, speed_points
from bench.cell import Frozen
from bench.derived import derive, known_config
from bench.errors import InputError
from bench.health import computed_well
from bench.record import Record
from bench.store import Loaded

FIT_FILE = Path(__file__).parent / "fit.json"
MAKE = "make it with: peftmark calibrate RUNS"
PredictedMeter = Literal["torch_allocated", "torch_reserved", "nvml_process"]
METERS: tuple[PredictedMeter, ...] = get_args(PredictedMeter)
BOUNDS: dict[str, tuple[float, float]] = {
    "hf_workspace_mib": (32, 160), "hf_saved": (0.85, 1.2), "hf_working": (0.5, 1.6), "hf_slack": (0, 1),
    "adapter_slack": (0, 1.5),
    "unsloth_workspace_mib": (32, 160), "unsloth_saved": (0.85, 1.3), "unsloth_working": (0.5, 1.6),
    "unsloth_slack": (0, 1), "unsloth_buffers": (1, 8), "eager_bytes": (6, 20), "context_mib": (200, 1200),
    "offload_context_mib": (0, 300),
}  # fmt: skip
"""Least and greatest plausible value of each coefficient."""
PULL = 0.02
"""Weight of a coefficient's distance from its counted value, in widths of its bounds: as a residual of 2 %."""
SOFT = 0.02
"""Residuals beyond this count linearly, so that one odd record does not move the rest (soft L1)."""
MIN_RECORDS, MIN_ARCHITECTURES = 8, 2
REPEATED = "an earlier run of a cell, or of its other seeds"


@dataclass(frozen=True)
class Observation:
    """What one record says of memory."""

    record_id: str
    model: str
    shape: Shape
    backend: str
    setting: str
    """Precision, rank, batch x sequence and checkpointing, to be read."""
    setup: Setup
    peaks: dict[PredictedMeter, int]
    gpu: str


class Score(Frozen):
    """Relative errors of predictions: median and 95th percentile of their size, and the ends (negative: too low)."""

    records: int
    median: float
    p95: float
    lowest: float
    highest: float


class Row(Frozen):
    """One record in the error table; predictions come from a fit without its architecture."""

    record_id: str
    model: str
    backend: str
    setting: str
    measured: dict[PredictedMeter, int]
    predicted: dict[PredictedMeter, int]

    def error(self, meter: PredictedMeter) -> float:
        return self.predicted[meter] / self.measured[meter] - 1


class Range(Frozen):
    """What the records cover: where predictions reach beyond it, intervals widen."""

    parameters: tuple[float, float]
    tokens: tuple[float, float]
    sequence: tuple[float, float]
    r: tuple[float, float]
    kinds: list[str]
    """Backend, precision and checkpointing, as seen together."""


class Fit(Frozen):
    """The content of a fit file."""

    schema_version: int = 1
    made_on: str
    coefficients: Coefficients
    record_ids: list[str]
    architectures: list[str]
    gpus: list[str]
    left_out: dict[PredictedMeter, Score]
    """Errors on architectures that the fit had not seen."""
    spread: dict[PredictedMeter, float]
    """Root mean square of those errors' logarithms, every architecture weighing the same."""
    t_quantile: float
    """Student's t for an interval at 95 %, the architectures being the units."""
    rows: list[Row]
    covers: Range
    speeds: list[SpeedPoint]
    accuracy: list[RankAccuracy]
    skipped: dict[str, int] = {}
    """Records that the memory model was not fitted on, by reason."""


def observe(records: Sequence[Record]) -> tuple[list[Observation], dict[str, int]]:
    """The records that can be fitted on, of each cell the latest whatever its seed, and how many cannot, by
    reason."""
    found, skipped = dict[str, Observation](), Counter[str]()
    for record in sorted(records, key=lambda record: record.id):
        made = _observation(record)
        if isinstance(made, str):
            skipped[made] += 1
            continue
        key = record.cell.twin_key("seed")  # of the published records seeds differ by less than 1 %
        skipped[REPEATED] += key in found
        found[key] = made
    return list(found.values()), dict(+skipped)


def _observation(record: Record) -> Observation | str:
    cell = record.cell
    if not computed_well(record):
        return "did not end ok"
    if not record.environment.gpus:
        return "no GPU"
    if why := not_modelled(cell):
        return why
    if cell.vram_budget_bytes is not None:
        return "ran under a cap, which keeps the allocator from holding more than it needs"
    config, peaks = known_config(record), derive(record, lambda _: None).training_peaks
    if config is None:
        return "the model's configuration is not known here"
    if any(peaks[meter] is None for meter in METERS):
        return "a meter is missing"
    accumulation = cell.gradient_accumulation_steps
    tokens = max(record.steps.padded_tokens) / accumulation
    labelled = max(record.steps.trained_tokens) / accumulation / tokens
    setup = setup_of(cell, sequence=round(tokens / cell.batch_size), labelled=labelled)
    return Observation(
        record_id=record.id, model=cell.model, shape=shape_of(config, cell.model), backend=cell.backend,
        setting=f"{cell.precision} r{cell.r} {setup.batch}x{setup.sequence} {setup.kind}"
        + (" eager" if setup.eager else "") + f" {cell.optimizer} x{accumulation}",
        setup=setup, peaks={meter: peaks[meter] or 0 for meter in METERS}, gpu=record.environment.gpus[0].name,
    )  # fmt: skip


def solve(observations: Sequence[Observation]) -> Coefficients:
    """Least squares within the bounds; the start is the counted values."""
    import numpy as np
    from scipy.optimize import least_squares

    start = Coefficients()
    names = list(BOUNDS)
    low, high = (np.array([BOUNDS[name][side] for name in names], dtype=float) for side in (0, 1))
    centre = np.array([getattr(start, name) for name in names], dtype=float)
    models = [o.model for o in observations]
    weights = [1 / math.sqrt(models.count(model)) for model in models]

    def residuals(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[float]:
        c = Coefficients(**dict(zip(names, values.tolist(), strict=True)))
        errors = [
            weight * log_error
            for weight, o in zip(weights, observations, strict=True)
            for log_error in log_errors(o, c).values()
        ]
        return errors + (PULL * (values - centre) / (high - low)).tolist()

    found = least_squares(
        residuals, centre, bounds=(low, high), x_scale=high - low, loss="soft_l1", f_scale=SOFT, xtol=1e-4, ftol=1e-4
    )
    return Coefficients(**{name: round(float(value), 4) for name, value in zip(names, found.x, strict=True)})


def log_errors(o: Observation, c: Coefficients) -> dict[PredictedMeter, float]:
    """Logarithm of predicted over measured, by meter."""
    made = estimate(o.shape, o.setup, c)
    return {meter: math.log(getattr(made, meter) / o.peaks[meter]) for meter in METERS}


def leave_one_out(observations: Sequence[Observation]) -> list[Row]:
    """Every record predicted by a fit on the other architectures."""
    rows = []
    for model in sorted({o.model for o in observations}):
        c = solve([o for o in observations if o.model != model])
        for o in (o for o in observations if o.model == model):
            made = estimate(o.shape, o.setup, c)
            rows.append(Row(
                record_id=o.record_id, model=o.model, backend=o.backend, setting=o.setting, measured=o.peaks,
                predicted={meter: round(getattr(made, meter)) for meter in METERS},
            ))  # fmt: skip
    return rows


def score(errors: Sequence[float]) -> Score:
    """Of relative errors."""
    import numpy as np

    sizes = np.abs(errors)
    return Score(
        records=len(errors), median=float(np.median(sizes)), p95=float(np.quantile(sizes, 0.95)),
        lowest=min(errors), highest=max(errors),
    )  # fmt: skip


def calibrate(loaded: Sequence[Loaded]) -> Fit:
    """Fit everything on records.

    InputError where they are too few: fewer than MIN_RECORDS usable ones, or a single architecture.
    """
    records = [item.record for item in loaded]
    observations, skipped = observe(records)
    models = sorted({o.model for o in observations})
    if len(observations) < MIN_RECORDS or len(models) < MIN_ARCHITECTURES:
        told = "; ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise InputError(
            "calibrate", f"{len(observations)} usable records of {len(models)} architectures, and at least "
            f"{MIN_RECORDS} of {MIN_ARCHITECTURES} are needed" + (f" (left out: {told})" if told else ""),
            "run more cells, such as suite h100-memory, or give results/ as well",
        )  # fmt: skip
    rows = leave_one_out(observations)
    return Fit(
        made_on=date.today().isoformat(),
        coefficients=solve(observations),
        record_ids=[o.record_id for o in observations],
        architectures=models,
        gpus=sorted({o.gpu for o in observations if o.gpu}),
        left_out={meter: score([row.error(meter) for row in rows]) for meter in METERS},
        spread={meter: _spread(rows, meter) for meter in METERS},
        t_quantile=_t_quantile(len(models)),
        rows=rows,
        covers=_covers(observations),
        speeds=speed_points(records),
        accuracy=accuracy_by_rank(loaded),
        skipped=skipped,
    )


def _t_quantile(architectures: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, architectures - 1))


def _spread(rows: Sequence[Row], meter: PredictedMeter) -> float:
    by_model: dict[str, list[float]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(math.log1p(row.error(meter)) ** 2)
    return math.sqrt(sum(sum(v) / len(v) for v in by_model.values()) / len(by_model))


def _covers(observations: Sequence[Observation]) -> Range:
    def ends(values: Sequence[float]) -> tuple[float, float]:
        return min(values), max(values)

    setups = [o.setup for o in observations]
    return Range(
        parameters=ends([o.shape.parameters for o in observations]),
        tokens=ends([s.tokens for s in setups]),
        sequence=ends([s.sequence for s in setups]),
        r=ends([s.r for s in setups]),
        kinds=sorted({kind_of(s) for s in setups}),
    )


def kind_of(setup: Setup) -> str:
    """What has to have been measured for a prediction to be no extrapolation."""
    return f"{setup.backend} {setup.precision} {setup.kind}" + (" eager" if setup.eager else "")


def load_fit(path: Path = FIT_FILE) -> Fit:
    """The fit of a file; InputError where it is not one."""
    try:
        return Fit.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", MAKE) from None
    except ValueError as error:
        raise InputError(str(path), f"is not a fit file: {error}", MAKE) from None


def save_fit(fit: Fit, path: Path) -> None:
    """Write the fit as indented JSON."""
    path.write_text(fit.model_dump_json(indent=1) + "\n", encoding="utf-8")


def errors_on(fit: Fit, records: Sequence[Record]) -> dict[PredictedMeter, Score]:
    """Errors of a fit on records, whether it was made on them or not."""
    found = [log_errors(o, fit.coefficients) for o in observe(records)[0]]
    return {meter: score([math.expm1(errors[meter]) for errors in found]) for meter in METERS}
