"""``peftmark limit``: reads the arguments, runs one search, prints and keeps what came of it."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from bench.console import out, told


def limit(
    vram: Annotated[float, typer.Option("--vram", help="Budget of GPU memory, GiB, CUDA's context included.")],
    what: Annotated[Literal["max_length", "batch_size", "r"], typer.Option(help="What to make as large as it goes.")],
    model: Annotated[str, typer.Option(help="Catalogue name, Hugging Face id, or a folder.")],
    precision: Annotated[str, typer.Option(help="Base weights: nf4, int8, bf16, fp16 or fp32.")] = "nf4",
    backend: Annotated[str, typer.Option(help="Who trains; see `peftmark list backends`.")] = "hf-peft",
    r: Annotated[int | None, typer.Option("--r", help="LoRA rank; default 16.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row; default 2048.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a batch; default 1.")] = None,
    source: Annotated[str, typer.Option(help="Source of the weights; random ones need the same memory.")] = "random",
    task: Annotated[str, typer.Option(help="Task whose text fills the rows.")] = "gsm-symbolic",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/limit/NAME.")] = None,
    validate: Annotated[bool, typer.Option("--validate", help="Two fresh processes: at the limit, 5 % above.")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Copy records and limit.json into results/.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Longest wall-clock time of one probe, seconds.")] = 900,
    offline: Annotated[bool, typer.Option("--offline", help="Touch no network.")] = False,
    gpu: Annotated[int | None, typer.Option("--gpu", help="Index of the GPU, as nvidia-smi counts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print limit.json instead of the table.")] = False,
) -> None:
    """Find the longest sequence, largest batch or largest rank that trains inside a VRAM budget.

    Every probe is two real training steps in a fresh process under the cap, and a record; the same command reuses
    them. Exit code 1 when --validate finds that the limit does not hold.
    """
    from bench import environment, progress
    from bench.executor import Setting, device_index
    from bench.limit import checks, probing, result
    from bench.limit.family import family
    from bench.store import Store

    with told():
        machine = environment.current()
        index = device_index(machine, gpu, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        budget_bytes = checks.budget(vram, backend, machine, index)
        if what != "max_length" and max_length is None:
            max_length = 2048
        cells = family(
            what, backend=backend, model=model, budget_bytes=budget_bytes, precision=precision, r=r,
            max_length=max_length, batch_size=batch_size, source=source, task=task,
        )  # fmt: skip
        checks.runs_here(cells, machine)
        name = checks.name(cells)
        store = Store(out_dir or Path("runs/limit") / name)
        setting = Setting(
            suite=f"{probing.SUITE}{name}", base=Path.cwd(), timeout_s=timeout_s, offline=offline, environment=machine,
            device_index=index,
        )  # fmt: skip
        stream = sys.stderr if as_json else sys.stdout
        with store.locked():
            found = probing.run(
                cells, setting, store, lambda: progress.make("quiet" if as_json else "auto", stream=stream),
                name=name, say=lambda line: print(line, file=stream, flush=True), validate=validate,
            )  # fmt: skip
            written = result.write(found, store.root)
        if publish:
            written = result.publish(store.root, Path("results"))
        if as_json:
            print(found.model_dump_json(indent=1))
        else:
            out.print(result.table(found))
            out.print(f"result: {escape(str(written))}", soft_wrap=True)
    raise typer.Exit(1 if found.validation and not found.validation.holds else 0)
