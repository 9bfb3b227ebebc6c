"""``peftmark kernels``: check Unsloth's kernels against their references."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from bench.cell import Frozen
from bench.console import err, out, told
from kernels_check import record as recording
from kernels_check.record import BAD, Entry, Error, KernelRecord

if TYPE_CHECKING:
    from kernels_check.mutate import MutationRecord
    from kernels_check.page.compare import Comparison
    from kernels_check.whole_model import ModelRecord

app = typer.Typer(no_args_is_help=True, help="Check Unsloth's (and Liger's) Triton kernels.")
COLOURS = {"passed": "green", "failed": "bold red", "crashed": "bold red"}


@app.callback()
def _group() -> None:
    """Check Unsloth's (and Liger's) Triton kernels."""


@app.command()
def check(
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="cpu runs Triton's interpreter.")] = "cpu",
    unsloth: Annotated[Path | None, typer.Option(help="Folder with another installed copy of Unsloth.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A kernel family; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn inputs.")] = 0,
    out_file: Annotated[Path | None, typer.Option("--out", help="File for the record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of the table.")] = False,
) -> None:
    """Compare every kernel, forward and backward, with a float64 reference. Exit 1 if one is wrong, 2 if it cannot
    run."""
    from kernels_check import check as checking

    with told():
        record = checking.check(device, unsloth=unsloth, only=only, seed=seed)
    _written(record, out_file, as_json, lambda: render(record))
    ran = any(e.candidate.startswith("unsloth") and e.status in ("passed", *BAD) for e in record.entries)
    raise typer.Exit(1 if record.bad else 0 if ran else 2)


@app.command()
def mutate(
    only: Annotated[list[str] | None, typer.Option(help="A kernel family; may be given several times.")] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="A mutant's name; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn inputs.")] = 0,
    out_file: Annotated[Path | None, typer.Option("--out", help="File for the record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of the table.")] = False,
) -> None:
    """Does the check see faults? Puts single-place faults into the kernels and runs it on each (minutes, on a CPU).

    Exit 1 if it kills less than 95 % of them or flags one that is equivalent, 2 if it cannot run.
    """
    from rich.progress import Progress

    from kernels_check import mutate as mutating

    with Progress(console=err, transient=True) as bar, told():
        task = bar.add_task("runs")
        record = mutating.mutate(
            only=only, names=mutant, seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    _written(record, out_file, as_json, lambda: render_mutants(record))
    raise typer.Exit(0 if record.ok else 1)


@app.command()
def model(
    only: Annotated[list[str] | None, typer.Option(help="A shape: llama, qwen3 or gemma.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="File for the record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of the table.")] = False,
) -> None:
    """Compare whole tiny models, loss and every LoRA gradient, with HF + PEFT in float64 (on a CPU).

    Exit 1 if one is wrong or Unsloth's code did not run, 2 if it cannot run.
    """
    from kernels_check import whole_model

    with told():
        record = whole_model.check_models(only=only)
    _written(record, out_file, as_json, lambda: render_models(record))
    raise typer.Exit(0 if record.ok else 1)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="Record of the older check.")],
    new: Annotated[Path, typer.Argument(help="Record of the newer check.")],
    across: Annotated[
        list[str] | None,
        typer.Option("--across", help="Compare although this differs (checks_sha256, seed); it is said."),
    ] = None,
) -> None:
    """What differs between two records of check: statuses, kernels launched, worst errors."""
    from kernels_check.page import compare as comparing
    from kernels_check.page.reading import read_check

    with told():
        found = comparing.compare(read_check(old), read_check(new), across or ())
    render_comparison(found)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder with the files that check, mutate, model and speed wrote.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where index.html and report.md go.")],
) -> None:
    """Write the page of the kernels: correctness, speed, and what differs between the releases checked."""
    from kernels_check.page import report as reporting

    with told():
        reporting.write(folder, out_dir)
    out.print(f"report: {escape(str((out_dir / 'index.html').resolve()))}", soft_wrap=True)


@app.command()
def speed(
    out_file: Annotated[Path, typer.Option("--out", help="File for pytest-benchmark's JSON.")],
    only: Annotated[list[str] | None, typer.Option(help="A kernel family; may be given several times.")] = None,
    quick: Annotated[bool, typer.Option(help="The sizes of Llama 8B alone.")] = False,
    limit_s: Annotated[float, typer.Option(help="Start no benchmark after so many seconds.")] = 420.0,
) -> None:
    """Time every kernel on this GPU beside eager PyTorch, torch.compile and Liger (minutes).

    Exit 1 if a candidate of Unsloth's was not timed or the run ended early, 2 if it cannot run.
    """
    from kernels_check.speed import run as running
    from kernels_check.speed import table

    with told():
        timings, ended = running.measure(out_file, only=only, quick=quick, limit_s=limit_s)
    table.render(timings)
    if ended:
        err.print(f"[bold red]ended early:[/] {escape(ended)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if ended or any(entry.candidate == "unsloth" for entry in timings.skipped) else 0)


def _written(record: Frozen, out_file: Path | None, as_json: bool, table: Callable[[], None]) -> None:
    """Write the record, and print it or its table."""
    if out_file:
        recording.write(record, out_file)
    if as_json:
        sys.stdout.write(record.model_dump_json(indent=1) + "\n")
    else:
        table()


def render(record: KernelRecord) -> None:
    """Print the table of a record, then what failed, was not exercised and cannot run here."""
    table = Table("kernel", "dtype", "candidate", "passed", "forward", "gradient", "where", box=SIMPLE)
    table.caption = "worst errors in units of the derived tolerance: above 1 is wrong"
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in record.entries:
        groups.setdefault((entry.family, entry.dtype, entry.candidate), []).append(entry)
    for (family, dtype, candidate), entries in groups.items():
        ran = [e for e in entries if e.status in ("passed", *BAD)]
        colour = "bold red" if any(e.status in BAD for e in ran) else "green"
        passed = sum(e.status == "passed" for e in entries)
        forward, gradient = _worst(ran, "forward"), _worst(ran, "gradient")
        where = max((w for w in (forward, gradient) if w), key=lambda w: w[1].tolerances, default=None)
        table.add_row(
            family, dtype, candidate, f"[{colour if ran else 'yellow'}]{passed}/{len(entries)}[/]",
            _number(forward), _number(gradient),
            f"{where[0].case}: {where[1].result}{where[1].index}" if where else "",
        )  # fmt: skip
    out.print(table)
    for status in ("failed", "crashed", "not exercised"):
        for entry in record.entries:
            if entry.status == status:
                known = f"; known fault: {entry.known_fault}" if entry.known_fault else ""
                rest = "; the family's later cases did not run" if status == "crashed" else ""
                out.print(
                    f"[{'yellow' if known else COLOURS.get(status, 'yellow')}]{status}[/] {entry.family}/{entry.case} "
                    f"{entry.dtype} {entry.candidate}: {escape((entry.reason or '') + known + rest)}",
                    soft_wrap=True, highlight=False,
                )  # fmt: skip
    for text in sorted({said for entry in record.entries for said in entry.switched_off}):
        out.print(f"[yellow]switched itself off:[/] {escape(text)}", soft_wrap=True, highlight=False)
    reasons: dict[str, set[str]] = {}
    for entry in record.entries:
        if entry.status == "not runnable here":
            reasons.setdefault(entry.reason or "", set()).add(f"{entry.family}/{entry.case} ({entry.candidate})")
    for reason, names in reasons.items():
        out.print(f"not runnable here: {', '.join(sorted(names))}: {escape(reason)}", soft_wrap=True, highlight=False)
    for item in record.unavailable:
        out.print(f"not covered: {item.family}: {escape(item.reason)}", soft_wrap=True, highlight=False)
    for text in record.not_covered:
        out.print(f"not covered by this run: {escape(text)}", soft_wrap=True, highlight=False)
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in record.versions.items())
    out.print(f"{versions}; device {record.device}, seed {record.seed}, {record.seconds:.1f} s", soft_wrap=True)


def _worst(entries: list[Entry], which: Literal["forward", "gradient"]) -> tuple[Entry, Error] | None:
    found = [(entry, error) for entry in entries if (error := getattr(entry, which))]
    return max(found, key=lambda pair: pair[1].tolerances, default=None)


def _number(found: tuple[Entry, Error] | None) -> str:
    if found is None:
        return "-"
    value = found[1].tolerances
    return f"[bold red]{value:.3g}[/]" if value > 1 else f"{value:.3g}"


def render_comparison(found: "Comparison") -> None:
    """Print what differs between the runs, then one row for each change and the cases in which it is the same."""
    for text in found.header:
        out.print(escape(text), soft_wrap=True, highlight=False)
    table = Table("kernel", "candidate", "what", "older", "newer", "cases", box=SIMPLE)
    for change in found.changes:
        table.add_row(*map(escape, (
            change.family, change.candidate, change.kind, change.old, change.new, f"{change.count}: {change.places}",
        )))  # fmt: skip
    if found.changes:
        out.print(table)
    out.print(f"{len(found.changes)} kinds of change; {found.common} cases in both records", highlight=False)


def render_mutants(record: "MutationRecord") -> None:
    """Print every mutant and what killed it, then the score."""
    table = Table("mutant", "file", "outcome", "first seen by", box=SIMPLE)
    colours = {"killed": "green", "equivalent": "green", "survived": "bold red", "flagged": "bold red"}
    for outcome in record.outcomes:
        seen = [
            f"{v.bad.family}/{v.bad.case} {v.bad.dtype}: {v.bad.reason}" if v.bad else f"{v.family}: passed"
            for v in outcome.verdicts
        ]
        where = escape("; ".join(text.split(";")[0] for text in seen))
        table.add_row(
            outcome.mutant, outcome.file, f"[{colours[outcome.status]}]{outcome.status}[/]",
            outcome.equivalent if outcome.status == "equivalent" else where,
        )  # fmt: skip
    out.print(table)
    killed, faults = record.count("killed"), record.count("killed") + record.count("survived")
    out.print(
        f"killed {killed} of {faults} faults ({100 * (record.score or 0):.1f} %), {record.count('flagged')} of "
        f"{record.count('equivalent') + record.count('flagged')} equivalent mutants flagged; unsloth {record.unsloth}, "
        f"seed {record.seed}, {record.seconds:.1f} s",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def render_models(record: "ModelRecord") -> None:
    """Print every shape and dtype, then what did not pass and what is not covered."""
    table = Table("shape", "dtype", "status", "loss", "gradients", "median", "worst tensor", "distance", box=SIMPLE)
    table.add_column("HF + PEFT's distance")
    table.caption = "loss, worst and median LoRA gradient in units of the derived tolerance: above 1 is wrong"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2g}"

    for entry in record.entries:
        colour = "green" if entry.status == "passed" else "bold red"
        table.add_row(
            entry.shape, entry.dtype, f"[{colour}]{entry.status}[/]", number(entry.loss_tolerances),
            number(entry.gradient_tolerances), number(entry.median_tolerances),
            ".".join((entry.gradient or "").split(".")[4:8]), number(entry.gradient_distance),
            number(entry.hf_distance),
        )  # fmt: skip
    out.print(table)
    for entry in record.entries:
        if entry.reason:
            out.print(
                f"[bold red]{entry.status}[/] {entry.shape} {entry.dtype}: {escape(entry.reason)}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    for text in record.not_covered:
        out.print(f"not covered by this run: {escape(text)}", soft_wrap=True, highlight=False)
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in record.versions.items())
    out.print(f"{versions}; {record.seconds:.1f} s", soft_wrap=True)
