"""A comparison as a terminal table, Markdown, JUnit XML and JSON. Like regressions of one kernel family share a row."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from bench.errors import InputError
from bench.regress.verdict import Comparison, MetricVerdict, Verdict

ORDER: tuple[Verdict, ...] = ("regressed", "improved", "inconclusive")
COLOURS: dict[Verdict, str] = {
    "regressed": "bold red", "improved": "green", "inconclusive": "yellow", "unchanged": "dim",
}  # fmt: skip
NUMBERS = re.compile(r"\d[\d.]*(e[+-]?\d+)?|\binf\b")
SHOWN, CELL = 50, 160
"""Rows of a Markdown table, and characters of a cell."""


@dataclass(frozen=True)
class Row:
    """Metrics with one verdict for one reason."""

    verdict: Verdict
    gate: bool
    first: MetricVerdict
    names: list[str]

    @property
    def metric(self) -> str:
        """The name, or the group and how many are in it."""
        if len(self.names) == 1:
            return self.names[0]
        return f"{'/'.join(self.names[0].split('/')[:2])}: {len(self.names)}, e.g. {self.names[0]}"

    @property
    def effect(self) -> str:
        """``+5.1 % (+3.9 to +6.3 %), could show 2.1 %``."""
        one = self.first
        if one.effect is None:
            return ""
        text = f"{100 * one.effect:+.1f} %"
        if one.low is not None and one.high is not None and one.level is not None:
            text += f" ({100 * one.low:+.1f} to {100 * one.high:+.1f} % at {100 * one.level:g} %)"
        return text + (f", could show {100 * one.mde:.1f} %" if one.mde is not None and one.level is not None else "")

    @property
    def note(self) -> str:
        """Why, and whether it counts."""
        counts = "" if self.gate or self.verdict != "regressed" else "does not fail the check"
        return "; ".join(filter(None, [self.first.why if self.first.why != self.first.candidate else "", counts]))


def rows(comparison: Comparison) -> list[Row]:
    """What is not unchanged: regressions that fail the check first; what no side could see is left out."""
    grouped: dict[tuple[object, ...], list[MetricVerdict]] = defaultdict(list)
    for metric in comparison.metrics:
        if metric.verdict == "unchanged" or (metric.verdict == "inconclusive" and _unseen(metric)):
            continue
        texts = [NUMBERS.sub("#", text) for text in (metric.baseline, metric.candidate)]
        name = "/".join(metric.name.split("/")[:2])
        apart = metric.name if metric.effect is not None else ""
        key = (ORDER.index(metric.verdict), not metric.gate, name, *texts, apart)
        grouped[key].append(metric)
    return [
        Row(verdict=group[0].verdict, gate=group[0].gate, first=group[0], names=[metric.name for metric in group])
        for _, group in sorted(grouped.items(), key=lambda item: item[0][:2])
    ]


def _unseen(metric: MetricVerdict) -> bool:
    return metric.baseline.startswith("unknown") and metric.candidate.startswith("unknown")


def summary(comparison: Comparison) -> str:
    """One sentence: the outcome and how many metrics."""
    outcome = {0: "passed", 1: "REGRESSED", 2: "could not run"}[comparison.exit_code]
    counts = ", ".join(f"{comparison.count(verdict)} {verdict}" for verdict in (*ORDER, "unchanged"))  # type: ignore[arg-type]
    return (
        f"{comparison.package} {comparison.baseline.version} -> {comparison.candidate.version}: {outcome} "
        f"({len(comparison.failed)} regressions fail the check; {counts})"
    )


def tables(comparison: Comparison) -> list[Table | str]:
    """For the terminal: the table, then the notes and the summary."""
    table = Table("verdict", "metric", "baseline", "candidate", "effect", "note", box=SIMPLE)
    made = rows(comparison)
    for row in made:
        colour = COLOURS[row.verdict] if row.gate or row.verdict != "regressed" else "yellow"
        cells = (row.metric, row.first.baseline, row.first.candidate, row.effect, row.note)
        table.add_row(f"[{colour}]{row.verdict}[/]", *(escape(_cut(cell)) for cell in cells))
    return [*([table] if made else []), *map(escape, [*_notes(comparison), summary(comparison)])]


def markdown(comparison: Comparison) -> str:
    """For a pull request or ``$GITHUB_STEP_SUMMARY``."""
    mark = {0: "✅", 1: "❌", 2: "⚠️"}[comparison.exit_code]
    lines = [f"### {mark} {summary(comparison)}", ""]
    made = rows(comparison)
    if made:
        lines += ["| verdict | metric | baseline | candidate | effect | note |", "|---|---|---|---|---|---|"]
        for row in made[:SHOWN]:
            cells = (row.verdict, row.metric, row.first.baseline, row.first.candidate, row.effect, row.note)
            lines.append("| " + " | ".join(_cut(cell).replace("|", "\\|") for cell in cells) + " |")
        if len(made) > SHOWN:
            lines.append(f"| | {len(made) - SHOWN} more rows in the JSON | | | | |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in _notes(comparison))]) + "\n"


def _notes(comparison: Comparison) -> list[str]:
    locks = [
        f"{side}: " + ", ".join(f"{item.name} {item.version} ({item.source})" for item in lock)
        for side, lock in (("baseline", comparison.baseline.lock), ("candidate", comparison.candidate.lock)) if lock
    ]  # fmt: skip
    return [*locks, *comparison.differences, *(f"could not run: {text}" for text in comparison.could_not)]


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def junit(comparison: Comparison, path: Path) -> None:
    """One suite a level, one case a metric: a regression that counts is a failure, an inconclusive one is skipped."""
    parser = _junitparser()
    document = parser.JUnitXml(f"{comparison.package} {comparison.candidate.version}")
    suites: dict[str, Any] = {}
    for metric in comparison.metrics:
        level, _, name = metric.name.partition("/")
        suite = suites.setdefault(level, parser.TestSuite(level))
        case = parser.TestCase(name, classname=f"{comparison.package}.{level}")
        text = f"{metric.baseline} -> {metric.candidate}"
        if metric.verdict == "regressed" and metric.gate:
            case.result = [parser.Failure(_printable(text))]
        elif metric.verdict == "inconclusive":
            case.result = [parser.Skipped(_printable(metric.why or text))]
        suite.add_testcase(case)
    for reason in comparison.could_not:
        level = reason.partition(":")[0]
        case = parser.TestCase("ran", classname=f"{comparison.package}.{level}")
        case.result = [parser.Error(_printable(reason))]
        suites.setdefault(level, parser.TestSuite(level)).add_testcase(case)
    for suite in suites.values():
        document.add_testsuite(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    document.write(str(path), pretty=True)


def _junitparser() -> Any:
    try:
        import junitparser
    except ImportError:
        raise InputError("--junit", "needs junitparser", "pip install junitparser") from None
    return junitparser


def _printable(text: str) -> str:
    """Without the control characters that XML does not allow."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def write(path: Path, text: str, *, append: bool = False) -> None:
    """Write a file, or add to it (``$GITHUB_STEP_SUMMARY`` holds what earlier steps wrote)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="utf-8") as stream:
        stream.write(text)
