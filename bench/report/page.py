"""Writes index.html, report.md and findings.json from records that were read elsewhere."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from bench.cell import Cell
from bench.compare import ConfigOf, Derived, derive, known_config, machine_name
from bench.environment import Environment
from bench.finding import Findings, FindingsFile
from bench.record import Record
from bench.report import format as fmt
from bench.report.charts import HEIGHT, WIDTH, BarGroup, Sparkline, memory_bars, rate_bars, sparkline
from bench.report.ladder import LadderView, views
from bench.report.rows import METER_NAMES, AccuracyRow, Row, accuracy_row, make_rows
from bench.store import RECORD, Loaded

HEADLINE_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth", "unsloth_zoo", "triton")


@dataclass(frozen=True)
class Detail:
    """One record's own section."""

    record: Record
    path: str
    """Of the record file, relative to the page: link and its text."""
    files: list[tuple[str, str]]
    """Name and link of each file beside the record that is there (published records come without logs)."""
    anchor: str
    derived: Derived
    chart: Sparkline | None
    settings: dict[str, str]


@dataclass(frozen=True)
class Group:
    """All findings and records of one environment and origin."""

    machine: str
    environment: Environment
    origin: str
    """Empty for the report's own runs; else how published results are announced."""
    dates: str
    versions: dict[str, str]
    rows: list[Row]
    accuracy: list[AccuracyRow]
    ladders: list[LadderView]
    rates: list[BarGroup]
    memories: list[BarGroup]
    details: list[Detail]


def render(
    content: FindingsFile, own: Sequence[Loaded], published: Sequence[Loaded], out: Path,
    config_of: ConfigOf = known_config,
) -> None:  # fmt: skip
    """Write the three files into ``out`` (made when missing): ``own`` runs first, ``published`` ones apart below.

    ``config_of`` finds a record's model configuration, which MFU needs.
    """
    here = {one.record.environment.fingerprint for one in own}
    groups = _groups(own, content.own, None, out, config_of)
    groups += _groups(published, content.published, here, out, config_of)
    templates = _templates()
    names = {"title": content.title, "groups": groups, "any_own": bool(own), "meters": METER_NAMES}
    out.mkdir(parents=True, exist_ok=True)
    for template, file in (("index.html.j2", "index.html"), ("report.md.j2", "report.md")):
        (out / file).write_text(templates.get_template(template).render(names), encoding="utf-8")
    (out / "findings.json").write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")


def published_label(same_environment: bool) -> str:
    """What stands above results that the report's own runs did not make."""
    return f"Published results, not from this {'run' if same_environment else 'machine'}"


def _groups(
    loaded: Sequence[Loaded],
    found: Findings,
    own_environments: set[str] | None,
    out: Path,
    config_of: ConfigOf,
) -> list[Group]:
    """Groups by environment, in the findings' order; ``own_environments`` is None for the report's own runs."""
    groups = []
    for fingerprint in dict.fromkeys(finding.environment for finding in found.pairs):
        theirs = [finding for finding in found.pairs if finding.environment == fingerprint]
        rows = make_rows(theirs)
        listed = [record_id for row in rows for _, ids in row.runs for record_id in ids]
        order = {record_id: place for place, record_id in enumerate(dict.fromkeys(listed))}
        members = [one for one in loaded if one.record.id in order]
        labels = [" ".join(filter(None, [row.model, row.method, row.precision, row.extra])) for row in rows]
        environment = members[0].record.environment
        groups.append(
            Group(
                machine=machine_name(environment),
                environment=environment,
                origin="" if own_environments is None else published_label(fingerprint in own_environments),
                dates=_dates([one.record for one in members]),
                versions={n: p.version for n in HEADLINE_PACKAGES if (p := environment.packages.get(n))},
                rows=rows,
                accuracy=[accuracy_row(one) for one in found.accuracy if one.environment == fingerprint],
                ladders=views([r for one in members if (r := one.record).environment.fingerprint == fingerprint]),
                rates=rate_bars(labels, theirs),
                memories=memory_bars(labels, theirs),
                details=[_detail(one, out, config_of) for one in sorted(members, key=lambda one: order[one.record.id])],
            )
        )
    return groups


def _detail(loaded: Loaded, out: Path, config_of: ConfigOf) -> Detail:
    record, path = loaded.record, _relative(loaded.folder / RECORD, out)
    settings = record.cell.model_dump(mode="json")
    beside = [ref.path for ref in record.files() if (loaded.folder / ref.path).is_file()]
    return Detail(
        record=record,
        path=path,
        files=[(name, _relative(loaded.folder / name, out)) for name in beside],
        anchor=_anchor(record.id),
        derived=derive(record, config_of),
        chart=sparkline(record.steps.wall_s, record.cell.untimed_steps),
        settings={name: _setting(settings[name]) for name in Cell.model_fields},
    )


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _anchor(record_id: str) -> str:
    return quote(f"record-{record_id}", safe="")


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _dates(records: list[Record]) -> str:
    days = sorted({record.started_at[:10] for record in records})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _shown(text: str) -> Markup:
    """Text for the page, each unknown with its explanation."""
    return Markup(escape(text).replace(fmt.UNKNOWN, Markup('<span class="unknown" title="not measured">—</span>')))


def _markdown(text: str) -> str:
    """Text as one Markdown table cell: no line break, no column, no tag."""
    for plain, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), (">", "&gt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(plain, safe)
    return " ".join(text.split())


def _templates() -> Templates:
    templates = Templates(
        loader=PackageLoader("bench.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "number": fmt.number, "gib": fmt.gib, "percent": fmt.percent, "seconds": fmt.seconds, "md": _markdown,
        "shown": _shown, "anchor": _anchor, "link": quote,
    }  # fmt: skip
    templates.filters.update(filters)
    templates.globals.update(UNKNOWN=fmt.UNKNOWN, chart_width=WIDTH, chart_height=HEIGHT)
    return templates
