"""``peftmark claims``: the catalogue, what this machine can test of it, and the verdicts."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bench.console import err, out, told

app = typer.Typer(add_completion=False, help="Published claims, the experiments behind them, and verdicts.")
RESULTS = Path("results")
RUNS = Path("runs/claims")
LIMITS = Path("runs/limit")

IdsArg = Annotated[list[str] | None, typer.Argument(help="Claims by id; default all.", metavar="[ID]...")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
MinutesOpt = Annotated[float | None, typer.Option("--gpu-minutes", min=0, help="Run no more than about this.")]
FreshOpt = Annotated[bool, typer.Option("--fresh", help="Run again what is done; nothing is overwritten.")]
RunsOpt = Annotated[Path, typer.Option("--out", help="Run folder.")]


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, as_json: JsonOpt = False) -> None:
    """List the claims."""
    from bench.claims import claim, show

    if context.invoked_subcommand:
        return
    with told():
        claims = claim.chosen(None)
        if as_json:
            print(json.dumps([one.model_dump(mode="json") for one in claims], indent=2))
        else:
            out.print(show.listed(claims))


@app.command()
def plan(
    ids: IdsArg = None, gpu_minutes: MinutesOpt = None, fresh: FreshOpt = False, out_dir: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:  # fmt: skip
    """Say what `claims run` would run here, what it costs, and what it leaves out."""
    from bench.claims import show

    with told():
        made = _plan(ids, gpu_minutes, fresh, out_dir)
        if as_json:
            print(json.dumps({
                "suites": [{"name": one.made.name, "runs": len(one.jobs), "done": one.done, "minutes": one.minutes,
                            "claims": one.claims} for one in made.suites],
                "experiments": [{"name": kind.name, "claims": asking} for kind, asking in made.experiments],
                "elsewhere": made.elsewhere, "left_out": made.left_out, "minutes": made.minutes,
            }, indent=2))  # fmt: skip
        else:
            out.print(show.planned(made))


@app.command()
def run(
    ids: IdsArg = None,
    gpu_minutes: MinutesOpt = None,
    fresh: FreshOpt = False,
    out_dir: RunsOpt = RUNS,
    offline: Annotated[bool, typer.Option("--offline", help="Touch no network; what is missing is an error.")] = False,
    gpu: Annotated[int | None, typer.Option("--gpu", help="Index of the GPU, as nvidia-smi counts.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Copy records and experiments into results/.")] = False,
) -> None:
    """Run what this machine can test of the claims; the same command goes on where it stopped.

    Exit code 1 when a cell crashed, timed out, diverged or was contaminated.
    """
    from bench import environment, executor, progress, store
    from bench.claims import experiment, show
    from bench.claims import run as running
    from bench.suite import Suite

    with told():
        machine = environment.current()
        index = executor.device_index(machine, gpu, os.environ.get("CUDA_VISIBLE_DEVICES", ""))

        def setting_of(suite: Suite) -> executor.Setting:
            return executor.Setting(
                suite=suite.name, base=suite.base, timeout_s=suite.timeout_s, offline=offline, environment=machine,
                device_index=index,
            )  # fmt: skip

        folder = store.Store(out_dir)
        with folder.locked():
            made = _plan(ids, gpu_minutes, fresh, out_dir)
            out.print(show.planned(made))
            done = running.run(
                made, folder, setting_of, lambda: progress.make("auto"), lambda line: out.print(escape(line))
            )  # fmt: skip
        if publish:
            found, _ = experiment.load(out_dir)
            for path in running.publish(folder.load()[0], found, RESULTS):
                out.print(f"published {escape(str(path))}", soft_wrap=True)
        out.print("verdicts: peftmark claims verdict")
    raise typer.Exit(1 if any(record.status in executor.BAD for record in done) else 0)


@app.command()
def verdict(
    records: Annotated[list[Path] | None, typer.Argument(help="Folders; default results/ and runs/claims.")] = None,
    claims: Annotated[list[str] | None, typer.Option("--claim", help="Only this claim; may be given again.")] = None,
    as_json: JsonOpt = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write all as Markdown to this file.")] = None,
) -> None:
    """Judge the claims by the records that there are."""
    from bench.claims import claim, show
    from bench.claims.verdict import Evidence, verdicts
    from bench.errors import InputError

    with told():
        wanted = claim.chosen(claims)
        for folder in records or []:
            if not folder.is_dir():
                raise InputError(str(folder), "no such folder", "give results/ or a run folder such as runs/claims")
        evidence = Evidence.read(records or [one for one in (RESULTS, RUNS, LIMITS) if one.is_dir()])
        for line in evidence.unread:
            err.print(f"[yellow]skipped[/] {escape(line)}", soft_wrap=True)
        found = verdicts(evidence, wanted)
        if as_json:
            print(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        else:
            out.print(show.judged(found))
        if markdown:
            markdown.write_text(show.markdown(found), encoding="utf-8")


def _plan(ids: list[str] | None, gpu_minutes: float | None, fresh: bool, out_dir: Path):  # type: ignore[no-untyped-def]
    from bench import environment
    from bench.claims import claim
    from bench.claims import run as running
    from bench.claims.verdict import Evidence

    claims = claim.chosen(ids)
    evidence = Evidence.read([folder for folder in (RESULTS, out_dir) if folder.is_dir()])
    return running.plan(
        claims, environment.current(), [one.record for one in evidence.records], evidence.experiments,
        gpu_minutes=gpu_minutes, fresh=fresh,
    )  # fmt: skip
