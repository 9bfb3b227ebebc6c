"""``peftmark show``: runs in a terminal, with a headline a finding, sparklines of steps and memory, and the failures.

Everything is read from records and findings; text from files is printed as text, never as rich's markup.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.derived import Derived, derive
from bench.errors import InputError
from bench.finding import AccuracyFinding, Finding, Findings, Side
from bench.record import EvalResult, Phase, Record
from bench.report import format as fmt
from bench.report.rows import accuracy_row, make_rows
from bench.sparkline import blocks, thinned
from bench.store import RECORD, Loaded

WIDTH = 24
"""Cells of a sparkline that has numbers beside it, in 80 columns."""
STATUS_STYLES = {"ok": "green", "unsupported": "yellow", "contaminated": "yellow"}
MEMORY_SERIES = ("nvml_process_bytes", "nvml_device_bytes", "host_rss_bytes")
PEAKS = {
    "torch_allocated_peak_bytes": "torch\nalloc.", "torch_reserved_peak_bytes": "torch\nreserved",
    "nvml_process_peak_bytes": "NVML\nprocess", "nvml_device_peak_bytes": "NVML\ndevice",
    "host_rss_peak_bytes": "host\nRSS",
}  # fmt: skip


def steps_line(record: Record, first: int, width: int = WIDTH) -> Text:
    """Seconds of the steps, logarithmic; those before ``first`` (warm-up) dim, and beyond the axis where they are
    longer than all others."""
    walls = record.steps.wall_s
    if not walls:
        return Text(fmt.UNKNOWN, style="dim")
    shown = thinned(walls, width)
    dim = math.ceil(first * len(shown) / len(walls))
    line = blocks(shown, log=True, spanned_by=shown[dim:])
    return Text.assemble((line[:dim], "dim"), (line[dim:], "cyan"))


def memory_line(loaded: Loaded, width: int = WIDTH) -> tuple[str, Text]:
    """Name of the first series of MEMORY_SERIES with a reading above 0, and it over the run, from 0."""
    import pyarrow as pa
    from pyarrow import parquet

    nothing = "", Text(fmt.UNKNOWN, style="dim")
    timeline = loaded.record.timeline
    path = loaded.folder / timeline.file.path if timeline else None
    if path is None or not path.is_file():
        return nothing
    try:
        table = parquet.read_table(path)
    except (pa.ArrowInvalid, OSError):
        return nothing
    for name in MEMORY_SERIES:
        values = table[name].to_pylist() if name in table.column_names else []
        if any(values):
            return name, Text(blocks(thinned(values, width), floor=0), style="magenta")
    return nothing


def overview(found: Findings, loaded: Sequence[Loaded]) -> Iterator[RenderableType]:
    """Machine by machine a block a finding, then accuracy, then what did not end ok."""
    by_id = {one.record.id: one for one in loaded}
    for environment in dict.fromkeys(finding.environment for finding in found.pairs):
        theirs = [finding for finding in found.pairs if finding.environment == environment]
        yield Text(f"\n{theirs[0].machine}", style="bold underline")
        for finding, row in zip(theirs, make_rows(theirs), strict=True):
            name = " ".join(filter(None, [row.model, row.method, row.precision]))
            extra = ", ".join(filter(None, [row.recipe, "random weights" if row.random_weights else "", row.extra]))
            yield Text.assemble(("\n" + name, "bold"), ("  " + extra, "dim"))
            yield Padding(headline(finding), (0, 0, 0, 2))
            yield Padding(_sides(finding, by_id), (0, 0, 0, 2))
        yield from _accuracy([one for one in found.accuracy if one.environment == environment])
    yield from _failures([one.record for one in loaded])


def courses(found: Findings, loaded: Sequence[Loaded], names: tuple[str, str]) -> Iterator[RenderableType]:
    """Step times and memory of both sides of every pair, under the ``names`` of the sets that the sides are from."""
    by_id = {one.record.id: one for one in loaded}
    for finding, row in zip(found.pairs, make_rows(found.pairs), strict=True):
        if finding.baseline and finding.candidate:
            what = " ".join(filter(None, [row.model, row.method, row.precision]))
            extra = ", ".join(filter(None, [row.recipe, row.extra]))
            yield Text.assemble(("\n" + what, "bold"), ("  " + extra, "dim"))
            yield Padding(_sides(finding, by_id, names), (0, 0, 0, 2))


def headline(finding: Finding) -> Text:
    """The finding as a sentence."""
    base, cand = finding.baseline, finding.candidate
    if finding.verdict != "measured" or not base or not cand:
        style = "red" if finding.verdict in ("failed", "parity failed") else "yellow"
        return Text.assemble((finding.verdict, style), f": {fmt.one_line(finding.why)}")
    certainty = "no interval: " + (finding.rates.why or "") if finding.rates else ""
    if interval := finding.speedup_interval:
        certainty = f"{finding.speed}, {interval.level:.0%} [{interval.low:.2f}, {interval.high:.2f}]"
    parts: list[str | tuple[str, str]] = [(f"{cand.backend} {fmt.times(finding.speedup)}", "bold green")]
    parts.append(f" the tokens/s of {base.backend} ({certainty})")
    memory = finding.memory.get("nvml_process")
    if memory and memory.saving is not None:
        way = "less" if memory.saving >= 0 else "more"
        parts.append(f", {fmt.percent(abs(memory.saving))} {way} memory (NVML process)")
    if finding.parity:
        parts.append((f"; parity {finding.parity.status}", "green" if finding.parity.status == "ok" else "yellow"))
    for difference in finding.across:
        parts.append((f"; compared across {difference}", "yellow"))
    return Text.assemble(*parts)


def _sides(finding: Finding, by_id: dict[str, Loaded], names: tuple[str, str] = ("", "")) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for side, name in zip((finding.baseline, finding.candidate), names, strict=True):
        if side is None:
            continue
        one = _shown(side, by_id)
        peak = side.training_peaks["nvml_process"] or side.training_peaks["torch_allocated"]
        runs = f"{side.processes} run{'s' * (side.processes != 1)}"
        state = f"{fmt.rate(side.tokens_per_s)} tok/s" if side.status == "ok" else side.status
        table.add_row(
            Text(f"{name or side.backend}\n{f'{side.backend}, ' if name else ''}{runs}"),
            Text(f"{state}\n{fmt.gib(peak.median if peak else None)} GiB", style=STATUS_STYLES.get(side.status, "red")),
            Text("\n").join([steps_line(one.record, _first(one.record)), memory_line(one)[1]]),
            Text(f"{fmt.seconds(side.step_s) + ' a step' if side.step_s else 'steps'}\nmemory", style="dim"),
        )
    return table


def _shown(side: Side, by_id: dict[str, Loaded]) -> Loaded:
    """The latest run of the side that ended as the side did."""
    runs = [by_id[id] for id in side.record_ids]
    return next((one for one in reversed(runs) if one.record.status == side.status), runs[-1])


def _first(record: Record) -> int:
    from bench.steady import steady

    return steady(record.steps.wall_s, record.cell.untimed_steps).first


def _accuracy(found: Sequence[AccuracyFinding]) -> Iterator[RenderableType]:
    if found:
        yield Text("\nAccuracy", style="bold")
    for row in map(accuracy_row, found):
        yield Padding(Text(f"{row.what}, {row.sides}: {row.result}"), (0, 0, 0, 2))


def _failures(records: Sequence[Record]) -> Iterator[RenderableType]:
    bad = [record for record in records if record.status != "ok"]
    if not bad:
        return
    yield Text(f"\n{len(bad)} of {len(records)} runs did not end ok", style="bold")
    for record in bad:
        where = f" in {record.failed_phase}" if record.failed_phase else ""
        yield Padding(Text.assemble(
            (record.status, STATUS_STYLES.get(record.status, "red")), f"{where}  {record.cell.slug}  ",
            (record.id, "dim"), f"\n{fmt.one_line(record.message or '')}",
        ), (0, 0, 0, 2))  # fmt: skip
    yield Text("one record in full: peftmark show RUNS --record ID", style="dim")


def whole_record(records: Sequence[Loaded], id: str) -> Iterator[RenderableType]:
    """The record whose id begins with ``id``: state, cell, steps, memory, phases, audit, health, accuracy, environment
    and files. InputError where there is none or more than one."""
    loaded = _find(records, id)
    record, cell = loaded.record, loaded.record.cell
    derived = derive(record)
    yield Text.assemble((record.id, "bold"), "  ", (record.status, STATUS_STYLES.get(record.status, "red")))
    yield Text(str(loaded.folder / RECORD), style="dim")
    if record.message:
        yield Text(f"\n{record.failed_phase or 'message'}: {record.message}", style="red")
    yield _facts("Cell", ((name, getattr(cell, name)) for name in type(cell).model_fields))
    yield from _steps(record, derived)
    series, line = memory_line(loaded, 2 * WIDTH)
    if series:
        yield _facts("Memory over the run, from 0", [(series.replace("_", " "), line)])
    yield from _phases(record.phases)
    yield from _audit(record)
    if record.health:
        health = record.health
        seen = [("reasons", "; ".join(health.reasons) or "none seen")]
        yield _facts("Health", [*seen, *((name, value) for name, value in health if name != "reasons")])
    scores = [(when, _score(result)) for when, result in (("before", record.eval_before), ("after", record.eval_after))]
    if record.eval_before or record.eval_after:
        yield _facts("Accuracy", scores)
    environment = record.environment
    yield _facts("Environment", [
        ("GPU", ", ".join(gpu.name for gpu in environment.gpus) or None), ("driver", environment.driver),
        ("CPU", environment.cpu), ("OS", environment.os), ("python", environment.python),
        ("packages", ", ".join(f"{name} {package.version}" for name, package in environment.packages.items())),
        ("variables", ", ".join(f"{name}={value}" for name, value in environment.variables.items()) or None),
        ("peftmark", environment.git_revision),
    ])  # fmt: skip
    yield _facts("Files beside it", ((ref.path, f"{ref.size_bytes:,} bytes") for ref in record.files()))


def _score(result: EvalResult | None) -> str | None:
    if result is None:
        return None
    return f"{fmt.percent(result.value)} ± {fmt.percent(result.stderr)} of {result.items} items, {result.metric}"


def _steps(record: Record, derived: Derived) -> Iterator[RenderableType]:
    if not record.steps.wall_s:
        return
    walls, losses = record.steps.wall_s, record.steps.loss
    lines: list[tuple[str, object]] = [
        ("step seconds", steps_line(record, _first(record), 2 * WIDTH)),
        ("", f"{len(walls)} steps, {fmt.seconds(min(walls))} to {fmt.seconds(max(walls))}; the dim ones are warm-up"),
    ]
    if any(loss is not None for loss in losses):
        lines.append(("loss", Text(blocks(thinned(losses, 2 * WIDTH)), style="cyan")))
        lines.append(("", f"{fmt.number(losses[0])} first, {fmt.number(losses[-1])} last"))
    lines += [
        ("median step", f"{fmt.seconds(derived.step_s_median)} over {derived.timed_steps} timed steps"),
        ("tokens/s", fmt.rate(derived.tokens_per_s)), ("startup", fmt.seconds(derived.startup_s)),
        ("settled", derived.settled),
    ]  # fmt: skip
    yield _facts("Steps", lines)


def _phases(phases: Sequence[Phase]) -> Iterator[RenderableType]:
    if not phases:
        return
    table = Table(title="Phases: seconds, and peaks in GiB", title_justify="left", title_style="bold", box=None)
    table.add_column("phase")
    for name in ("start", "took", *PEAKS.values()):
        table.add_column(name, justify="right")
    for phase in phases:
        peaks = [fmt.gib(getattr(phase, name)) for name in PEAKS]
        table.add_row(phase.name, f"{phase.start_s:.1f}", f"{phase.wall_s:.1f}", *peaks)
    yield Text()
    yield table


def _audit(record: Record) -> Iterator[RenderableType]:
    if not record.audit:
        return
    wrong = [entry for entry in record.audit if not entry.ok]
    if not wrong:
        yield _facts("Audit", [("all as asked for", f"{len(record.audit)} readings")])
        return
    yield _facts(f"Audit: {len(wrong)} of {len(record.audit)} not as asked for",
                 ((e.name, f"asked for {e.requested}, got {e.effective}") for e in wrong))  # fmt: skip


def _facts(title: str, facts: Iterable[tuple[str, object]]) -> Group:
    """Names and values in two columns; unknown is a dash."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        shown = value if isinstance(value, Text) else Text(fmt.UNKNOWN if value is None else str(value))
        table.add_row(Text(name), shown)
    return Group(Text(f"\n{title}", style="bold"), Padding(table, (0, 0, 0, 2)))


def _find(loaded: Sequence[Loaded], id: str) -> Loaded:
    found = [one for one in loaded if one.record.id.startswith(id)]
    if len(found) == 1:
        return found[0]
    exact = [one for one in found if one.record.id == id]
    if exact:
        return exact[0]
    ids = [one.record.id for one in found[:5]]
    what = f"{len(found)} records begin so: {', '.join(ids)}" if found else "no record has an id that begins so"
    raise InputError(f"--record {id}", what, "peftmark show RUNS lists failures; peftmark export RUNS lists every id")
