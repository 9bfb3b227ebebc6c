"""The headline table in a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.finding import Findings, FindingsFile
from bench.report.format import UNKNOWN
from bench.report.rows import MemoryCell, Row, accuracy_row, make_rows

STATUS_STYLES = {
    "measured": "green",
    "failed": "red",
    "parity failed": "red",
    "unsupported": "yellow",
    "not comparable": "yellow",
}
SHORT_METERS = {
    "torch allocated": "alloc", "torch reserved": "resvd", "NVML process": "proc", "NVML device": "device",
}  # fmt: skip
LEGEND = (
    "tokens/s: real tokens over the steady steps. memory: saving and peak GiB of baseline → candidate under torch "
    "allocated, torch reserved, NVML process, NVML device. n: processes a side."
)


def terminal_tables(content: FindingsFile) -> list[RenderableType]:
    """The tables of the report's own runs, then the measured pairs of published ones under their label."""
    tables: list[RenderableType] = [terminal_table(content.own)]
    pairs = content.published.pairs
    if pairs:
        measured = [finding for finding in pairs if finding.verdict == "measured"]
        tables.append(Text("Published results, not from this run", style="bold"))
        tables.append(terminal_table(content.published.model_copy(update={"pairs": measured})))
        if len(measured) < len(pairs):
            tables.append(Text(f"and {len(pairs) - len(measured)} without a measured pair: see the page"))
    return tables


def terminal_table(found: Findings) -> Group:
    """One table a machine environment, each followed by the reasons of rows that are not plain measurements."""
    parts: list[Table | Text] = []
    for fingerprint in dict.fromkeys(finding.environment for finding in found.pairs):
        theirs = [finding for finding in found.pairs if finding.environment == fingerprint]
        rows = make_rows(theirs)
        parts += [_table(theirs[0].machine, rows), *(_reason(row) for row in rows if row.why)]
        parts += [Text(f"{row.model} {row.method} {row.precision}, {row.dispatch}") for row in rows if row.dispatch]
        accuracy = [accuracy_row(one) for one in found.accuracy if one.environment == fingerprint]
        parts += [Text(f"accuracy, {row.what}: {row.result}") for row in accuracy]
    return Group(*parts, Text(LEGEND if parts else "no records", style="dim"))


def _table(machine: str, rows: Sequence[Row]) -> Table:
    # Text, not str: a model or message with square brackets is not markup.
    table = Table(title=Text(machine), title_justify="left", show_lines=True)
    for name in ("model", "tokens/s", "speedup", "memory saving, GiB", "accuracy", "n"):
        table.add_column(name, overflow="fold", no_wrap=name.startswith("memory"))
    for row in rows:
        weights = "\nrandom weights" if row.random_weights else ""
        extra = f"\n{row.extra}" if row.extra else ""
        accuracies = (row.baseline_accuracy, row.candidate_accuracy)
        measured = row.status == "measured"
        table.add_row(
            Text(f"{row.model}{weights}\n{row.method} {row.precision}\n{row.recipe}{extra}"),
            Text(f"{row.baseline} {row.baseline_rate}\n{row.candidate} {row.candidate_rate}"),
            Text(f"{row.speedup}\n{row.certainty}" if measured else row.status, style=STATUS_STYLES[row.status]),
            Text("\n".join(_memory(memory) for memory in row.memory)),
            Text("" if accuracies == (UNKNOWN, UNKNOWN) else "\n".join(accuracies)),
            Text(row.processes),
        )
    return table


def _memory(memory: MemoryCell) -> str:
    peaks = "" if memory.peaks_gib == UNKNOWN else f" {memory.peaks_gib.replace(' ', '')}"
    return f"{SHORT_METERS[memory.meter]} {memory.saving}{peaks}"


def _reason(row: Row) -> Text:
    name = " ".join(filter(None, [row.model, row.method, row.precision, row.extra]))
    return Text(f"{name}: {row.why}", style=STATUS_STYLES[row.status])
