"""The parity gate: did both sides of a pair train the same model on the same tokens? Only then is a speedup one.

``gate`` makes one ``Check`` for each thing that must agree. What must be equal is compared as it is. What rounding may
move is held against a tolerance that follows from the precision (bench.rounding); the loss curve is held against the
baseline's own spread over seeds. docs/METHOD.md has the reasons and the distances that were measured.
What may be paired at all is decided before, in bench.groups.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from bench import probe
from bench.cell import Frozen
from bench.derived import ConfigOf, known_config
from bench.health import computed_well
from bench.record import Record
from bench.rounding import Rounding
from bench.store import Loaded, whole_file

ParityStatus = Literal["ok", "failed", "not checked"]
Value = float | str | None

EFFECTIVE = ("adapter", "lora_rank", "lora_scaling", "lora_dropout", "target_modules", "base_precision")
"""Readings of the audit that must have been made and agree."""
OPTIONAL = ("quantised_modules", "optimizer", "recipe")
"""Readings that must agree where both sides have them; parity can be ok without."""


class Check(Frozen):
    """One thing that must agree."""

    name: str
    status: ParityStatus
    required: bool = True
    """Parity is not ok before this check was made."""
    baseline: Value = None
    candidate: Value = None
    difference: float | None = None
    """What is held against ``tolerance``; the detail says of what."""
    tolerance: float | None = None
    detail: str = ""
    """What differs and where, or why it was not checked and what to run."""


class Parity(Frozen):
    """The gate's outcome. Only ``ok`` makes a speedup a number to quote; ``failed`` makes it a warning."""

    status: ParityStatus
    checks: list[Check]

    @property
    def text(self) -> str:
        """The status, with the checks behind it unless it is ok."""
        behind = [c for c in self.checks if c.status == self.status and (c.required or c.status == "failed")]
        return self.status if self.status == "ok" else f"{self.status}: " + "; ".join(
            f"{c.name} ({c.detail})" for c in behind
        )  # fmt: skip


def gate(
    baseline: Sequence[Loaded],
    candidate: Sequence[Loaded],
    controls: Sequence[Loaded] = (),
    config_of: ConfigOf = known_config,
) -> Parity:
    """Whether two sides of a pair (their finished runs, at least one each) did the same work.

    ``controls`` may be any records: those of the baseline's cell with another seed, from the same environment, are
    used. ``config_of`` finds the model's configuration, for its depth. Checks that do not apply to full fine-tuning
    (nothing but base weights) are left out.
    """
    assert baseline and candidate, "a side without a finished run has no parity"
    sides = [item.record for item in baseline], [item.record for item in candidate]
    rounding = _rounding([*baseline, *candidate], config_of)
    adapted = sides[0][0].cell.method != "full"
    checks = [
        _equal("training data", *sides, lambda r: r.data and r.data.train_sha256),
        _equal("token stream", *sides, lambda r: r.data and r.data.stream_sha256),
        _seen_by_model(*sides),
        _equal("weights", *sides, lambda r: r.model and (r.model.weights_sha256 or r.model.source_detail)),
        _equal("trainable parameters", *sides, lambda r: r.model and r.model.parameters_trainable),
    ]
    if adapted:
        checks.append(_equal("initial adapter", *sides, lambda r: r.adapter.initial_sha256))
    names = EFFECTIVE if adapted else ("adapter", "base_precision")
    for name in (*names, *OPTIONAL):
        checks.append(_equal(name, *sides, _reading(name), required=name not in OPTIONAL))
    loss_within, norm_within = (rounding.loss, rounding.gradient_norm) if rounding else (None, None)
    checks.append(_step1("step-1 loss", *sides, lambda r: r.steps.loss, loss_within))
    checks.append(_step1("step-1 gradient norm", *sides, lambda r: r.steps.grad_norm, norm_within))
    if adapted:
        checks.append(_gradients(baseline, candidate, rounding))
    checks.append(_loss_curve(*sides, [item.record for item in controls]))
    return Parity(status=_overall(checks), checks=checks)


def _overall(checks: list[Check]) -> ParityStatus:
    if any(check.status == "failed" for check in checks):
        return "failed"
    return "not checked" if any(c.status == "not checked" and c.required for c in checks) else "ok"


def _rounding(items: Sequence[Loaded], config_of: ConfigOf) -> Rounding | None:
    """None where the model's depth (or in fp32 its width) is not known."""
    record = items[0].record
    config = config_of(record) or {}
    config = config.get("text_config") or config
    layers = config.get("num_hidden_layers") or _layers_of_probe(items)
    inner = max(config.get("hidden_size", 0), config.get("intermediate_size", 0))
    if not layers or (record.cell.precision == "fp32" and not inner):
        return None
    return Rounding.of(record.cell.precision, layers, inner)


def _layers_of_probe(items: Sequence[Loaded]) -> int | None:
    """One more than the highest layer number among the probe's tensors."""
    for file in filter(None, map(_probe_file, items)):
        names = [distance.name for distance in probe.compare(file, file)]
        numbers = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
        if numbers:
            return max(numbers) + 1
    return None


def _equal(
    name: str, base: list[Record], cand: list[Record], read: Callable[[Record], Any], required: bool = True
) -> Check:
    """Every run of both sides must give the same answer."""
    values = [[read(r) for r in side] for side in (base, cand)]
    shown = [", ".join(dict.fromkeys(str(v) for v in side if v is not None)) or None for side in values]
    known = {v for side in values for v in side if v is not None}
    gaps = [r.id for side, read_ in zip((base, cand), values, strict=True)
            for r, v in zip(side, read_, strict=True) if v is None]  # fmt: skip
    status: ParityStatus = "failed" if len(known) > 1 else "not checked" if gaps else "ok"
    detail = ""
    if status == "failed":
        detail = f"{shown[0]} against {shown[1]}"
    elif gaps:
        detail = f"not in {', '.join(gaps)}: run the cell again"
    return Check(
        name=name, status=status, required=required, baseline=shown[0], candidate=shown[1], detail=detail
    )  # fmt: skip


def _reading(name: str) -> Callable[[Record], str | None]:
    """What the audit read. Old records name an enumeration's member (OptimizerNames.ADAMW), later ones its value."""

    def read(record: Record) -> str | None:
        text = next((entry.effective for entry in record.audit if entry.name == name), None)
        return text and re.sub(r"\b(?:OptimizerNames|SchedulerType)\.(\w+)", lambda member: member[1].lower(), text)

    return read


def _seen_by_model(base: list[Record], cand: list[Record]) -> Check:
    """The tokens of the stream's first batch are those that the model's forward pass got, on every run."""
    check = _equal("stream seen by the model", base, cand, lambda r: r.data and r.data.stream_checked_in_forward)
    unseen = [r.id for r in (*base, *cand) if r.data and r.data.stream_checked_in_forward is False]
    if unseen:
        return check.model_copy(update={"status": "failed", "detail": f"other tokens in {', '.join(unseen)}"})
    return check


def _step1(
    name: str,
    base: list[Record],
    cand: list[Record],
    read: Callable[[Record], list[float | None]],
    tolerance: Callable[[int], float] | None,
) -> Check:
    """A number of the first step, of the two runs that lie furthest apart."""
    pairs = [(b, c) for b in _first(base, read) for c in _first(cand, read)]
    if len(pairs) < len(base) * len(cand):
        return Check(name=name, status="not checked", detail="a run did not log it: run the cell again")
    if tolerance is None:
        return Check(name=name, status="not checked", detail="the model's depth is not known: see its source")
    one, other = max(pairs, key=lambda pair: abs(pair[1] - pair[0]))
    difference = abs(other - one) / abs(one) if one else math.inf
    allowed = tolerance(base[0].steps.trained_tokens[0])
    good = difference <= allowed
    detail = f"relative difference {difference:.2g}, {allowed:.2g} allowed"
    return Check(
        name=name, status="ok" if good else "failed", baseline=one, candidate=other, difference=difference,
        tolerance=allowed, detail=detail,
    )  # fmt: skip


def _first(records: list[Record], read: Callable[[Record], list[float | None]]) -> list[float]:
    return [value for r in records if (value := next(iter(read(r)), None)) is not None and math.isfinite(value)]


def _probe_file(item: Loaded) -> Path | None:
    return whole_file(item, item.record.probe)


def _gradients(base: Sequence[Loaded], cand: Sequence[Loaded], rounding: Rounding | None) -> Check:
    """Every adapter tensor's gradient, each run of a side against the first of the other."""
    name = "gradients"
    without = [item.record.id for item in (*base, *cand) if _probe_file(item) is None]
    if without:
        return Check(name=name, status="not checked",
                     detail=f"no whole gradient probe in {', '.join(without)}: run the cell again")  # fmt: skip
    if rounding is None:
        return Check(name=name, status="not checked", detail="the model's width is not known: see its source")
    batches = {(p.rows, p.tokens) for item in (*base, *cand) if (p := item.record.probe)}
    if len(batches) > 1:
        return Check(name=name, status="failed", detail=f"the probes saw unlike batches (rows, tokens): {batches}")
    couples = [(base[0], c) for c in cand] + [(b, cand[0]) for b in base[1:]]
    checks = [_gradients_of(name, *couple, rounding) for couple in couples]
    return max(checks, key=lambda c: (c.status == "failed", c.difference or 0))


def _gradients_of(name: str, base: Loaded, cand: Loaded, rounding: Rounding) -> Check:
    """The values are the losses of the probe's batch; the difference is that of the tensor furthest apart."""
    files, facts = (_probe_file(base), _probe_file(cand)), (base.record.probe, cand.record.probe)
    assert files[0] and files[1] and facts[0] and facts[1]
    found = probe.compare(files[0], files[1])
    allowed, usual = rounding.tensor(), rounding.median_tensor()
    missing = [f"{d.name} missing in the {'baseline' if d.missing_in == 'a' else 'candidate'}"
               for d in found if d.missing_in]  # fmt: skip
    both = sorted((d for d in found if d.relative_distance is not None), key=lambda d: -(d.relative_distance or 0))
    far = [d for d in both if not (d.relative_distance or 0) <= allowed]
    middle = median(d.relative_distance or 0 for d in both) if both else math.inf
    said = [f"{len(missing)} tensors on one side only: {', '.join(missing[:3])}"] if missing else []
    if far:
        worst = ", ".join(
            f"{d.name}: {d.relative_distance:.2g}, cosine {d.cosine:.3f}, norm ratio {d.norm_ratio:.3f}"
            for d in far[:3]
        )
        said.append(f"{len(far)} of {len(both)} tensors further apart than {allowed:.2g}: {worst}")
    if middle > usual:
        said.append(f"the median of {len(both)} tensors is {middle:.2g} apart, {usual:.2g} allowed")
    fine = f"worst of {len(both)} tensors {both[0].relative_distance:.2g} apart ({allowed:.2g} allowed), " \
           f"median {middle:.2g} ({usual:.2g})" if both else ""  # fmt: skip
    return Check(
        name=name, status="failed" if said else "ok", baseline=facts[0].loss, candidate=facts[1].loss,
        difference=both[0].relative_distance if both else None, tolerance=allowed, detail="; ".join(said) or fine,
    )  # fmt: skip


def _loss_curve(base: list[Record], cand: list[Record], controls: list[Record]) -> Check:
    """Distance over all steps, against that of the baseline's nearest two seeds."""
    name, cell = "loss curve", base[0].cell
    by_seed: dict[int, list[Record]] = {cell.seed: base}
    machine = base[0].environment.fingerprint
    for record in controls:
        seed = record.cell.seed
        fit = computed_well(record) and seed != cell.seed and record.cell.backend == cell.backend
        fit = fit and record.cell.model_copy(update={"seed": cell.seed}) == cell
        if fit and record.environment.fingerprint == machine:
            by_seed.setdefault(seed, []).append(record)
    curves, other = {seed: _curve(records) for seed, records in by_seed.items()}, _curve(cand)
    known = {seed: curve for seed, curve in curves.items() if curve}
    if not other or cell.seed not in known:
        return Check(name=name, status="not checked", detail="a run has steps without a loss: run the cell again")
    distance = _distance(known[cell.seed], other)
    if len(known) < 2:
        detail = f"no run of {cell.backend} with another seed to compare with: run the cell with seed {cell.seed + 1}"
        return Check(name=name, status="not checked", difference=distance, detail=detail)
    allowed, pair = min((_distance(known[a], known[b]), (a, b)) for a, b in combinations(sorted(known), 2))
    detail = f"{distance:.2g} apart; {cell.backend} with seeds {pair[0]} and {pair[1]}, its nearest two: {allowed:.2g}"
    return Check(
        name=name, status="ok" if distance <= allowed else "failed", baseline=known[cell.seed][-1],
        candidate=other[-1], difference=distance, tolerance=allowed, detail=detail,
    )  # fmt: skip


def _curve(records: list[Record]) -> list[float]:
    """Median loss of each step over the runs; empty where a run has a step without one above 0."""
    series = list(zip(*(r.steps.loss for r in records), strict=False))
    if not series or any(loss is None or loss <= 0 for step in series for loss in step):
        return []
    return [median(loss for loss in step if loss is not None) for step in series]


def _distance(one: list[float], other: list[float]) -> float:
    """Root mean square over the steps of the logarithm of the ratio: a relative difference, the same both ways."""
    return math.sqrt(fmean(math.log(b / a) ** 2 for a, b in zip(one, other, strict=False)))
