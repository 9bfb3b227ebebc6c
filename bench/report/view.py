"""Records and findings made ready to be shown: numbered, named, grouped by machine, each with its links.

Everything the sections and charts say is read from a ``View``; it computes no statistic.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from bench.compare import ConfigOf, Derived, derive, machine_name
from bench.environment import Environment
from bench.finding import AccuracyFinding, Finding, Findings, FindingsFile
from bench.ladder import Ladder, ladders, shipped_order
from bench.record import Record
from bench.report.rows import Row, make_rows, tuning
from bench.report.sections import About, Link
from bench.store import RECORD, Loaded


@dataclass(frozen=True)
class RecordView:
    """One record; ``index`` is its number in the data of the page."""

    index: int
    loaded: Loaded
    derived: Derived
    label: str
    about: About
    path: str
    """Of the record file, relative to the page."""
    files: list[tuple[str, str]]
    """Name and path of each file beside it that is there (published records come without logs)."""

    @property
    def record(self) -> Record:
        return self.loaded.record

    @property
    def anchor(self) -> str:
        return anchor(self.record.id)


@dataclass(frozen=True)
class FindingView:
    """One finding; ``label`` tells it from every other of the page."""

    number: int
    finding: Finding
    row: Row
    label: str
    about: About

    @property
    def anchor(self) -> str:
        return f"finding-{self.number}"

    @property
    def paired(self) -> bool:
        return self.finding.baseline is not None and self.finding.candidate is not None

    @property
    def links(self) -> list[Link]:
        """To the records of both sides."""
        return [
            Link(f"{side.backend} {i}", f"#{anchor(record_id)}")
            for side in (self.finding.baseline, self.finding.candidate)
            if side
            for i, record_id in enumerate(side.record_ids, 1)
        ]


@dataclass(frozen=True)
class Group:
    """What ran in one environment, own or published."""

    machine: str
    environment: Environment
    origin: str
    """Empty for the report's own runs; else how published results are announced."""
    dates: str
    findings: list[FindingView]
    accuracy: list[AccuracyFinding]
    ladders: list[Ladder]
    records: list[RecordView]

    @property
    def anchor(self) -> str:
        return f"environment-{self.environment.fingerprint[:12]}{'-published' if self.origin else ''}"

    @property
    def name(self) -> str:
        return f"{self.machine} (published)" if self.origin else self.machine


@dataclass(frozen=True)
class View:
    """All of it."""

    title: str
    groups: list[Group]

    @cached_property
    def records(self) -> list[RecordView]:
        return [one for group in self.groups for one in group.records]

    @cached_property
    def findings(self) -> list[FindingView]:
        return [one for group in self.groups for one in group.findings]

    @cached_property
    def backends(self) -> list[str]:
        """The baselines first."""
        sides = [(f.baseline, f.candidate) for f in (one.finding for one in self.findings)]
        bases = [base.backend for base, candidate in sides if base and candidate]
        return list(dict.fromkeys([*bases, *(one.record.cell.backend for one in self.records)]))

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Record id to its number."""
        return {one.record.id: one.index for one in self.records}


def make_view(
    content: FindingsFile, own: Sequence[Loaded], published: Sequence[Loaded], out: Path, config_of: ConfigOf
) -> View:  # fmt: skip
    """Groups by environment, in the findings' order, the report's own first."""
    here = {one.record.environment.fingerprint for one in own}
    groups = _groups(content.own, own, None, out, config_of)
    groups += _groups(content.published, published, here, out, config_of)
    return View(content.title, _named(groups))


def anchor(record_id: str) -> str:
    return quote(f"record-{record_id}", safe="")


def relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def published_label(same_environment: bool) -> str:
    """What stands above results that the report's own runs did not make."""
    return f"Published results, not from this {'run' if same_environment else 'machine'}"


def _groups(
    found: Findings, loaded: Sequence[Loaded], own_environments: set[str] | None, out: Path, config_of: ConfigOf
) -> list[Group]:  # fmt: skip
    by_id = {one.record.id: one for one in loaded}
    groups = []
    for fingerprint in dict.fromkeys(finding.environment for finding in found.pairs):
        theirs = [finding for finding in found.pairs if finding.environment == fingerprint]
        sides = [side for finding in theirs for side in (finding.baseline, finding.candidate) if side]
        ids = dict.fromkeys(record_id for side in sides for record_id in side.record_ids)
        members = sorted((by_id[one] for one in ids), key=lambda one: one.record.id)
        environment = next(
            one for one in members if one.record.environment.fingerprint == fingerprint
        ).record.environment
        origin = "" if own_environments is None else published_label(fingerprint in own_environments)
        same = [one.record for one in members if one.record.environment.fingerprint == fingerprint]
        group = Group(
            machine=machine_name(environment),
            environment=environment,
            origin=origin,
            dates=dates([one.record for one in members]),
            findings=_findings(theirs),
            accuracy=[one for one in found.accuracy if one.environment == fingerprint],
            ladders=ladders(same, shipped_order()),
            records=[_record(one, out, config_of) for one in members],
        )
        groups.append(group)
    return groups


def _findings(found: Sequence[Finding]) -> list[FindingView]:
    """Pairs first, so that rows without a partner do not lengthen the names of those with one."""
    paired = [one for one in found if one.baseline and one.candidate]
    alone = [one for one in found if not (one.baseline and one.candidate)]
    views = []
    for part in (paired, alone):
        for finding, row in zip(part, make_rows(part), strict=True):
            base = finding.baseline.backend if finding.baseline else ""
            about = _about(finding.cell.model, finding.cell.precision, finding.cell.r, finding.cell.backend)
            views.append(FindingView(0, finding, row, "", {**about, "baseline": base}))
    return views


def _record(one: Loaded, out: Path, config_of: ConfigOf) -> RecordView:
    record, cell = one.record, one.record.cell
    beside = [ref.path for ref in record.files() if (one.folder / ref.path).is_file()]
    label = f"{cell.model} {tuning(cell)} {cell.precision} {cell.backend}, {record.started_at[:16].replace('T', ' ')}"
    return RecordView(
        index=0,
        loaded=one,
        derived=derive(record, config_of),
        label=label if record.status == "ok" else f"{label}, {record.status}",
        about=_about(cell.model, cell.precision, cell.r, cell.backend),
        path=relative(one.folder / RECORD, out),
        files=[(name, relative(one.folder / name, out)) for name in beside],
    )


def _about(model: str, precision: str, r: int | None, backend: str) -> dict[str, str]:
    return {"model": model, "precision": precision, "rank": "full" if r is None else str(r), "backend": backend}


def _named(groups: Sequence[Group]) -> list[Group]:
    """Numbers and names over the whole page; a record or machine that is in two groups keeps its first place."""
    several = len({group.name for group in groups}) > 1
    numbered, seen = 0, set[str]()
    named = []
    for group in groups:
        machine = {"machine": group.name} if several else {}
        findings = []
        for one in group.findings:
            numbered += 1
            findings.append(replace(one, number=numbered, about={**one.about, **machine}))
        records = []
        for record in group.records:
            if record.record.id not in seen:
                records.append(replace(record, index=len(seen), about={**record.about, **machine}))
                seen.add(record.record.id)
        named.append(replace(group, findings=findings, records=records))
    labels = iter(_labels([one for group in named for one in group.findings]))
    return [
        replace(group, findings=[replace(one, label=next(labels)) for one in group.findings]) for group in named
    ]  # fmt: skip


def _labels(views: Sequence[FindingView]) -> list[str]:
    """As short as tells them apart: more is said only of those that would look alike."""

    def short(one: FindingView) -> str:
        return f"{one.row.model} {one.row.method.removeprefix('lora ')} {one.row.precision}"

    longer: list[Callable[[FindingView], str]] = [
        lambda one: one.about.get("machine", ""),
        lambda one: one.row.recipe.replace(" rows", "").replace(" tokens", "").replace(", ", " x "),
        lambda one: one.row.candidate,
        lambda one: one.row.extra,
        lambda one: f"F{one.number}",
    ]
    labels = [short(one) for one in views]
    for more in longer:
        said: dict[str, set[str]] = defaultdict(set)
        for one, label in zip(views, labels, strict=True):
            said[label].add(more(one))
        labels = [
            f"{label}, {more(one)}" if len(said[label]) > 1 and more(one) else label
            for one, label in zip(views, labels, strict=True)
        ]
    return labels


def dates(records: Sequence[Record]) -> str:
    """The first and the last day of the records."""
    days = sorted({record.started_at[:10] for record in records})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
