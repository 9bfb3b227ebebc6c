"""The table of one run."""

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from bench.console import out
from kernels_check.page.timings import SpeedRow, Timings, speed_rows
from kernels_check.speed.operations import ORDER


def render(timings: Timings) -> None:
    """Print every operation: eager's median time, how many times faster the others are, and the shares of the least
    time; then what was not timed, and the ceilings."""
    groups: dict[tuple[str, str, str], dict[str, SpeedRow]] = {}
    for row in (row for rows in speed_rows(timings).values() for row in rows):
        groups.setdefault((row.timed.family, row.timed.shape, row.timed.direction), {})[row.timed.candidate] = row
    table = Table("kernel", "shape", "direction", "eager, ms", box=SIMPLE)
    for name in ORDER[1:]:
        table.add_column(f"{name}, x")
    for name in ORDER:
        table.add_column(f"{name}, %")
    table.caption = "x: eager's time over this one's; %: the least possible time over this one's; * waited for the CPU"
    for group, rows in groups.items():
        eager = f"{1000 * rows['eager'].stats.median:.3f}" if "eager" in rows else "-"
        table.add_row(
            *group, eager, *(_ratio(rows.get(n)) for n in ORDER[1:]), *(_share(rows.get(n)) for n in ORDER)
        )  # fmt: skip
    out.print(table)
    for entry in timings.skipped:
        out.print(
            f"[yellow]not timed:[/] {entry.family} {entry.shape} {entry.direction} {entry.candidate}: "
            f"{escape(entry.reason)}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    said = [f"bandwidth {rate / 1e9:.0f} GB/s"] if (rate := timings.ceiling("bandwidth")) else []
    said += [f"matmul {rate / 1e12:.0f} TFLOP/s"] if (rate := timings.ceiling("matmul")) else []
    said += [f"{name} {version or 'absent'}" for name, version in timings.versions.items()]
    out.print(", ".join(said), soft_wrap=True, highlight=False)


def _ratio(row: SpeedRow | None) -> str:
    return f"{row.ratio:.2f}" if row and row.ratio else "-"


def _share(row: SpeedRow | None) -> str:
    if row is None or row.share is None:
        return "-"
    return f"{100 * row.share:.0f}{'*' if row.timed.cpu_bound_rounds else ''}"
