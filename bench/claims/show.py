"""Claims and verdicts as tables for a terminal and as Markdown. Nothing here computes."""

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from bench.claims.claim import Claim
from bench.claims.run import ClaimsPlan
from bench.claims.verdict import ClaimVerdict, PartVerdict

COLOURS = {
    "supported": "green", "partly": "yellow", "refuted": "red", "inconclusive": "magenta",
    "not testable here": "dim", "not run yet": "cyan",
}  # fmt: skip
SHARES = ("share", "share of items", "of the model")


def listed(claims: Sequence[Claim]) -> Table:
    """The catalogue: one row a claim."""
    table = Table("claim", "says", "source", "date", "tested by", title=f"{len(claims)} claims", title_justify="left")
    for claim in claims:
        tests = [part.measure or part.metric for part in claim.parts]
        by = ", ".join(dict.fromkeys(tests)) if tests else f"[dim]not here: {escape(claim.not_testable or '')}[/]"
        table.add_row(claim.id, escape(claim.statement), escape(claim.source), claim.date, by)
    return table


def planned(made: ClaimsPlan) -> Table:
    """What would run, and what is left out."""
    table = Table("what", "runs", "done", "minutes", "for", title="claims: what runs here", title_justify="left")
    for one in made.suites:
        unsupported = sum(job.unsupported is not None for job in one.jobs)
        runs = str(len(one.jobs)) + (f" ({unsupported} unsupported)" if unsupported else "")
        table.add_row(f"suite {one.made.name}", runs, str(one.done), f"{one.minutes:.1f}", ", ".join(one.claims))
    for kind, asking in made.experiments:
        name = f"experiment {kind.name}: {kind.about}"
        table.add_row(name, str(kind.processes), "0", f"{kind.minutes:.1f}", ", ".join(asking))
    lines = [f"about {made.minutes:.0f} minutes; costs of cells that never ran here are rough"]
    lines += [f"a command of its own: {command}" for command in made.elsewhere]
    lines += [f"left out: {line}" for line in made.left_out]
    table.caption, table.caption_justify = escape("\n".join(lines)), "left"
    return table


def judged(found: Sequence[ClaimVerdict]) -> Table:
    """One row a part of a claim: claimed against measured."""
    counts = Counter(one.verdict for one in found)
    title = ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())
    table = Table("claim", "verdict", "what", "claimed", "measured", "note", title=title, title_justify="left")
    for one in found:
        verdict = f"[{COLOURS[one.verdict]}]{one.verdict}[/]"
        note = escape(_short(one.note))
        parts = [part for part in one.parts if part.measured is not None or part.judgements]
        if not parts:
            table.add_row(one.id, verdict, "", "", "", note)
        for number, part in enumerate(parts):
            first = number == 0
            table.add_row(
                one.id if first else "", verdict if first else "", f"{part.metric}: {part.verdict}", claimed(part),
                measured(part), note if first else "",
            )  # fmt: skip
    return table


def claimed(part: PartVerdict) -> str:
    """The claimed value with the sense of its rule."""
    rule = part.rule
    if rule.kind == "range":
        return f"{_number(rule.low, part.unit)} to {_number(rule.high, part.unit)}"
    if rule.kind in ("non_inferior", "plateau"):
        return f"loses less than {_number(rule.high, part.unit)}"
    words = {"at_least": "at least", "up_to": "up to", "at_most": "at most", "equal": "at most"}[rule.kind]
    return f"{words} {_number(rule.low if rule.kind == 'at_least' else rule.high, part.unit)}"


def measured(part: PartVerdict) -> str:
    """Median of the measures, and the ends of their intervals."""
    if part.measured is None:
        return "-"
    none = " (no interval)" if part.low is None and part.high is None else ""
    return _with_ends(part.measured, part.low, part.high, part.unit) + none


def markdown(found: Sequence[ClaimVerdict]) -> str:
    """The verdicts as a Markdown table, then every claim with its meters, settings and records."""
    lines = ["| claim | says | verdict | claimed | measured |", "|---|---|---|---|---|"]
    for one in found:
        parts = [part for part in one.parts if part.measured is not None]
        left = "<br>".join(f"{part.metric}: {claimed(part)}" for part in parts)
        right = "<br>".join(measured(part) for part in parts)
        lines.append(f"| {one.id} | {_cell(one.statement)} | {one.verdict} | {_cell(left)} | {_cell(right)} |")
    for one in found:
        lines += ["", f"### {one.id}: {one.verdict}", "", f"{one.statement}. Source: {one.source}, {one.date}.", ""]
        lines += [f"- {what}: {'; '.join(said)}" for what, said in
                  (("Stated", one.stated), ("Chosen", one.chosen), ("Others found", one.others)) if said]  # fmt: skip
        lines += [f"- {one.note}"] if one.note else []
        for part in one.parts:
            for judgement in part.judgements:
                m = judgement.measure
                meter = f", {m.meter}" if m.meter else ""
                parity = f", parity {m.parity}" if m.parity else ""
                value = _with_ends(m.value, m.low, m.high, part.unit)
                more = parity + (f"; {m.note}" if m.note else "")
                lines.append(f"- {part.metric}{meter}, {m.label}: {value}, {judgement.verdict}{more}")
        if one.records:
            lines.append(f"- Records: {', '.join(one.records)}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _short(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _with_ends(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    """The number, the ends of its interval where it has two, and the unit once."""
    if low == high:
        return _number(value, unit)
    figure, suffix = _split(value, unit)
    ends = f"[{_split(low, unit)[0]}, {_split(high, unit)[0]}]"
    return f"{figure}{suffix} {ends}" if suffix in ("x", " %") else f"{figure} {ends}{suffix}"


def _number(value: float | None, unit: str) -> str:
    return "".join(_split(value, unit))


def _split(value: float | None, unit: str) -> tuple[str, str]:
    """The figure and what stands behind it."""
    if value is None:
        return "?", ""
    if unit in SHARES:
        return f"{100 * value:.1f}", " %"
    if unit == "tokens":
        return f"{value:,.0f}", " tokens"
    return f"{value:.3g}", "x" if unit == "x" else f" {unit}"
