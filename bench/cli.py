"""The command line: each command reads its arguments, calls one part of the harness and prints what came of it."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from bench import viewing
from bench.advise import cli as advising
from bench.claims import cli as claims
from bench.console import err, out, told
from bench.limit import cli as limits
from bench.regress import cli as sentinel
from bench.viewing import load_records
from kernels_check import cli as kernels

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The same LoRA fine-tune with Hugging Face + PEFT and with Unsloth: speed, memory and accuracy, measured.",
)
app.add_typer(kernels.app, name="kernels")
app.add_typer(claims.app, name="claims")
app.command()(advising.advise)
app.command()(advising.calibrate)
sentinel.register(app)
app.command()(limits.limit)
app.command()(viewing.export)
app.command()(viewing.show)
app.command()(viewing.serve)
RUNS = Path("runs")
RESULTS = Path("results")

SuiteArg = Annotated[str, typer.Argument(help="A suite file, or the name of a shipped suite.", metavar="SUITE")]
OutOpt = Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")]
OfflineOpt = Annotated[bool, typer.Option("--offline", help="Touch no network; what is missing is an error.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
AcrossOpt = Annotated[
    list[str] | None,
    typer.Option("--across", help="Compare although this differs (driver, gpu0, package.torch ...); it is said."),
]
ContaminatedOpt = Annotated[bool, typer.Option("--include-contaminated", help="Count contaminated runs; it is said.")]


@contextmanager
def _told() -> Iterator[None]:
    """As ``told``, and Ctrl-C says that nothing is lost."""
    try:
        with told():
            yield
    except KeyboardInterrupt:
        err.print("stopped; finished cells are kept, and the same command goes on from them")
        raise typer.Exit(130) from None


@app.command()
def plan(suite: SuiteArg, as_json: JsonOpt = False) -> None:
    """List a suite's cells: which can run here, which cannot and why, and what they cost where that is known."""
    from bench import plan as planning

    with _told():
        made = _plan(suite)
        if as_json:
            print(planning.as_json(made))
        else:
            out.print(planning.table(made))


@app.command()
def fetch(suite: SuiteArg, offline: OfflineOpt = False) -> None:
    """Make a suite's models, training data and evaluation tasks ready, and print their hashes."""
    from bench import executor

    with _told():
        made = _plan(suite)
        can = [job.cell for job in made.jobs if not job.unsupported]
        table = Table("what", "name", "detail", "sha256")
        for item in executor.prepare(can, _setting(made, offline, gpu=None)):
            table.add_row(item["what"], item["name"], item["detail"], item["sha256"][:16])
        out.print(table)


@app.command()
def run(
    suite: SuiteArg,
    out_dir: OutOpt = None,
    offline: OfflineOpt = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is done; nothing is overwritten.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop after the first bad record.")] = False,
    gpu: Annotated[int | None, typer.Option("--gpu", help="Index of the GPU, as nvidia-smi counts.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the summary alone.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Run a suite's cells, each in a fresh process; a second run goes on where the first stopped.

    Exit code 1 when a cell crashed, timed out, diverged or was contaminated; running out of memory and being
    unsupported are results.
    """
    from bench import executor, progress
    from bench.store import Store

    with _told():
        made = _plan(suite)
        setting = _setting(made, offline, gpu)
        store = Store(out_dir or RUNS / made.suite.name)
        with store.locked():
            store.keep_suite(made.suite.path.read_text(encoding="utf-8"))
            records, broken = store.load()
            for item in broken:
                err.print(f"[yellow]skipped[/] {escape(str(item.path))}: {escape(item.reason)}", soft_wrap=True)
            known = [] if fresh else [item.record for item in records]
            todo = [job for job in made.jobs if not executor.is_done(job, known, setting.environment)]
            view = progress.make("json" if as_json else "quiet" if quiet else "auto")
            can = [job.cell for job in todo if not job.unsupported]
            if can:
                executor.prepare(can, setting)
            view.start(todo, done_already=len(made.jobs) - len(todo))
            try:
                done = executor.run(todo, setting, store, view, fail_fast=fail_fast)
            finally:
                view.stop()
        if not as_json:
            where = escape(str(store.root))
            out.print(
                f"records in {where}; see them with: peftmark report {where} --out {where}/report", soft_wrap=True
            )
    raise typer.Exit(1 if any(r.status in executor.BAD for r in done) else 0)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of records such as results/.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where index.html, report.md and findings.json go.")],
    published: Annotated[
        list[Path] | None,
        typer.Option("--published", help="Published records to show beside, as not from this machine."),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "peftmark report",
    across: AcrossOpt = None,
    include_contaminated: ContaminatedOpt = False,
) -> None:
    """Compare records and write the report: index.html, report.md, findings.json, and the table printed here.

    What lies beside the records of RUNS has sections of its own: every limit.json, RUNS/kernels/*.json and
    RUNS/releases/*.jsonl.
    """
    from bench import beside as other_files
    from bench import report as reporting
    from bench.advise import fit as fitting
    from bench.advise.section import section as advise_section
    from bench.claims.section import section as claims_section
    from bench.claims.verdict import Evidence, verdicts
    from bench.compare import compare
    from bench.finding import FindingsFile

    with _told():
        own, beside = load_records(runs), load_records(published or [])
        found = compare(own, across=across or (), include_contaminated=include_contaminated)
        content = FindingsFile(title=title, own=found, published=compare(beside))
        evidence = Evidence.read(runs, own)
        shown = [item.record for item in [*own, *beside]]
        others, unread = other_files.sections(runs, out_dir, {record.id for record in shown})
        for line in dict.fromkeys([*evidence.unread, *unread]):
            err.print(f"[yellow]skipped[/] {escape(line)}", soft_wrap=True)
        made = [claims_section(verdicts(evidence), shown), advise_section(shown, fitting.load_fit())]
        reporting.render(content, own, beside, out_dir, added=[*(one for one in made if one), *others])
        for table in reporting.terminal_tables(content):
            out.print(table)
        out.print(f"report: {escape(str((out_dir / 'index.html').resolve()))}", soft_wrap=True)


@app.command()
def compare(
    baseline: Annotated[Path, typer.Argument(help="Run folder, or folder of records.")],
    candidate: Annotated[Path, typer.Argument(help="Run folder to compare with it, cell by cell.")],
    across: AcrossOpt = None,
    include_contaminated: ContaminatedOpt = False,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Write the report there too.")] = None,
) -> None:
    """Compare the same cells of two run folders: two releases of a library, or one with itself."""
    from bench import report as reporting
    from bench import show as showing
    from bench.compare import compare_sets
    from bench.finding import Findings, FindingsFile

    with _told():
        sides = load_records([baseline]), load_records([candidate])
        found = compare_sets(*sides, across=across or (), include_contaminated=include_contaminated)
        content = FindingsFile(title=f"{candidate.name} against {baseline.name}", own=found, published=Findings())
        for table in reporting.terminal_tables(content):
            out.print(table)
        for part in showing.courses(found, [*sides[0], *sides[1]], (str(baseline), str(candidate))):
            out.print(part)
        if out_dir:
            reporting.render(content, [*sides[0], *sides[1]], [], out_dir)
            out.print(f"report: {escape(str((out_dir / 'index.html').resolve()))}", soft_wrap=True)


@app.command()
def publish(
    records: Annotated[list[Path], typer.Argument(help="Record folders, or run folders for all their records.")],
    into: Annotated[Path, typer.Option(help="Folder of published records.")] = RESULTS,
) -> None:
    """Copy records, with timeline and evaluation files but without adapters and logs, into results/."""
    from bench import store

    with _told():
        for item in load_records(records):
            out.print(f"published {escape(str(store.publish(item, into)))}", soft_wrap=True)


@app.command()
def schema(
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write; default standard output.")] = None,
) -> None:
    """Write the JSON Schema of suite files, so that editors complete and check them."""
    from bench import suite

    text = json.dumps(suite.json_schema(), indent=2) + "\n"
    if out_file:
        out_file.write_text(text)
    else:
        sys.stdout.write(text)


@app.command()
def doctor(as_json: JsonOpt = False) -> None:
    """Say what this machine can run, what is missing, and the command that mends it. Exit code 1 if nothing can run."""
    from bench import doctor as doctoring
    from bench import environment

    checks = doctoring.diagnose(environment.current())
    if as_json:
        print(json.dumps([check.model_dump() for check in checks], indent=2))
    else:
        out.print(doctoring.render(checks))
    raise typer.Exit(0 if doctoring.can_run(checks) else 1)


@app.command(name="list")
def list_(what: Annotated[Literal["models", "tasks", "backends", "suites"], typer.Argument()]) -> None:
    """List the models, tasks, backends or suites that come with peftmark."""
    from bench import backends, suite, tasks
    from bench.models.catalogue import catalogue

    if what == "models":
        table = Table("name", "parameters", "Hugging Face id")
        for entry in catalogue().values():
            table.add_row(entry.name, f"{entry.published_parameters:,}", entry.hub_id)
        out.print(table)
        return
    names = {"tasks": tasks.names, "backends": backends.names, "suites": suite.shipped}[what]()
    for name in names:
        print(name)


def _plan(name: str):  # type: ignore[no-untyped-def]
    from bench import environment, store, suite
    from bench import plan as planning

    loaded = suite.load(suite.find(name))
    folders = [f for f in (RESULTS, RUNS / loaded.name) if f.is_dir()]
    history = [item.record for folder in folders for item in store.load(folder)[0]]
    return planning.plan(loaded, machine=environment.current(), history=history)


def _setting(made, offline: bool, gpu: int | None):  # type: ignore[no-untyped-def]
    from bench import environment
    from bench.executor import Setting, device_index

    machine = environment.current()
    return Setting(
        suite=made.suite.name, base=made.suite.base, timeout_s=made.suite.timeout_s, offline=offline,
        environment=machine, device_index=device_index(machine, gpu, os.environ.get("CUDA_VISIBLE_DEVICES", "")),
    )  # fmt: skip
