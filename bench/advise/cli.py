"""``peftmark advise`` and ``peftmark calibrate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from bench.console import out, told
from bench.viewing import load_records

if TYPE_CHECKING:
    from bench.advise.advice import Advice, Choice
    from bench.advise.fit import Fit
    from bench.store import Loaded

GIB = 2**30
COLOURS = {"fits": "green", "tight": "yellow", "no": "red"}
FitOpt = Annotated[Path | None, typer.Option("--fit", help="Fit file; default the one that comes with peftmark.")]


def advise(
    gpu: Annotated[str, typer.Option(help="Name such as rtx-4090, or auto for this machine's.")],
    model: Annotated[str, typer.Option(help="Catalogue name, folder, or hub id with a local config.")],
    precision: Annotated[Literal["nf4", "bf16", "int8"], typer.Option(help="Base weights.")] = "nf4",
    seq_len: Annotated[int, typer.Option(min=8, help="Tokens a row.")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Rows in one forward pass.")] = 2,
    backend: Annotated[Literal["hf-peft", "unsloth"] | None, typer.Option(help="Default: both.")] = None,
    reserve_mib: Annotated[int, typer.Option(min=0, help="GPU memory that something else uses.")] = 0,
    fit_file: FitOpt = None,
    suite_out: Annotated[Path | None, typer.Option(help="Write the suite that would check the advice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Which LoRA rank fits a GPU, how fast it trains and how accurate it gets, from committed records. Needs no GPU.

    Exit code 1 when nothing fits; the nearest change that would is printed.
    """
    from bench.advise import advice as advising
    from bench.advise import fit as fitting
    from bench.advise import gpus, question
    from bench.advise.check import suite_text

    with told():
        asked = question.Asked(
            model=question.find_model(model), gpu=gpus.find(gpu), precision=precision, sequence=seq_len, batch=batch,
            backends=(backend,) if backend else question.BACKENDS, reserve_mib=reserve_mib,
        )  # fmt: skip
        made = advising.advise(asked, fitting.load_fit(fit_file or fitting.FIT_FILE))
        if suite_out:
            suite_out.write_text(suite_text(made), encoding="utf-8")
    if as_json:
        print(made.model_dump_json(indent=1, exclude={"asked": {"model": {"config"}}}))
    else:
        _show(made, suite_out)
    raise typer.Exit(0 if made.recommended else 1)


def calibrate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of records such as results/.")],
    out_file: Annotated[Path, typer.Option("--out", help="Fit file to write.")] = Path("peftmark-fit.json"),
    before: FitOpt = None,
    report: Annotated[Path | None, typer.Option(help="Page whose error tables are to be made anew.")] = None,
) -> None:
    """Fit the memory model on records, and say its error on them before and after.

    "left out" is the error on each architecture of a fit without it.
    """
    from bench.advise import fit as fitting

    with told():
        loaded = load_records(runs)
        known = before or fitting.FIT_FILE
        old = fitting.load_fit(known) if known.exists() else None
        new = fitting.calibrate(loaded)
        fitting.save_fit(new, out_file)
        if report:
            from bench.advise import report as reporting

            reporting.write(report, new, [item.record for item in loaded])
        out.print(_errors(new, old, loaded))
    for reason, count in sorted(new.skipped.items()):
        out.print(f"left out: {count} {escape(reason)}", soft_wrap=True)
    out.print(
        f"fit: {escape(str(out_file))}; use it with: peftmark advise --fit {escape(str(out_file))} ...", soft_wrap=True
    )


def _errors(new: "Fit", old: "Fit | None", loaded: "list[Loaded]") -> Table:
    from bench.advise.fit import METERS, errors_on

    records = [item.record for item in loaded]
    shown = Table("meter", "fit", "records", "median", "95th percentile", "most too low")
    for meter in METERS:
        lines = [("before", errors_on(old, records)[meter])] if old else []
        lines += [("after", errors_on(new, records)[meter]), ("left out", new.left_out[meter])]
        for name, one in lines:
            shown.add_row(meter, name, str(one.records), f"{one.median:.1%}", f"{one.p95:.1%}", f"{one.lowest:+.1%}")
    return shown


def _show(made: "Advice", suite_out: Path | None) -> None:
    asked = made.asked
    out.print(
        f"[bold]{escape(asked.model.name)}[/], {asked.precision}, {asked.batch} x {asked.sequence} tokens, on "
        f"{escape(asked.gpu.nvml_name)} ({asked.free_bytes / GIB:.1f} GiB)", soft_wrap=True,
    )  # fmt: skip
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("backend", "r", "VRAM", "", "tokens/s", "M", "MiB", "score"):
        table.add_column(head, no_wrap=True)
    for c in made.choices:
        table.add_row(*_row(c), style="bold" if c == made.recommended else None)
    out.print(table)
    if made.recommended:
        out.print(
            f"recommended: [bold]r {made.recommended.r} with {made.recommended.backend}[/]. {made.why}", soft_wrap=True
        )
    else:
        out.print(f"[red]nothing fits[/]: {made.why}. What would:", soft_wrap=True)
        for change in made.instead:
            out.print(f"  {escape(change)}", soft_wrap=True)
    for name in made.longest_sequence:
        out.print(
            f"{name}: longest sequence {made.longest_sequence[name]:,} at batch {asked.batch}; largest batch "
            f"{made.largest_batch[name]} at {asked.sequence} tokens (0: none fits)", soft_wrap=True,
        )  # fmt: skip
    for one in made.evidence:
        ends = ", ".join(f"r {s.r} {s.low:+.3f} to {s.high:+.3f}" for s in one.ranks.ranks)
        out.print(f"accuracy ({one.backend}): {escape(one.told)}; less the best: {ends}", soft_wrap=True)
    if rates := sorted({c.rate.from_record for c in made.choices if c.rate}):
        out.print(f"tokens/s: scaled from {', '.join(rates)}", soft_wrap=True)
    out.print(f"memory: fit of {made.fit_made_on} on {len(made.fit_records)} records (ids with --json)", soft_wrap=True)
    for note in made.notes:
        out.print(f"note: {escape(note)}", soft_wrap=True)
    if suite_out:
        out.print(f"check it there with: peftmark run {escape(str(suite_out))}", soft_wrap=True)


def _row(c: "Choice") -> list[str]:
    vram = f"{c.nvml.value / GIB:.1f} ({c.nvml.low / GIB:.1f}-{c.nvml.high / GIB:.1f})"
    rate = f"{c.rate.value:,.0f} ({c.rate.low:,.0f}-{c.rate.high:,.0f})" if c.rate else "not measured"
    return [
        c.backend, str(c.r), vram, f"[{COLOURS[c.verdict]}]{c.verdict}[/]", rate, f"{c.trainable / 1e6:,.1f}",
        f"{c.adapter_file_bytes / 2**20:.0f}", f"{c.accuracy.accuracy:.3f}" if c.accuracy else "",
    ]  # fmt: skip
