"""The commands that look at records and change none: export, show and serve."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench.console import err, out, told
from bench.errors import InputError

if TYPE_CHECKING:
    from bench.store import Loaded

RunsArg = Annotated[list[Path], typer.Argument(help="Run folders, or folders of records such as results/.")]


def export(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, or folders of records.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write: .csv or .parquet.")] = None,
    charts: Annotated[
        Path | None, typer.Option("--charts", help="Folder for PNG and SVG of each of the report's charts.")
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Print what every column means (Markdown), and write nothing.")
    ] = False,
) -> None:
    """Write one row a record, as CSV or Parquet; unknown is null.

    In CSV a text that could be taken for a formula has an apostrophe in front.
    """
    from bench import export as exporting

    with told():
        if columns:
            print(exporting.markdown(), end="")
            return
        if not runs or not (out_file or charts):
            raise InputError(
                "peftmark export", "needs run folders and --out FILE or --charts DIR", "or --columns: what is exported"
            )
        if charts:
            out.print(f"{_charts(load_records(runs), charts)} pictures in {escape(str(charts))}", soft_wrap=True)
        if out_file:
            count = exporting.write(_records(runs), out_file)
            out.print(
                f"{count} records in {escape(str(out_file))}; what the columns mean: peftmark export --columns",
                soft_wrap=True,
            )


def _charts(loaded: list["Loaded"], folder: Path) -> int:
    """Draw the report's charts of these records; how many files."""
    from bench.compare import compare, known_config
    from bench.finding import Findings, FindingsFile
    from bench.report.body import sections
    from bench.report.images import write_images
    from bench.report.view import make_view

    loaded = sorted(loaded, key=lambda one: one.record.id)
    content = FindingsFile(title="", own=compare(loaded), published=Findings())
    view = make_view(content, loaded, [], folder, known_config)
    return len(write_images(view, sections(view), folder))


def show(
    runs: RunsArg,
    record: Annotated[
        str | None, typer.Option("--record", help="One record in full: its id, or how the id begins.", metavar="ID")
    ] = None,
) -> None:
    """Show runs in the terminal: a headline a finding, sparklines of step times and memory, and the failures."""
    from bench import show as showing
    from bench.compare import compare

    with told():
        loaded = sorted(load_records(runs), key=lambda one: one.record.id)
        parts = showing.overview(compare(loaded), loaded) if record is None else showing.whole_record(loaded, record)
        for part in parts:
            out.print(part)


def serve(
    runs: RunsArg,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes any that is free.", min=0, max=65535)] = 8008,
) -> None:
    """Serve the report over run folders on 127.0.0.1, made anew while a run goes on; nothing is written into them.

    Ctrl-C ends it.
    """
    from bench import serve as serving

    with told():
        _folders(runs)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            serving.serve(runs, port, lambda url: out.print(f"{url}  (Ctrl-C ends it)", soft_wrap=True))
        except KeyboardInterrupt:
            out.print("stopped")


def _folders(runs: Sequence[Path]) -> None:
    for folder in runs:
        if not folder.is_dir():
            raise InputError(str(folder), "no such folder", "give a run folder (runs/NAME) or results/")


def load_records(runs: Sequence[Path]) -> "list[Loaded]":
    """All records of all folders at once; what cannot be read is said."""
    from bench import store

    _folders(runs)
    found = []
    for folder in runs:
        good, broken = store.load(folder)
        for one in broken:
            err.print(f"[yellow]skipped[/] {escape(str(one.path))}: {escape(one.reason)}", soft_wrap=True)
        if not good:
            raise InputError(str(folder), "holds no records", "run a suite first: peftmark run demo")
        found += good
    return found


def _records(runs: Sequence[Path]) -> Iterator["Loaded"]:
    """The records of all folders, one by one, sorted by path in each; what cannot be read is said."""
    from bench.store import Loaded, read_all

    _folders(runs)
    for folder in runs:
        found = False
        for one in read_all(folder):
            if isinstance(one, Loaded):
                found = True
                yield one
            else:
                err.print(f"[yellow]skipped[/] {escape(str(one.path))}: {escape(one.reason)}", soft_wrap=True)
        if not found:
            raise InputError(str(folder), "holds no records", "run a suite first: peftmark run demo")
