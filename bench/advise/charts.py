"""Charts of the memory model: predicted against measured, what memory is made of by rank, and what a rank costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.advise.advice import RANKS
from bench.advise.fit import Fit, Observation, observe
from bench.advise.gpus import by_nvml_name
from bench.advise.parts import CONTEXT, SLACK, Part
from bench.advise.predict import predict
from bench.advise.question import Asked, find_model, predict_for
from bench.advise.rank import RankAccuracy, RankScore
from bench.advise.speed import predict_rate
from bench.record import Record
from bench.report.charts.theme import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SHAPES,
    SKY,
    VERMILLION,
    backend_scales,
    finish,
    named,
    room,
)
from bench.report.format import GIB, UNKNOWN, gib, number, percent
from bench.report.sections import Chart, Columns, Control, Option, columns_of
from bench.report.view import anchor

Made = tuple[Chart, dict[str, Columns]]
PREDICTED, BAND, BY_RANK, TRADE_OFF = "memory_predicted", "memory_band", "memory_by_rank", "rank_trade_off"
BACKENDS = ("hf-peft", "unsloth", "hf-peft-no-upcast")
PRECISIONS = ("nf4", "bf16", "int8")
MARGIN = 0.1
"""Half-width of the band in the chart of predictions."""
SHOWN_MODEL = "llama-3.1-8b"
ACTIVATIONS, HELD = "activations and loss", "slack, workspace, CUDA context"
ONE_BY_ONE = {
    "linear weights": BLUE, "embedding, head, norms": SKY, "LoRA weights": GREEN, "gradients": VERMILLION,
    "optimizer states": PURPLE,
}  # fmt: skip
GROUPS = ONE_BY_ONE | {ACTIVATIONS: ORANGE, HELD: GREY}


def predicted_chart(fit: Fit, records: Mapping[str, Record]) -> Made | None:
    """One point a cell of the fit whose record the page has; None without one."""
    rows = list[dict[str, Any]]()
    for row in fit.rows:
        if record := records.get(row.record_id):
            measured, predicted = row.measured["nvml_process"], row.predicted["nvml_process"]
            rows.append({
                "model": row.model, "precision": record.cell.precision, "rank": str(record.cell.r),
                "backend": row.backend, "setting": row.setting, "record_id": row.record_id,
                "href": f"#{anchor(row.record_id)}", "measured": round(measured / GIB, 3),
                "predicted": round(predicted / GIB, 3), "gib_text": f"{gib(measured)} → {gib(predicted)}",
                "error": f"{100 * row.error('nvml_process'):+.1f} %",
            })  # fmt: skip
    if not rows:
        return None
    score, sizes = fit.left_out["nvml_process"], [row["measured"] for row in rows]
    chart = Chart(
        id="memory-predicted", title="Memory predicted and measured",
        see="One point a cell, predicted by a fit that had not seen its architecture. On the line the prediction is "
            f"right; the grey band is {percent(MARGIN, 0)} either way, and above it too much is predicted.",
        alt=f"{len(rows)} cells from {min(sizes):.2f} to {max(sizes):.2f} GiB. Of all {score.records} of the fit: "
            f"median error {percent(score.median)}, 95th percentile {percent(score.p95)}, at worst "
            f"{percent(-score.lowest)} too low and {percent(score.highest)} too high.",
        spec=_predicted_spec({row["backend"] for row in rows}, {row["precision"] for row in rows}),
        tables=[PREDICTED, BAND],
        columns={"model": "model", "backend": "backend", "setting": "setting", "record_id": "record",
                 "gib_text": "measured → predicted, GiB", "error": "error"},
    )  # fmt: skip
    ends = (min(sizes) / 1.2, max(sizes) * 1.2)
    band = [{"measured": x, "low": (1 - MARGIN) * x, "high": (1 + MARGIN) * x} for x in ends]
    return chart, {PREDICTED: columns_of(rows), BAND: columns_of(band)}


def _predicted_spec(backends: set[str], precisions: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, _, _ = backend_scales([*BACKENDS, *sorted(backends - set(BACKENDS))], backends)
    shown = [name for name in PRECISIONS if name in precisions] + sorted(precisions - set(PRECISIONS))
    scale = alt.Scale(type="log", nice=False)
    x = alt.X("measured:Q", title="measured, GiB (log scale)", scale=scale)
    title = "predicted, GiB (log scale)"
    band = alt.Chart(named(BAND))
    tooltip = {"model": "model", "backend": "backend", "setting": "setting", "record_id": "record",
               "gib_text": "GiB", "error": "error"}  # fmt: skip
    return finish(alt.layer(
        band.mark_area(color=GREY, opacity=0.22).encode(
            x=x, y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        band.mark_line(strokeDash=[4, 3], strokeWidth=1.2, opacity=0.6, stroke="currentColor").encode(
            x=x, y=alt.Y("measured:Q", title=title, scale=scale)),
        alt.Chart(named(PREDICTED)).mark_point(filled=False, size=60, strokeWidth=1.6).encode(
            x=x, y=alt.Y("predicted:Q", title=title, scale=scale), color=alt.Color("backend:N", scale=colours),
            shape=alt.Shape("precision:N", scale=alt.Scale(domain=shown, range=list(SHAPES[: len(shown)]))),
            tooltip=[alt.Tooltip(f"{name}:N", title=text) for name, text in tooltip.items()],
        ),
    ), height=360)  # fmt: skip


def by_rank_chart(fit: Fit) -> Made | None:
    """Parts of the prediction for one model at the settings that ``peftmark advise`` takes by default; None where
    nothing is known of the fit's GPU."""
    gpu = next((found for name in fit.gpus if (found := by_nvml_name(name))), None)
    if gpu is None:
        return None
    asked = Asked(model=find_model(SHOWN_MODEL), gpu=gpu)
    rows, totals = list[dict[str, Any]](), dict[str, str]()
    for backend in asked.backends:
        for r in RANKS:
            made = predict_for(asked, fit, backend, r)
            peak, bar = made.peaks["nvml_process"], f"{backend} r{r}"
            totals[bar] = f"{gib(peak.value)} ({gib(peak.low)} to {gib(peak.high)})"
            for i, (name, parts) in enumerate(_grouped(made.estimate.parts).items()):
                size_bytes = sum(part.size_bytes for part in parts)
                rows.append({
                    "model": asked.model.name, "precision": asked.precision, "backend": backend, "bar": bar,
                    "order": 1000 * asked.backends.index(backend) + r, "part": name, "part_order": i,
                    "gib": round(size_bytes / GIB, 4), "gib_text": gib(size_bytes), "total": totals[bar],
                    "all": peak.value / GIB, "text": gib(peak.value) if i == 0 else "",
                    "made_of": ", ".join(f"{part.name} {gib(part.size_bytes)}" for part in parts if part.size_bytes),
                })  # fmt: skip
    ends = [f"{b} r{r}: {totals[f'{b} r{r}']} GiB" for b in asked.backends for r in (RANKS[0], RANKS[-1])]
    chart = Chart(
        id="memory-by-rank", title=f"What the memory of {asked.model.name} {asked.precision} is made of, by rank",
        see=f"Predicted, not measured: batch {asked.batch} of {asked.sequence} tokens, what peftmark advise takes by "
            "default. The number is the NVML process peak; adapter, gradients and optimizer grow with the rank, the "
            "rest hardly does.",
        alt=f"{'; '.join(ends)} (in brackets the interval at 95 %).", spec=_by_rank_spec(), tables=[BY_RANK],
        columns={"bar": "backend and rank", "part": "part", "gib_text": "GiB", "made_of": "made of, GiB",
                 "total": "NVML process, GiB (interval at 95 %)"},
    )  # fmt: skip
    return chart, {BY_RANK: columns_of(rows)}


def _grouped(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """The parts under the names of GROUPS, in their order."""
    groups: dict[str, list[Part]] = {name: [] for name in GROUPS}
    for part in parts:
        held = part.name in (SLACK, CONTEXT, "workspace")
        groups[part.name if part.name in ONE_BY_ONE else HELD if held else ACTIVATIONS].append(part)
    return groups


def _by_rank_spec() -> dict[str, Any]:
    import altair as alt

    y = alt.Y("bar:N", sort=alt.EncodingSortField("order", op="min"), title=None)
    base = alt.Chart(named(BY_RANK))
    tooltip = {"bar": "cell", "part": "part", "gib_text": "GiB", "made_of": "made of", "total": "all"}
    ended = base.transform_filter("datum.text != ''")
    return finish(alt.layer(
        base.mark_bar(stroke="currentColor", strokeWidth=0.6).encode(
            y=y, x=alt.X("gib:Q", title="GiB, NVML process peak, predicted", stack="zero"),
            color=alt.Color("part:N", scale=alt.Scale(domain=list(GROUPS), range=list(GROUPS.values())),
                            legend=alt.Legend(columns=alt.ExprRef("windowSize()[0] <= 700 ? 1 : 4"))),
            order=alt.Order("part_order:Q"),
            tooltip=[alt.Tooltip(f"{name}:N", title=text) for name, text in tooltip.items()],
        ),
        ended.mark_text(align="left", dx=6).encode(y=y, x=alt.X("all:Q"), text="text:N"), room(ended, "x", "all", 1.1),
    ))  # fmt: skip


def trade_off_chart(fit: Fit, records: Mapping[str, Record]) -> Made | None:
    """Accuracy, memory and speed by rank of the models whose accuracy by rank was measured by records of the page; None
    without one."""
    known = [one for one in fit.accuracy if all(i in records for score in one.ranks for i in score.record_ids)]
    families = list(dict.fromkeys(_family(one) for one in known))
    if not known:
        return None
    rows = [row for one in known for row in _trade_off_rows(one, fit, records)]
    said = [f"{one.backend} {', '.join(f'r {s.r}: {percent(s.accuracy)}' for s in one.ranks)}"
            for one in known if _family(one) == families[0]]  # fmt: skip
    first = next(row for row in rows if row["family"] == families[0])
    seeds = sorted({one.seeds for one in known})
    chart = Chart(
        id="rank-trade-off", title="What a rank buys, and what it costs",
        see="Points are measured, lines and shades are predicted with their interval. Left: accuracy after training, "
            f"less that of the backend's best rank on the same items, 95 % over the items, {_ends(seeds)} "
            f"seed{'s' * (seeds != [1])}; above the dashed line a rank is not worse by more than "
            f"{percent(known[0].margin, 0)} where its whole line is. Memory and tokens/s are of the same cells; "
            "tokens/s is scaled from one measured rate of the backend by operations and bytes, and knows no other cost "
            "of a rank.",
        alt=f"{families[0]} ({first['setting']}), accuracy: {'; '.join(said)}.",
        spec=_trade_off_spec(rows, 100 * known[0].margin), tables=[TRADE_OFF],
        columns={"backend": "backend", "r": "r", "accuracy": "accuracy, measured",
                 "difference_text": "less the best, points", "gib_text": "GiB, predicted",
                 "gib_measured": "GiB, measured", "rate_text": "tokens/s, predicted",
                 "rate_measured": "tokens/s, measured", "accuracy_records": "records of the accuracy",
                 "rate_record": "tokens/s scaled from"},
        control=Control("Model and task", "family", [
            Option(family, [family], {"model": next(one.model for one in known if _family(one) == family)})
            for family in families
        ]),
    )  # fmt: skip
    return chart, {TRADE_OFF: columns_of(rows)}


def _family(one: RankAccuracy) -> str:
    return f"{one.model}, {one.task}, {one.items} items"


def _ends(values: Sequence[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _trade_off_rows(one: RankAccuracy, fit: Fit, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One a rank: of those that are advised on and those that were measured."""
    own = [records[i] for score in one.ranks for i in score.record_ids]
    observed = observe(own)[0]
    scores = {score.r: score for score in one.ranks}
    return [_trade_off_row(one, r, scores.get(r), observed, fit, records, own[0].cell.precision)
            for r in sorted({*RANKS, *scores})]  # fmt: skip


def _trade_off_row(
    one: RankAccuracy, r: int, score: RankScore | None, observed: Sequence[Observation], fit: Fit,
    records: Mapping[str, Record], precision: str,
) -> dict[str, Any]:  # fmt: skip
    peak = rate = point = None
    if observed:
        shape, setup, gpu = observed[0].shape, observed[0].setup.but(r=r), by_nvml_name(observed[0].gpu)
        peak = predict(fit, shape, setup, observed[0].gpu).peaks["nvml_process"]
        rate = predict_rate(fit.speeds, shape, setup, gpu) if gpu else None
        same = (one.model, one.backend, setup.precision, r, setup.batch, setup.sequence, setup.kind, observed[0].gpu)
        point = next((p for p in fit.speeds if p.record_id in records and same == (
            p.model, p.backend, p.precision, p.r, p.batch, p.sequence, p.kind, p.gpu)), None)  # fmt: skip
    measured = next((o.peaks["nvml_process"] for o in observed if o.setup.r == r), None)
    return {
        "model": one.model, "precision": precision, "backend": one.backend, "family": _family(one), "r": r,
        "place": r if one.backend == BACKENDS[0] else round(1.1 * r, 2),  # lines of two backends beside each other
        "setting": f"{precision}, batch {observed[0].setup.batch} of {observed[0].setup.sequence} tokens"
        if observed else precision,
        "href": f"#{anchor(score.record_ids[0])}" if score else "",
        "accuracy": percent(score.accuracy) if score else UNKNOWN,
        "difference": 100 * score.difference if score else None,
        "low": 100 * score.low if score else None, "high": 100 * score.high if score else None,
        "difference_text": f"{100 * score.difference:+.1f} ({100 * score.low:+.1f} to {100 * score.high:+.1f})"
        if score else UNKNOWN,
        "accuracy_records": ", ".join(score.record_ids) if score else UNKNOWN,
        "gib": peak and round(peak.value / GIB, 4), "gib_low": peak and round(peak.low / GIB, 4),
        "gib_high": peak and round(peak.high / GIB, 4),
        "gib_text": f"{gib(peak.value)} ({gib(peak.low)} to {gib(peak.high)})" if peak else UNKNOWN,
        "gib_measured": None if measured is None else round(measured / GIB, 2),
        "rate": rate and round(rate.value), "rate_low": rate and round(rate.low),
        "rate_high": rate and round(rate.high),
        "rate_text": f"{number(rate.value)} ({number(rate.low)} to {number(rate.high)})" if rate else UNKNOWN,
        "rate_record": rate.from_record if rate else UNKNOWN,
        "rate_measured": round(point.tokens_per_s) if point else None,
    }  # fmt: skip


def _trade_off_spec(rows: Sequence[Mapping[str, Any]], margin: float) -> dict[str, Any]:
    """Three panels in a row; the page gives them their width, and stacks them where it is narrow."""
    import altair as alt

    backends, ranks = {row["backend"] for row in rows}, [row["r"] for row in rows]
    colours, shapes, dashes = backend_scales([*BACKENDS, *sorted(backends - set(BACKENDS))], backends)
    colour, fill = alt.Color("backend:N", scale=colours), alt.Fill("backend:N", scale=colours)
    dash = alt.StrokeDash("backend:N", scale=dashes, legend=None)
    scale = alt.Scale(type="log", base=2, nice=False, padding=14, domain=[min(ranks), max(ranks)])
    x, beside = (alt.X(f"{column}:Q", title="LoRA rank (log scale)", axis=alt.Axis(values=list(RANKS), format="d"),
                       scale=scale) for column in ("r", "place"))  # fmt: skip
    base = alt.Chart(named(TRADE_OFF))

    def points(column: str, title: str, tooltip: Mapping[str, str], x: Any = x) -> Any:
        return base.transform_filter(f"datum.{column} != null").mark_point().encode(
            x=x, y=alt.Y(f"{column}:Q", title=title), stroke=alt.Stroke("backend:N", scale=colours), fill=fill,
            shape=alt.Shape("backend:N", scale=shapes),
            tooltip=[alt.Tooltip(f"{name}:N", title=text) for name, text in {"backend": "backend", "r": "r",
                                                                            **tooltip}.items()],
        )  # fmt: skip

    def predicted(column: str, title: str, tooltip: Mapping[str, str]) -> Any:
        known = base.transform_filter(f"datum.{column} != null")
        y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=True))
        return alt.layer(
            known.mark_area(opacity=0.13).encode(x=x, y=alt.Y(f"{column}_low:Q", title=title), y2=f"{column}_high:Q",
                                                 fill=fill),
            known.mark_line().encode(x=x, y=y, color=colour, strokeDash=dash),
            points(f"{column}_measured", title, tooltip),
        ).properties(height=200, width=230)  # fmt: skip

    title = "accuracy less the best rank's, points"
    scored = base.transform_filter("datum.difference != null")
    line = alt.Chart(alt.sequence(start=0, stop=1)).mark_rule(opacity=0.6, strokeDash=[4, 3])
    accuracy = alt.layer(
        line.encode(y=alt.YDatum(-margin)),
        scored.mark_rule(strokeWidth=2).encode(
            x=beside, y=alt.Y("low:Q", title=title), y2="high:Q", stroke=alt.Stroke("backend:N", scale=colours)),
        points("difference", title, {"accuracy": "accuracy", "difference_text": "less the best"}, beside),
    ).properties(height=200, width=230)  # fmt: skip
    memory = predicted("gib", "GiB, NVML process", {"gib_measured": "measured", "gib_text": "predicted"})
    speed = predicted("rate", "tokens/s", {"rate_measured": "measured", "rate_text": "predicted"})
    spec = alt.hconcat(accuracy, memory, speed, spacing=24).resolve_scale(
        color="shared", fill="shared", stroke="shared", shape="shared", strokeDash="shared"
    ).to_dict(validate=False)  # fmt: skip
    return {key: value for key, value in spec.items() if key != "config"}
