"""Memory: peaks of both sides under each meter, what a peak is made of, and one run's course over time."""

from typing import Any

from bench.finding import Side
from bench.report.charts.theme import (
    BLUE,
    GREY,
    METER_COLOURS,
    ORANGE,
    SKY,
    backend_scales,
    finish,
    first_rows,
    named,
    room,
)
from bench.report.format import GIB, gib, percent
from bench.report.rows import METER_NAMES
from bench.report.sections import Chart, Columns, Control, Option, columns_of
from bench.report.timeline import timeline_rows
from bench.report.view import FindingView, View

PEAKS, PARTS, TIMELINE, PHASES = "peaks", "parts", "timeline", "phases"
PART_COLOURS = {
    "torch allocated": BLUE, "reserved, not allocated": SKY, "process, outside torch": ORANGE,
    "other on the device": GREY,
}  # fmt: skip


def peaks_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """Both sides of every pair under the chosen meter; None where no pair has a peak."""
    rows = [row for one in view.findings if one.paired for row in _peak_rows(one)]
    if not rows:
        return None
    main = [row for row in rows if row["meter"] == METER_NAMES["nvml_process"]] or rows
    saved = [row for row in main if row["saving"] is not None]
    alt = f"{len(main)} pairs under {main[0]['meter']}."
    if saved:
        most, least = max(saved, key=lambda r: r["saving"]), min(saved, key=lambda r: r["saving"])
        alt += (f" Savings from {least['text']} ({least['label']}, {least['gib_text']} GiB) to {most['text']} "
                f"({most['label']}, {most['gib_text']} GiB).")  # fmt: skip
    meters = [name for name in METER_NAMES.values() if any(row["meter"] == name for row in rows)]
    start = meters.index(main[0]["meter"])
    chart = Chart(
        id="peaks", title="Peak memory of training",
        see="Each line joins the baseline's peak to the candidate's: a candidate further left needs less. The number "
            "is the saving; the four meters measure different things and are never mixed.",
        alt=alt, tables=[PEAKS],
        spec=_peaks_spec(view, {row[side] for row in rows for side in ("baseline", "backend")}),
        columns={"label": "cell", "meter": "meter", "baseline": "baseline", "backend": "candidate",
                 "gib_text": "peaks, GiB", "text": "saving"},
        control=Control("Meter", "meter", [Option(name, [name]) for name in meters], start),
    )  # fmt: skip
    return chart, {PEAKS: columns_of(rows)}


def _peak_rows(one: FindingView) -> list[dict[str, Any]]:
    return [
        {
            **one.about, "href": f"#{one.anchor}", "label": one.label, "order": one.number, "meter": METER_NAMES[meter],
            "baseline_gib": round(memory.baseline.median / GIB, 3),
            "candidate_gib": round(memory.candidate.median / GIB, 3),
            "gib_text": f"{gib(memory.baseline.median)} → {gib(memory.candidate.median)}", "saving": memory.saving,
            "text": "" if memory.saving is None else percent(memory.saving),
        }
        for meter, memory in one.finding.memory.items()
        if memory.baseline and memory.candidate
    ]  # fmt: skip


def _peaks_spec(view: View, used: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, shapes, _ = backend_scales(view.backends, used)
    y = alt.Y("label:N", sort=alt.EncodingSortField("order", op="min"), title=None, axis=alt.Axis(grid=True))
    base = first_rows(alt.Chart(named(PEAKS)))
    scale = alt.Scale(zero=True)
    shown = {"label": "cell", "gib_text": "GiB", "text": "saving", "baseline": "baseline", "backend": "candidate"}
    tooltip = [alt.Tooltip(f"{name}:N", title=title) for name, title in shown.items()]

    def points(x: str, side: str) -> Any:
        return base.mark_point().encode(
            y=y, x=alt.X(f"{x}:Q", title="GiB (2^30 bytes)", scale=scale), tooltip=tooltip,
            color=alt.Color(f"{side}:N", scale=colours), shape=alt.Shape(f"{side}:N", scale=shapes),
        )  # fmt: skip

    line = base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(y=y, x="baseline_gib:Q", x2="candidate_gib:Q")
    ended = base.transform_calculate(end="max(datum.baseline_gib, datum.candidate_gib)")
    return finish(alt.layer(
        line, points("baseline_gib", "baseline"), points("candidate_gib", "backend"),
        ended.mark_text(align="left", dx=11).encode(y=y, x=alt.X("end:Q"), text="text:N"), room(ended, "x", "end"),
    ))  # fmt: skip


def parts_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """What the peak is made of, by rank and backend; None where no side has all four meters."""
    families: dict[str, tuple[str, dict[str, list[dict[str, Any]]]]] = {}
    for one in view.findings:
        if one.paired:
            key = one.finding.cell.twin_key("backend", "r") + one.finding.environment
            name = f"{one.row.model} {one.row.precision}, {one.row.recipe}"
            name, bars = families.setdefault(key, (name, {}))
            for side in (one.finding.baseline, one.finding.candidate):
                if side and side.record_ids[0] not in bars and (rows := _part_rows(one, side)):
                    bars[side.record_ids[0]] = rows
    shown = [(name, bars) for name, bars in families.values() if len(bars) > 1]
    if not shown:
        return None
    rows, options = [], []
    for number, (name, bars) in enumerate(shown):
        about = next(iter(bars.values()))[0]
        twice = sum(other == name for other, _ in shown) > 1
        options.append(Option(f"{name} ({number + 1})" if twice else name, [number],
                              {key: about[key] for key in ("model", "precision")}))  # fmt: skip
        rows += [{**row, "family": number} for found in bars.values() for row in found]
    start = max(range(len(shown)), key=lambda i: len(shown[i][1]))
    first = [row for row in rows if row["family"] == start]
    said = "; ".join(f"{row['bar']}: {row['gib']:.2f} GiB" for row in first if row["part"] == "torch allocated")
    chart = Chart(
        id="parts", title="What the peak is made of, by rank",
        see="Weights, activations and optimizer are in torch allocated; the rest is what the allocator, CUDA and the "
            "device hold beside it. Differences between the four meters' peaks.",
        alt=f"{shown[start][0]}, torch allocated: {said}.",
        spec=_parts_spec(), tables=[PARTS], columns={"bar": "cell", "part": "part", "gib_text": "GiB"},
        control=Control("Cells", "family", options, start),
    )  # fmt: skip
    return chart, {PARTS: columns_of(rows)}


def _part_rows(one: FindingView, side: Side) -> list[dict[str, Any]]:
    peaks = [peak.median for peak in side.training_peaks.values() if peak]
    if len(peaks) < len(PART_COLOURS) or peaks != sorted(peaks):  # medians of unlike runs: see Side.contaminated_peaks
        return []
    parts = [high - low for low, high in zip([0, *peaks], peaks, strict=False)]
    rank = one.about["rank"]
    return [
        {**one.about, "baseline": "", "backend": side.backend, "href": f"#{one.anchor}",
         "bar": f"{'full' if rank == 'full' else 'r' + rank} {side.backend}",
         "order": (10**6 if rank == "full" else int(rank)), "part": part, "part_order": i,
         "gib": round(max(0, part_bytes) / GIB, 3), "gib_text": gib(part_bytes)}
        for i, (part, part_bytes) in enumerate(zip(PART_COLOURS, parts, strict=True))
    ]  # fmt: skip


def _parts_spec() -> dict[str, Any]:
    import altair as alt

    bars = alt.Chart(named(PARTS)).mark_bar(stroke="currentColor", strokeWidth=0.6).encode(
        y=alt.Y("bar:N", sort=alt.EncodingSortField("order", op="min"), title=None),
        x=alt.X("gib:Q", title="GiB at the peak of training", stack="zero"),
        color=alt.Color("part:N", scale=alt.Scale(domain=list(PART_COLOURS), range=list(PART_COLOURS.values()))),
        order=alt.Order("part_order:Q"),
        tooltip=[alt.Tooltip(f"{n}:N", title=t) for n, t in (("bar", "cell"), ("part", "part"), ("gib_text", "GiB"))],
    )  # fmt: skip
    return finish(bars)


def timeline_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """One run's memory by phase; None where no record has its series beside it."""
    rows, phases, options = [], [], []
    for one in view.records:
        if found := timeline_rows(one.loaded, one.index):
            rows += found
            phases += _phase_rows(one.index, one.record)
            options.append(Option(one.label, [one.index], one.about))
    if not rows:
        return None
    first = options[0]
    highest = max((row for row in rows if row["record"] == first.values[0]), key=lambda row: row["NVML device"] or 0)
    chart = Chart(
        id="timeline", title="Memory of one run, phase by phase",
        see="Lines are NVML's samples (thinned, every peak kept); bars across a phase are the highest of torch's "
            "allocator in it. A phase has a stripe of its own.",
        alt=f"{first.label}: highest {highest['NVML device']} GiB of the device at {highest['t_s']} s.",
        spec=_timeline_spec(), tables=[TIMELINE, PHASES],
        columns={"t_s": "seconds", "NVML process": "NVML process, GiB", "NVML device": "NVML device, GiB"},
        control=Control("Run", "record", options),
    )  # fmt: skip
    return chart, {TIMELINE: columns_of(rows), PHASES: columns_of(phases)}


def _phase_rows(index: int, record: Any) -> list[dict[str, Any]]:
    whole_s = max(phase.start_s + phase.wall_s for phase in record.phases) if record.phases else 0
    return [
        {"record": index, "phase": phase.name, "start_s": round(phase.start_s, 2),
         "end_s": round(phase.start_s + phase.wall_s, 2), "stripe": i % 2,
         "name": phase.name if phase.wall_s > 0.07 * whole_s else "",
         "torch allocated": _gib(phase.torch_allocated_peak_bytes),
         "torch reserved": _gib(phase.torch_reserved_peak_bytes)}
        for i, phase in enumerate(record.phases)
    ]  # fmt: skip


def _gib(peak_bytes: int | None) -> float | None:
    return None if peak_bytes is None else round(peak_bytes / GIB, 3)


def _timeline_spec() -> dict[str, Any]:
    import altair as alt

    colour = alt.Color("meter:N", scale=alt.Scale(domain=list(METER_COLOURS), range=list(METER_COLOURS.values())))
    x, y = alt.X("start_s:Q", title="seconds since the process started"), alt.Y("gib:Q", title="GiB")
    phases = alt.Chart(named(PHASES))
    stripes = phases.mark_rect(color=GREY).encode(
        x=x, x2="end_s:Q",
        opacity=alt.Opacity("stripe:O", scale=alt.Scale(domain=[0, 1], range=[0.06, 0.2]), legend=None),
        tooltip=["phase:N", "start_s:Q", "end_s:Q"],
    )  # fmt: skip
    names = phases.mark_text(align="left", baseline="top", dx=3, y=2, fontSize=11).encode(x=x, text="name:N")
    peaks = phases.transform_fold(["torch allocated", "torch reserved"], as_=["meter", "gib"]).transform_filter(
        "datum.gib != null"
    ).mark_rule(strokeWidth=2.4).encode(
        x=x, x2="end_s:Q", y=y, color=colour, tooltip=["phase:N", "meter:N", alt.Tooltip("gib:Q", format=".2f")]
    )  # fmt: skip
    lines = alt.Chart(named(TIMELINE)).transform_fold(
        ["NVML device", "NVML process"], as_=["meter", "gib"]
    ).transform_filter("datum.gib != null").mark_line(interpolate="step-after", strokeWidth=1.5).encode(
        x=alt.X("t_s:Q"), y=y, color=colour,
        strokeDash=alt.condition("datum.meter == 'NVML device'", alt.value([4, 3]), alt.value([1, 0])),
    )  # fmt: skip
    return finish(
        alt.layer(stripes, names, peaks, lines, room(alt.Chart(named(TIMELINE)), "y", "NVML device")), height=280
    )
