"""What may lie beside records, made up: kernel records, limits and a history of releases, with hostile names."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import environment
from bench.cell import Cell
from bench.limit.result import LimitResult, ProbeResult, Resolution, Validation
from bench.regress import history
from bench.regress.history import Entry
from bench.regress.reading import LevelRun, Locked, Reading, Release
from kernels_check.mutate import MutationRecord, Outcome, Verdict
from kernels_check.record import write
from tests import synthetic
from tests.kernels_check.test_report import benchmark, entry, error, record, timings

GIB = 2**30
NASTY = "<script>alert(3)</script>"


def everything(folder: Path) -> None:
    """Kernels, limits and releases below ``folder``, where the commands put them."""
    kernels(folder / "kernels")
    for i, one in enumerate(limits()):
        path = folder / "limits" / str(i) / "limit.json"
        path.parent.mkdir(parents=True)
        path.write_text(one.model_dump_json())
    for one_entry in releases():
        history.append(folder / "releases" / "unsloth-cpu.jsonl", one_entry)


def kernels(folder: Path) -> None:
    """A check on each device, in which one case fails, a mutation test, and timings of four kernels."""
    folder.mkdir(parents=True)
    cases = [entry(family="rope", forward=error(0.5)), entry(family="nf4"), entry(family=NASTY)]
    write(record(*cases, entry("one", "not runnable here", family="nf4", reason="needs CUDA")), folder / "cpu.json")
    wrong = entry("one", "failed", family="nf4", reason="Y: 3 tolerances at (1,)", forward=error(3))
    liger = entry("one", "failed", family="rope", candidate="liger", reason="Y: 3 tolerances at (1,)")
    write(record(*cases, wrong, liger, device="cuda"), folder / "cuda.json")
    verdicts = [Verdict(mutant=name, family="rope", bad=bad, seconds=1.0)
                for name, bad in (("sign", entry(status="failed")), (NASTY, None))]  # fmt: skip
    made = MutationRecord(
        created=datetime(2026, 1, 2, tzinfo=UTC), seed=0, unsloth="2026.1.1", environment=environment.current(),
        outcomes=[Outcome(mutant=one.mutant, file="f.py", equivalent=None, verdicts=[one],
                          status="killed" if one.bad else "survived") for one in verdicts], seconds=1.0,
    )  # fmt: skip
    write(made, folder / "mutation.json")
    both = {"direction": "forward+backward"}
    timed = [
        *_timed({"eager": 8e-6, "unsloth": 1e-6, "liger": 2e-6, "compile": 1e-6}, family="rope"),
        *_timed({"eager": 8e-6, "unsloth": 2e-6, "liger": 1e-6, "compile": 3e-6}, family="rope", **both),
        *_timed({"eager": 9e-6, "unsloth": 1e-6}, family="rope", shape="llama-70b", bytes=8_000_000, **both),
        *_timed({"eager": 4e-6, "unsloth": 5e-6}, family="gemv"),
        *_timed({"eager": 4e-6, "unsloth": 3e-6, "compile": 2e-6}, family=NASTY, cpu_bound_rounds=0.5),
        *_timed({"eager": 4e-6, "liger": 3e-6}, family="lone"),
    ]
    (folder / "speed.json").write_text(json.dumps(timings(*timed)))


def _timed(medians: dict[str, float], **info: Any) -> list[dict[str, Any]]:
    return [benchmark(name, median, **info) for name, median in medians.items()]


def limits() -> list[LimitResult]:
    """Sequences with both backends (Unsloth's verified), batches of which the baseline trains none, and a rank of
    Unsloth alone, verified wrongly."""
    return [
        limit("hf-peft", "max_length", 4096, 4352),
        limit("unsloth", "max_length", 16384, 17152, holds=True),
        limit("hf-peft", "batch_size", None, 1, model=NASTY),
        limit("unsloth", "batch_size", 6, None, model=NASTY),
        limit("unsloth", "r", 512, 520, holds=False),
    ]


def limit(
    backend: str, what: Any, value: int | None, failing: int | None, holds: bool | None = None, **cell: Any
) -> LimitResult:  # fmt: skip
    """One result; its probes are of the value and the first failing one."""
    probes = [_probe(backend, one, one == value) for one in (value, failing) if one is not None]
    validation = None
    if holds is not None and value and failing:
        validation = Validation(
            at_limit=_probe(backend, value, True), above=_probe(backend, failing, not holds), holds=holds
        )
    fields = {"model": "llama-3.1-8b", "precision": "nf4", "backend": backend, "max_length": 2048, "r": 16} | cell
    return LimitResult(
        name=f"{backend}-{what}", what=what, value=value, first_failing_value=failing, budget_bytes=24 * GIB,
        resolution=Resolution(step=256, relative=0.05), card_bytes=80 * GIB, backend=backend,
        cell=Cell.model_validate(fields | ({what: value} if value else {})),
        settings={"gradient_checkpointing": "on", "attention": NASTY}, probes=probes, validation=validation,
        environment=synthetic.environment(),
    )  # fmt: skip


def _probe(backend: str, value: int, fits: bool) -> ProbeResult:
    return ProbeResult(
        value=value, repeat=0, status="ok" if fits else "oom", fits=fits, reason=None if fits else "out of memory",
        record_id=f"{backend}-{value}", reused=False, nvml_process_peak_bytes=23 * GIB,
        torch_allocated_peak_bytes=22 * GIB, torch_reserved_peak_bytes=22 * GIB, outside_allocator_bytes=GIB,
        wall_s=30.0,
    )  # fmt: skip


def releases() -> list[Entry]:
    """A first release, one that changed nothing, one with a wrong kernel and a slow import, one that could not be
    judged, and one that mended both."""
    return [
        release("2026.1.1", 10.0, 0),
        release("2026.2.1", 10.5, 0, against="2026.1.1"),
        release("2026.3.1", 30.0, 2, against="2026.2.1",
                regressed=["kernels/rope/a float32", "kernels/rope/b float32", "static/import_s", f"model/{NASTY}"]),
        release("2026.4.1", 30.0, 2, against="2026.2.1", could_not=f"{NASTY} timed out"),
        release("2026.5.1", 9.0, 0, against="2026.2.1", improved=["static/import_s"]),
    ]  # fmt: skip


def release(version: str, import_s: float, bad: int, could_not: str | None = None, **said: Any) -> Entry:
    """One entry; ``bad`` of two cases of rope are wrong."""
    readings = [
        Reading(name="static/import", state="good"),
        Reading(name="static/import_s", values=[import_s], unit="s"),
        *(Reading(name=f"kernels/rope/{case} float32", state="bad" if i < bad else "good")
          for i, case in enumerate("ab")),
        Reading(name="kernels/rope/worst error", values=[0.3], exact=True, unit="tolerances"),
        Reading(name=f"model/{NASTY}", values=[1], exact=True, better="equal"),
    ]  # fmt: skip
    made = Release(
        created=datetime(2026, 11, 1, tzinfo=UTC), package="unsloth", version=version, machine=f"Test CPU {NASTY}",
        lock=[Locked(name="unsloth", version=version, source="index", sha256="a" * 64, built=f"{version[:6]}-28")],
        environment={}, checks_sha256="c" * 16, levels={"model": LevelRun(seconds=1.0, could_not=could_not)},
        readings=readings,
    )  # fmt: skip
    return Entry(release=made, good=not could_not and not said.get("regressed"), **said)
