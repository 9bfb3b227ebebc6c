"""The limits on the report page: what trains inside a budget of GPU memory with each backend, and how much further."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.groups import machine_name
from bench.limit.family import GIB, UNIT
from bench.limit.result import LimitResult, over
from bench.report.charts.theme import backend_scales, finish, named, room
from bench.report.format import UNKNOWN, percent
from bench.report.sections import Cell, Chart, Control, Link, Option, Row, Section, Table, columns_of
from bench.report.view import anchor, relative

LIMITS = "limits"
BASELINE = "hf-peft"
TITLES = {"max_length": "longest sequence", "batch_size": "largest batch", "r": "largest rank"}
Found = Sequence[tuple[Path, LimitResult]]


def section(found: Mapping[Path, LimitResult], out: Path, on_page: Collection[str]) -> Section | None:
    """From files of ``peftmark limit``, by path, on a page in ``out``; None without one.

    ``on_page``: ids of the records that the page shows, to which the probes can link.
    """
    once = {one.model_dump_json(): (path, one) for path, one in found.items()}  # a published copy is the same search
    groups: dict[tuple[object, ...], list[tuple[Path, LimitResult]]] = {}
    for path, one in sorted(
        once.values(), key=lambda pair: (list(TITLES).index(pair[1].what), _key(pair[1]), _side(pair[1]))
    ):
        groups.setdefault(_key(one), []).append((path, one))
    if not groups:
        return None
    rows = [_row(path, one, group, out, on_page) for group in groups.values() for path, one in group]
    labels = _labels(list(groups.values()))
    bars = [bar for i, group in enumerate(groups.values()) for bar in _bars(i, labels[i], group)]
    columns = ["Setting", "Looked for, inside", "Backend", ">Limit", "First that does not train", f">Over {BASELINE}",
               "In fresh processes", "Files"]  # fmt: skip
    return Section(
        id="limits", title="Limits",
        text="The largest value that trains inside a budget of GPU memory, found by training in fresh processes; each "
             "backend with the settings that its documentation recommends for long sequences.",
        charts=[_chart(bars)] if bars else [], tables=[Table(columns, rows, note=NOTE)],
        data={LIMITS: columns_of(bars)} if bars else {},
    )  # fmt: skip


NOTE = (
    "In brackets the span of the ratio: a true limit lies between the limit and the first value that does not train. "
    "In fresh processes: two more, one at the limit, which must train, and one 5 % above, which must not."
)


def _fixed(one: LimitResult) -> dict[str, int | None]:
    """What is not searched for."""
    values = {"r": one.cell.r, "max_length": one.cell.max_length, "batch_size": one.cell.batch_size}
    return {name: value for name, value in values.items() if name != one.what}


def _key(one: LimitResult) -> tuple[str, ...]:
    """Results that differ in the backend alone, in one environment."""
    cell = one.cell
    fixed = [f"{name} {value}" for name, value in _fixed(one).items()]
    return one.what, cell.model, cell.precision, f"{one.budget_bytes:015}", *fixed, one.environment.fingerprint


def _side(one: LimitResult) -> tuple[bool, str]:
    return one.backend != BASELINE, one.backend


def _words(one: LimitResult) -> str:
    fixed = {"r": "r {}", "max_length": "{:,} tokens", "batch_size": "batch of {}"}
    return ", ".join(fixed[name].format(value) for name, value in _fixed(one).items() if value is not None)


def _version(one: LimitResult) -> str:
    packages = one.environment.packages
    name = "unsloth" if one.backend == "unsloth" else "peft"
    return f"{name} {packages[name].version}" if name in packages else ""


def _base(group: Found) -> LimitResult | None:
    return next((one for _, one in group if one.backend == BASELINE), None)


def _row(path: Path, one: LimitResult, group: Found, out: Path, on_page: Collection[str]) -> Row:
    cell, base = one.cell, _base(group)
    emulated = one.card_bytes is not None and one.card_bytes > one.budget_bytes
    times = over(one, base) if base and one is not base else None
    span = f"{times[1]:.2f} to {times[2]:.2f}" if times and times[2] else "at least" if times else ""
    settings = ("gradient_checkpointing", "attention", "optimizer")
    said = ", ".join(f"{name.replace('_', ' ')} {one.settings[name]}" for name in settings if name in one.settings)
    about = {"model": cell.model, "precision": cell.precision}  # both sides stay together
    return Row([
        Cell(f"{cell.model} {cell.precision}", sub=f"{_words(one)}; {machine_name(one.environment)}"),
        Cell(f"{TITLES[one.what]}, {one.budget_bytes / GIB:g} GiB",
             sub=f"emulated: the card has {(one.card_bytes or 0) / GIB:.1f} GiB" if emulated else ""),
        Cell(one.backend, sub="; ".join(filter(None, [_version(one), said]))),
        Cell("none" if one.value is None else f"{one.value:,}", sub=UNIT[one.what]),
        Cell("the largest tried trains" if one.first_failing_value is None else f"{one.first_failing_value:,}",
             sub=_resolution(one)),
        Cell(f"{times[0]:.2f}x" if times else "" if one is base else UNKNOWN, sub=span and f"({span})"),
        _verified(one),
        Cell(links=_links(path, one, out, on_page)),
    ], about=about)  # fmt: skip


def _resolution(one: LimitResult) -> str:
    if one.value is None or one.first_failing_value is None:
        return ""
    return f"found to within {one.resolution.step:,} or {percent(one.resolution.relative, 0)}"


def _verified(one: LimitResult) -> Cell:
    unseen = all(probe.nvml_process_peak_bytes is None for probe in one.probes)
    without = "without NVML: the peak of the process was not checked" if one.probes and unseen else ""
    if one.validation is None:
        return Cell("not checked", sub=without)
    above = one.validation.above
    sub = f"{above.value:,}: {above.reason or 'trained'}" if above else "nothing above to try"
    return Cell(tag="holds" if one.validation.holds else "does not hold", sub="; ".join(filter(None, [sub, without])))


def _links(path: Path, one: LimitResult, out: Path, on_page: Collection[str]) -> list[Link]:
    """The result, and the runs that decided it where the page has them."""
    links = [Link(path.name, relative(path.resolve(), out.resolve()))]
    for what, value in (("run at the limit", one.value), ("first that fails", one.first_failing_value)):
        id = next((p.record_id for p in one.probes if p.value == value and p.record_id in on_page), None)
        links += [Link(what, f"#{anchor(id)}")] if id else []
    return links


def _labels(groups: Sequence[Found]) -> list[str]:
    """One a group; of groups that differ in the environment alone the later ones are numbered."""
    seen = Counter[tuple[str, str]]()
    labels = []
    for (_, one), *_ in groups:
        label = f"{one.cell.model} {one.cell.precision}, {one.budget_bytes / GIB:g} GiB, {_words(one)}"
        seen[label, one.what] += 1
        labels.append(label if seen[label, one.what] == 1 else f"{label} ({seen[label, one.what]})")
    return labels


def _bars(order: int, label: str, group: Found) -> list[dict[str, Any]]:
    """A row a backend; nothing where no backend trains."""
    base = _base(group)
    if all(one.value is None for _, one in group):
        return []
    last = max((one for _, one in group), key=lambda one: one.value or 0)
    none = [f"{one.backend}: not even {one.first_failing_value:,}" for _, one in group if one.value is None]
    times = over(last, base) if base and last is not base else None
    text = ", ".join([*([f"{times[0]:.2f}x"] if times else []), *none])
    return [
        {
            "what": one.what, "model": one.cell.model, "precision": one.cell.precision, "side": one.backend,
            "order": order, "value": one.value, "shown": UNKNOWN if one.value is None else f"{one.value:,}",
            "label": label,
            "failing": UNKNOWN if one.first_failing_value is None else f"{one.first_failing_value:,}",
            "verified": one.validation is not None and one.validation.holds, "text": text if one is last else "",
        }
        for _, one in group
    ]  # fmt: skip


def _chart(bars: Sequence[dict[str, Any]]) -> Chart:
    whats = list(dict.fromkeys(bar["what"] for bar in bars))
    sides: dict[str, list[str]] = {}
    for bar in bars:
        if bar["what"] == whats[0]:
            text = f" ({bar['text']})" if bar["text"] else ""
            sides.setdefault(bar["label"], []).append(f"{bar['side']} {bar['shown']}{text}")
    told = [f"{label}: {', '.join(values)}" for label, values in sides.items()][:8]
    options = [Option(f"{TITLES[what]} ({UNIT[what]})", [what]) for what in whats]
    return Chart(
        id="limits", title="What trains inside the budget",
        see="Each line joins the baseline's limit to the others': further right more fits. The number is the ratio to "
            f"{BASELINE}; hollow marks were not checked in two more fresh processes, or did not hold there.",
        alt=f"{TITLES[whats[0]]}, {UNIT[whats[0]]}: {'; '.join(told)}.", spec=_spec(bars), tables=[LIMITS],
        columns={"label": "setting", "side": "backend", "shown": "limit", "failing": "first that does not train",
                 "verified": "holds in fresh processes"},
        control=Control("Looked for", "what", options),
    )  # fmt: skip


def _spec(bars: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import altair as alt

    used = sorted({bar["side"] for bar in bars}, key=lambda name: (name != BASELINE, name))
    colours, shapes, _ = backend_scales([BASELINE, *(name for name in used if name != BASELINE)], used)
    y = alt.Y("label:N", sort=alt.EncodingSortField("order", op="min"), title=None, axis=alt.Axis(grid=True))
    x = alt.X("value:Q", title="limit (log scale)", scale=alt.Scale(type="log", nice=False, padding=30))
    base = alt.Chart(named(LIMITS)).transform_filter("datum.value != null")
    ends = base.transform_joinaggregate(low="min(value)", high="max(value)", groupby=["label"])
    last = ends.transform_filter("datum.text != ''")
    shown = {"label": "setting", "side": "backend", "shown": "limit", "failing": "does not train"}
    return finish(alt.layer(
        ends.mark_rule(strokeWidth=1.5, opacity=0.4).encode(
            y=y, x=alt.X("low:Q", title="limit (log scale)"), x2="high:Q"),
        base.mark_point().encode(
            y=y, x=x, stroke=alt.Stroke("side:N", scale=colours), fill=alt.Fill("side:N", scale=colours),
            shape=alt.Shape("side:N", scale=shapes),
            fillOpacity=alt.condition("datum.verified", alt.value(1), alt.value(0)),
            tooltip=[alt.Tooltip(f"{name}:N", title=title) for name, title in shown.items()],
        ),
        last.mark_text(align="left", dx=11).encode(y=y, x=alt.X("value:Q"), text="text:N"),
        room(last, "x", "value", 1.3),
    ))  # fmt: skip
