"""The page of the kernels, index.html and report.md: is each right, how fast is it, and what differs between releases.

Made from the files that ``peftmark kernels`` wrote (see ``reading``). A section without data is absent. The look, the
filters and the bars are those of ``bench.report``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from jinja2 import ChoiceLoader, PackageLoader
from packaging.version import InvalidVersion, Version

from bench.groups import machine_name
from bench.report import page, view
from bench.report.bars import Bar, BarGroup
from bench.report.format import UNKNOWN, percent, seconds
from kernels_check.mutate import MutationRecord
from kernels_check.page import compare as comparing
from kernels_check.page.parts import Cell, Family, Gathered, Note, Pairing, Score, Source, SpeedTable
from kernels_check.page.reading import Content, read_folder
from kernels_check.page.timings import BASELINE, SpeedRow, Timings, speed_rows
from kernels_check.record import BAD, Entry, Error, KernelRecord, Status
from kernels_check.whole_model import ModelRecord

TITLE = "Kernels: correctness and speed"
NOT_RUN: tuple[Status, ...] = ("not runnable here", "not exercised")
KINDS: dict[type[Content], str] = {
    KernelRecord: "check", MutationRecord: "mutation test", ModelRecord: "whole models", Timings: "speed",
}  # fmt: skip


def write(folder: Path, out: Path) -> None:
    """Read every file of ``folder`` and write ``out``/index.html and report.md. InputError where one is bad."""
    names = {"title": TITLE, **vars(gather(read_folder(folder), out))}
    templates = page.make_templates()
    templates.loader = ChoiceLoader([PackageLoader("kernels_check.page"), PackageLoader("bench.report")])
    templates.filters.update(ratio=ratio_text, time=time_text)
    out.mkdir(parents=True, exist_ok=True)
    for template, file in (("kernels.html.j2", "index.html"), ("kernels.md.j2", "report.md")):
        (out / file).write_text(templates.get_template(template).render(names), encoding="utf-8")


def gather(content: Mapping[Path, Content], out: Path) -> Gathered:
    """What the files say, ready to be shown on a page in ``out``: of checks the newest release's on each device."""
    sources = {path: _source(path, one, out) for path, one in content.items()}
    checks = {path: one for path, one in content.items() if isinstance(one, KernelRecord)}
    shown = {device: path for device in ("cpu", "cuda") if (path := _newest(checks, device))}
    mutation = max(
        ((path, one) for path, one in content.items() if isinstance(one, MutationRecord)),
        key=lambda pair: pair[1].created, default=None,
    )  # fmt: skip
    speeds = [(sources[path], one) for path, one in content.items() if isinstance(one, Timings)]
    records = [(sources[path], checks[path]) for path in shown.values()]
    return Gathered(
        sources=list(sources.values()),
        columns=records,
        families=_families(records, mutation[1] if mutation else None, speeds),
        mutation=mutation[1] if mutation else None,
        mutation_source=sources[mutation[0]] if mutation else None,
        models=[(sources[path], one) for path, one in content.items() if isinstance(one, ModelRecord)],
        speeds=speeds,
        pairings=_pairings(checks, shown, sources),
    )


def _source(path: Path, content: Content, out: Path) -> Source:
    environment = content.environment
    versions = {name: package.version for name, package in environment.packages.items()}
    chosen = {name: versions.get(name) for name in ("unsloth", "torch", "triton")}
    date, result = "", ""
    if isinstance(content, Timings):
        date = content.datetime[:10]
        result = f"{len(content.benchmarks)} benchmarks, {len(content.skipped)} left out"
        chosen |= content.versions
    else:
        date = content.created.date().isoformat()
    if isinstance(content, KernelRecord | ModelRecord):
        chosen = dict(content.versions)
        passed = sum(entry.status == "passed" for entry in content.entries)
        result = f"{passed} of {len(content.entries)} passed"
    if isinstance(content, MutationRecord):
        chosen["unsloth"] = content.unsloth
        result = f"{content.count('killed')} of {content.count('killed') + content.count('survived')} faults killed"
    device = f"{content.device}: " if isinstance(content, KernelRecord) else ""
    return Source(
        kind=KINDS[type(content)],
        link=view.relative(path.resolve(), out.resolve()),
        name=path.name,
        machine=device + machine_name(environment),
        versions=chosen,
        date=date,
        environment=environment,
        result=result,
    )


def _age(record: KernelRecord) -> tuple[Version, float]:
    """Older releases first, and of the same release the older record."""
    try:
        version = Version(record.versions.get("unsloth") or "0")
    except InvalidVersion:
        version = Version("0")
    return version, record.created.timestamp()


def _newest(checks: dict[Path, KernelRecord], device: str) -> Path | None:
    return max((p for p in checks if checks[p].device == device), key=lambda p: _age(checks[p]), default=None)


def _pairings(
    checks: dict[Path, KernelRecord], newest: dict[str, Path], sources: dict[Path, Source]
) -> list[Pairing]:  # fmt: skip
    found = []
    for path in sorted(checks, key=lambda p: _age(checks[p]), reverse=True):
        new = newest[checks[path].device]
        if path == new:
            continue
        unlike = comparing.comparable(checks[path], checks[new])
        why_not = "; ".join(f"{key}: {was} and {now}" for key, (was, now) in unlike.items())
        made = None if unlike else comparing.compare(checks[path], checks[new])
        found.append(Pairing(sources[path], sources[new], why_not, made))
    return found


def _families(
    records: list[tuple[Source, KernelRecord]], mutation: MutationRecord | None, speeds: list[tuple[Source, Timings]]
) -> list[Family]:
    timed = [(source, one, speed_rows(one)) for source, one in speeds]
    names = [entry.family for _, record in records for entry in record.entries]
    names += [name for _, _, rows in timed for name in rows]
    return [
        Family(
            name=name,
            rows=_rows(name, [record for _, record in records]),
            notes=[(source, notes) for source, record in records if (notes := _notes(_of(record, name)))],
            switched_off=sorted({t for _, record in records for e in _of(record, name) for t in e.switched_off}),
            score=_score(mutation, name) if mutation else None,
            speed=[_speed(source, one, name, rows[name]) for source, one, rows in timed if name in rows],
        )
        for name in dict.fromkeys(names)
    ]


def _of(record: KernelRecord, family: str) -> list[Entry]:
    return [entry for entry in record.entries if entry.family == family]


def _rows(family: str, records: list[KernelRecord]) -> list[tuple[str, str, list[Cell | None]]]:
    groups: list[dict[tuple[str, str], list[Entry]]] = []
    for record in records:
        groups.append({})
        for entry in _of(record, family):
            groups[-1].setdefault((entry.candidate, entry.dtype), []).append(entry)
    keys = sorted(
        dict.fromkeys(key for group in groups for key in group),
        key=lambda key: (not key[0].startswith("unsloth"), key[0]),
    )  # Unsloth first, dtypes as they ran
    return [(*key, [_cell(group[key]) if key in group else None for group in groups]) for key in keys]


def _cell(entries: list[Entry]) -> Cell:
    ran = [entry for entry in entries if entry.status in ("passed", *BAD)]
    forward, forward_where = _worst(ran, "forward")
    gradient, gradient_where = _worst(ran, "gradient")
    counts = {status: sum(entry.status == status for entry in entries) for status in NOT_RUN}
    return Cell(
        passed=sum(entry.status == "passed" for entry in ran),
        ran=len(ran),
        other=", ".join(f"{count} {status}" for status, count in counts.items() if count),
        bad=any(entry.status in BAD for entry in ran),
        forward=forward, forward_where=forward_where, gradient=gradient, gradient_where=gradient_where,
    )  # fmt: skip


def _worst(entries: list[Entry], which: Literal["forward", "gradient"]) -> tuple[str, str]:
    """The worst error in tolerances, and the case and element where it is."""
    found: list[tuple[Error, Entry]] = [(error, e) for e in entries if (error := getattr(e, which))]
    if not found:
        return UNKNOWN, ""
    error, entry = max(found, key=lambda pair: pair[0].tolerances)
    return f"{error.tolerances:.3g}", f"{entry.case}: {error.result}{error.index}"


def _notes(entries: list[Entry]) -> list[Note]:
    """Whatever did not pass, the same reason once."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for entry in entries:
        if entry.status != "passed":
            reason = comparing.short(entry.reason or "")
            key = entry.status, entry.candidate, reason, entry.known_fault or ""
            groups.setdefault(key, []).append(f"{entry.case} ({entry.dtype})")
    return [Note(*key, places=places) for key, places in groups.items()]


def _score(record: MutationRecord, family: str) -> Score | None:
    killed = faults = flagged = equivalent = 0
    survived = []
    for outcome in record.outcomes:
        for verdict in outcome.verdicts:
            if verdict.family != family:
                continue
            if outcome.equivalent:
                equivalent, flagged = equivalent + 1, flagged + (verdict.bad is not None)
            else:
                faults, killed = faults + 1, killed + (verdict.bad is not None)
                survived += [] if verdict.bad else [outcome.mutant]
    return Score(killed, faults, flagged, equivalent, survived) if faults + equivalent else None


def _speed(source: Source, timings: Timings, family: str, rows: list[SpeedRow]) -> SpeedTable:
    skipped = [
        (f"{one.candidate}, {one.shape}, {one.direction}", one.reason)
        for one in timings.skipped if one.family == family
    ]  # fmt: skip
    longest = max((row.ratio for row in rows if row.ratio), default=1.0)
    shares = _bars((row, row.share or 0.0, f"{percent(row.share)} {row.bound}") for row in rows if row.share)
    ratios = _bars((row, row.ratio / longest, ratio_text(row)) for row in rows if row.ratio)
    return SpeedTable(source, rows, skipped, shares, ratios)


def ratio_text(row: SpeedRow) -> str:
    """``1.82x (1.80 to 1.85)``: against eager, with the quartiles' span."""
    if row.ratio is None:
        return "1" if row.timed.candidate == BASELINE else UNKNOWN
    return f"{row.ratio:.2f}x ({row.ratio_low:.2f} to {row.ratio_high:.2f})"


def time_text(row: SpeedRow) -> str:
    """The median time of a round."""
    return seconds(row.stats.median) if row.stats.median >= 1 else f"{1e6 * row.stats.median:,.1f} µs"


def _bars(rows: Iterable[tuple[SpeedRow, float, str]]) -> list[BarGroup]:
    groups: dict[str, list[Bar]] = {}
    for row, share, text in rows:
        label = f"{row.timed.shape}, {row.timed.dtype}, {row.timed.direction}"
        bar = Bar(row.timed.candidate, round(min(100.0, 100 * share), 2), text, row.timed.candidate == "unsloth")
        groups.setdefault(label, []).append(bar)
    return [BarGroup(label, bars) for label, bars in groups.items()]
