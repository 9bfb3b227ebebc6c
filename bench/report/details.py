"""What the page opens under a record or a finding: plain lists of text, drawn in the browser."""

import json
from functools import cache
from typing import Any

from bench.cell import Cell
from bench.finding import Side
from bench.report.format import UNKNOWN, gib, number, percent, seconds
from bench.report.rows import METER_NAMES, interval_text
from bench.report.view import FindingView, RecordView

Facts = list[tuple[str, str]]


def record_details(one: RecordView) -> dict[str, Any]:
    """Everything of a record but its steps and timeline, which are tables of the page."""
    record = one.record
    environment = record.environment
    revision = (environment.git_revision or "")[:12] + (" with changes" if environment.git_dirty else "")
    return {
        "title": one.label,
        "facts": [("status", record.status + (f" in {record.failed_phase}" if record.failed_phase else "")),
                  ("started", record.started_at[:19]), ("suite", f"{record.suite}, repeat {record.repeat}"),
                  ("cell", record.cell_digest), ("harness", environment.harness_sha256[:12]),
                  *([("revision", revision)] if revision else [])],
        "message": record.message or "",
        "files": [("record.json", one.path), *one.files],
        "steady": _steady(one),
        "model": _model(one),
        "health": list(record.health.reasons) if record.health else [],
        "phases": [[phase.name, number(phase.wall_s), *map(gib, (
            phase.torch_allocated_peak_bytes, phase.torch_reserved_peak_bytes, phase.nvml_process_peak_bytes,
            phase.nvml_device_peak_bytes, phase.host_rss_peak_bytes))] for phase in record.phases],
        "audit": [[e.name, e.requested if e.requested is not None else "not asked", e.effective or UNKNOWN,
                   "ok" if e.ok else "differs"] for e in record.audit],
        "settings": _settings(record.cell),
    }  # fmt: skip


def finding_details(one: FindingView, index: dict[str, int]) -> dict[str, Any]:
    """Both sides, the statistics and the parity checks behind one row."""
    found = one.finding
    rates = found.rates
    facts: Facts = [("verdict", found.verdict + (f": {found.why}" if found.why else ""))]
    if found.speed:
        facts.append(("speed", found.speed))
    if found.speedup_interval:
        facts.append(("interval", interval_text(found.speedup_interval)))
    if rates:
        facts += [(name, text) for name, text in (
            ("why no interval", rates.why or ""), ("p", number(rates.p_value)),
            ("p, Holm-adjusted", number(found.adjusted_p_value)), ("would have shown", percent(rates.mde)),
        ) if text not in ("", UNKNOWN)]  # fmt: skip
    facts += [
        (name, text)
        for name, text in (
            ("GPU time", one.row.gpu_note and f"{one.row.gpu_time}, {one.row.gpu_note}"),
            ("kernels", one.row.dispatch),
            ("control", one.row.controls),
        )
        if text
    ]
    if found.break_even_steps is not None:
        facts.append(("break-even", one.row.break_even))
    sides = [side for side in (found.baseline, found.candidate) if side]
    return {
        "title": f"F{one.number}: {one.label}",
        "facts": facts,
        "sides": [_side(side) for side in sides],
        "checks": [[c.name, c.status, _value(c.baseline), _value(c.candidate), c.detail]
                   for c in (found.parity.checks if found.parity else [])],
        "records": [(side.backend, [index[id] for id in side.record_ids]) for side in sides],
    }  # fmt: skip


SIDE_COLUMNS = [
    "side", "n", "tokens/s", "padded tokens/s", "median step", "GPU time", "MFU", "startup",
    *(f"{name}, GiB" for name in METER_NAMES.values()),
]  # fmt: skip


def _side(side: Side) -> list[str]:
    peaks = [
        UNKNOWN if spread is None
        else gib(spread.median) if spread.minimum == spread.maximum
        else f"{gib(spread.median)} ({gib(spread.minimum)} to {gib(spread.maximum)})"
        for spread in side.training_peaks.values()
    ]  # fmt: skip
    return [
        side.backend, str(side.processes), number(side.tokens_per_s), number(side.padded_tokens_per_s),
        seconds(side.step_s), seconds(side.gpu_work_s), percent(side.mfu), seconds(side.startup_s), *peaks,
    ]  # fmt: skip


def _steady(one: RecordView) -> Facts:
    derived = one.derived
    if derived.tokens_per_s is None:
        return []
    facts = [
        ("timed steps", str(derived.timed_steps)), ("tokens/s, real", number(derived.tokens_per_s)),
        ("tokens/s, padded", number(derived.padded_tokens_per_s)),
        ("tokens/s by median step", number(derived.tokens_per_s_by_median_step)),
        ("samples/s", number(derived.samples_per_s)), ("step, median", seconds(derived.step_s_median)),
        ("GPU time of forward and backward", seconds(derived.gpu_work_s)),
        ("GPU at work, of a step", percent(derived.gpu_share)),
        ("step, p10 to p90", f"{seconds(derived.step_s_p10)} to {seconds(derived.step_s_p90)}"),
        ("MFU", percent(derived.mfu)), ("startup", seconds(derived.startup_s)),
    ]  # fmt: skip
    if check := derived.trainer:
        text = f"{number(check.tokens_per_s)}, {percent(check.relative_difference, 2)} off"
        facts.append((f"Trainer's own tokens/s ({check.counts})", text))
    return facts


def _model(one: RecordView) -> str:
    model = one.record.model
    if model is None:
        return ""
    counts = [f"{count:,} {what}" for count, what in (
        (model.parameters_total, "parameters"), (model.parameters_trainable, "trained")) if count]  # fmt: skip
    return f"{model.weights} weights: " + "; ".join([model.source_detail, *counts])


@cache
def _settings(cell: Cell) -> list[tuple[str, str]]:
    settings = cell.model_dump(mode="json")
    return [(name, _plain(settings[name])) for name in Cell.model_fields]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(value: float | str | None) -> str:
    return value[:80] if isinstance(value, str) else number(value, 5)
