"""A report with something in every section: two machines' worth of made-up runs, their files beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.compare import compare
from bench.finding import FindingsFile
from bench.ladder import shipped_order
from bench.record import EvalResult, FileRef, Record, Timeline
from bench.report import render
from bench.report.sections import Section
from bench.store import Loaded
from tests.synthetic import GIB, environment, record, unfinished

HOSTILE = "<script>alert(1)</script>"
REPEATS = 3


def everything(folder: Path) -> list[Loaded]:
    """Pairs of three ranks with repeats, accuracy and timelines, a ladder with gaps, failures, a lone cell, and a model
    with a hostile name."""
    runs = []
    for r in (4, 16, 64):
        for repeat in range(REPEATS):
            for backend, step_s, peak in (("hf-peft", 2.0, 20 + r / 8), ("unsloth", 1.1, 11 + r / 8)):
                serial = repeat + r
                steps = tuple(step_s + 0.01 * i + repeat / 50 for i in range(4))
                runs.append(_with_files(folder, backend, steps, peak, serial, {"r": r}))
    order = shipped_order()
    precision = order[0].precision
    for i, cell in enumerate(one for one in order if one.precision == precision and one.seed == order[0].seed):
        fields = cell.model_dump()
        runs.append(
            unfinished(cell.backend, "oom", "CUDA out of memory\nmore", "warmup", cell=fields) if i == 1
            else record(cell.backend, step_s=(4.0 - i / 4,) * 4, peak_gib=40 - 2 * i, cell=fields)
        )  # fmt: skip
    runs.append(record("hf-peft", cell={"model": HOSTILE}))
    runs.append(unfinished("unsloth", "crashed", f"{HOSTILE} <img src=x onerror=alert(2)>", cell={"model": HOSTILE}))
    runs.append(record("hf-peft", cell={"model": "qwen3-8b", "precision": "nf4"}))
    return [Loaded(one, folder / one.id) for one in runs]


def report(folder: Path, added: list[Section] | None = None) -> Path:
    """The page of ``everything``, written below ``folder``."""
    own = everything(folder / "runs")
    published = [
        Loaded(one, folder / "published" / str(i))
        for i, one in enumerate(
            [record("hf-peft", env=environment("Other GPU"), step_s=(3.0,) * 4, serial=90),
             record("unsloth", env=environment("Other GPU"), serial=91)])
    ]  # fmt: skip
    content = FindingsFile(title=f"Report {HOSTILE}", own=compare(own), published=compare(published))
    render(content, own, published, folder / "out", lambda _: None, added or [])
    return folder / "out" / "index.html"


def _with_files(
    folder: Path, backend: str, steps: tuple[float, ...], peak: float, serial: int, cell: dict[str, Any]
) -> Record:  # fmt: skip
    import_s = 40.0 if backend == "unsloth" else 5.0
    plain = record(backend, step_s=steps, peak_gib=peak, import_s=import_s, serial=serial, cell=cell)
    home = folder / plain.id
    home.mkdir(parents=True)
    rng = np.random.default_rng(serial)
    right = (rng.random(60) < (0.5 if backend == "hf-peft" else 0.55)).astype(int)
    lines = [json.dumps({"doc_id": i, "doc_hash": str(i), "exact_match": int(x)}) for i, x in enumerate(right)]
    (home / "samples.jsonl").write_text("\n".join(lines))
    time_s = np.arange(0, 36, 0.01)
    used = (np.clip(time_s / 20, 0.1, 1) * peak * GIB).astype(np.int64)
    columns = {"t_s": time_s, "nvml_process_bytes": used, "nvml_device_bytes": used + GIB // 2}
    pq.write_table(pa.table(columns), home / "timeline.parquet")
    file = FileRef(path="samples.jsonl", sha256="0", size_bytes=1)
    result = EvalResult(
        task="chain-sum",
        metric="exact_match",
        value=float(right.mean()),
        stderr=0.06,
        items=60,
        results=file,
        samples=file,
    )
    series = Timeline(
        file=FileRef(path="timeline.parquet", sha256="0", size_bytes=1),
        rows=3600,
        requested_hz=100,
        other_gpu_processes=0,
    )
    return plain.model_copy(update={"eval_after": result, "timeline": series})
