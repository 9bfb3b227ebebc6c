"""Records from journals and timelines: statuses, phases with the peaks of their own time, steps, texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import assemble, events
from bench.cache import sha256_file
from bench.events import Journal
from bench.meters import sampler
from bench.record import FileRef, Fingerprint, GradientProbe, Record
from tests import fakes
from tests.synthetic import environment

STEP = {
    "wall_s": 0.5, "loss": 1.0, "grad_norm": 2.0, "learning_rate": 1e-4, "samples": 2, "padded_tokens": 20,
    "real_tokens": 15, "trained_tokens": 10, "trainer_tokens_seen": 20, "trainer_log_s": 3.0,
}  # fmt: skip


def line(event: str, t_s: float, **fields: Any) -> dict[str, Any]:
    return {"t_s": t_s, "event": event} | fields


def begins(name: str, t_s: float) -> dict[str, Any]:
    return line("phase", t_s, name=name)


def ends(name: str, t_s: float, allocated: int | None = None, reserved: int | None = None) -> dict[str, Any]:
    peaks = {"torch_allocated_peak_bytes": allocated, "torch_reserved_peak_bytes": reserved}
    return line("peaks", t_s, name=name, **peaks)


def row(
    t_s: float, process: int | None, device: int | None, rss: int | None, others: int | None = 0
) -> tuple[Any, ...]:
    return (t_s, process, device, rss, None, None, None, None, others, None, None)


def made(
    folder: Path, journal: list[dict[str, Any]], rows: list[tuple[Any, ...]] | None = None, **fields: Any
) -> Record:
    (folder / assemble.JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in journal))
    if rows is not None:
        sampler.write(rows, folder / assemble.TIMELINE)
    common: dict[str, Any] = {
        "id": "i", "suite": "s", "cell": fakes.cell(), "repeat": 0, "environment": environment(), "started_at": "now",
        "folder": folder, "wall_s": 10.0, "requested_hz": 100.0,
    }  # fmt: skip
    return assemble.record(**(common | fields))


WHOLE = [
    begins("load", 1.0), ends("load", 2.0, 10, 20), begins("steady", 3.0), line("step", 3.5, step=1, **STEP),
    ends("steady", 5.0, 30, 40), line("done", 6.0),
]  # fmt: skip


def test_phases_get_the_peaks_of_their_own_time(tmp_path: Path) -> None:
    rows = [
        row(0.5, 900, 901, 902), row(1.0, 1, 2, 3), row(1.5, 5, 4, 6), row(2.0, 2, 9, 1), row(2.5, 800, 801, 802),
        row(3.5, 70, 71, 72), row(5.0, None, 60, 99), row(5.5, 700, 701, 702),
    ]  # fmt: skip
    record = made(tmp_path, WHOLE, rows)
    assert [(p.name, p.start_s, p.wall_s) for p in record.phases] == [("load", 1.0, 1.0), ("steady", 3.0, 2.0)]
    load, steady = record.phases
    assert (load.nvml_process_peak_bytes, load.nvml_device_peak_bytes, load.host_rss_peak_bytes) == (5, 9, 6)
    assert (steady.nvml_process_peak_bytes, steady.nvml_device_peak_bytes, steady.host_rss_peak_bytes) == (70, 71, 99)
    assert (load.torch_allocated_peak_bytes, load.torch_reserved_peak_bytes) == (10, 20)
    assert (steady.torch_allocated_peak_bytes, steady.torch_reserved_peak_bytes) == (30, 40)
    assert (record.status, record.message, record.failed_phase) == ("ok", None, None)


def test_a_meter_that_read_nothing_is_null(tmp_path: Path) -> None:
    record = made(tmp_path, WHOLE, [row(1.5, None, None, 6, None)])
    load, steady = record.phases
    assert (load.nvml_process_peak_bytes, load.nvml_device_peak_bytes, load.host_rss_peak_bytes) == (None, None, 6)
    assert steady.host_rss_peak_bytes is None
    assert record.status == "ok" and record.timeline and record.timeline.other_gpu_processes == 0


def test_a_phase_cut_short_ends_at_the_next_phase_or_at_the_end(tmp_path: Path) -> None:
    journal = [begins("load", 1.0), begins("warmup", 4.0), line("step", 6.0, step=1, **STEP)]
    record = made(tmp_path, journal, [row(3.0, 1, 1, 1), row(9.0, 7, 7, 7)], ended=("crashed", "killed"))
    load, warmup = record.phases
    assert (load.start_s, load.wall_s) == (1.0, 3.0)
    assert (warmup.start_s, warmup.wall_s) == (4.0, 6.0)
    assert warmup.torch_allocated_peak_bytes is None
    assert (load.nvml_process_peak_bytes, warmup.nvml_process_peak_bytes) == (1, 7), "the last peak seen is kept"


def test_steps_are_equal_lists_and_missing_values_null(tmp_path: Path) -> None:
    second = STEP | {"loss": None, "grad_norm": None}
    record = made(tmp_path, [begins("steady", 1), line("step", 2, step=1, **STEP), line("step", 3, step=2, **second)])
    steps = record.steps.model_dump()
    assert {len(values) for values in steps.values()} == {2}
    assert record.steps.loss == [1.0, None] and record.steps.real_tokens == [15, 15]


FAILED = [begins("load", 1.0), ends("load", 2.0), begins("steady", 3.0), line("step", 4.0, step=1, **STEP)]


@pytest.mark.parametrize("status", ["oom", "crashed", "diverged", "unsupported"])
def test_the_worker_says_how_it_failed(tmp_path: Path, status: str) -> None:
    record = made(tmp_path, [*FAILED, line("failed", 5.0, status=status, message="why")])
    assert (record.status, record.message, record.failed_phase) == (status, "why", "steady")
    assert record.steps.wall_s == [0.5]


def test_the_parents_word_stands_above_the_journals(tmp_path: Path) -> None:
    record = made(tmp_path, [*FAILED, line("done", 5.0)], ended=("timeout", "too long"))
    assert (record.status, record.message, record.failed_phase) == ("timeout", "too long", "steady")


def test_a_journal_without_an_end_is_a_crash(tmp_path: Path) -> None:
    record = made(tmp_path, FAILED)
    assert (record.status, record.failed_phase) == ("crashed", "steady")
    empty = made(tmp_path, [])
    assert (empty.status, empty.failed_phase, empty.phases) == ("crashed", None, [])


def test_another_process_on_the_gpu_contaminates_a_good_run_only(tmp_path: Path) -> None:
    rows = [row(1.0, 1, 1, 1, 0), row(1.1, 1, 1, 1, 2), row(1.2, 1, 1, 1, 1), row(1.3, 1, 1, 1, None)]
    record = made(tmp_path, WHOLE, rows, device_index=0)
    assert record.status == "contaminated" and "2 other compute process(es)" in str(record.message)
    assert record.timeline and record.timeline.other_gpu_processes == 2
    assert record.health and [record.message] == record.health.reasons
    assert len(record.steps.wall_s) == 1 and len(record.phases) == 2
    failed = made(tmp_path, [*FAILED, line("failed", 5.0, status="oom", message="why")], rows, device_index=0)
    assert (failed.status, failed.message) == ("oom", "why")
    assert failed.health and failed.health.reasons == record.health.reasons


def test_a_process_seen_before_the_cell_contaminates_even_where_no_row_was_written(tmp_path: Path) -> None:
    record = made(tmp_path, WHOLE, device_index=0, other_processes_before=1)
    assert record.status == "contaminated" and "before the cell started" in str(record.message)
    assert record.health and record.health.other_processes_during is None


def test_health_is_that_of_a_gpu_and_of_a_cell_that_ran(tmp_path: Path) -> None:
    assert made(tmp_path, WHOLE, [row(1.0, None, None, 1, None)]).health is None
    refused = assemble.record(
        id="i", suite="s", cell=fakes.cell(), repeat=0, environment=environment(), started_at="now", device_index=0,
        ended=("unsupported", "no"),
    )  # fmt: skip
    assert refused.health is None
    fine = made(tmp_path, WHOLE, [row(3.5, 1, 1, 1)], device_index=0, other_processes_before=0)
    assert (fine.status, fine.message) == ("ok", None)
    assert fine.health and fine.health.reasons == [] and fine.health.other_processes_during == 0


def test_the_timeline_is_named_and_hashed(tmp_path: Path) -> None:
    timeline = made(tmp_path, WHOLE, [row(1.0, 1, 1, 1)] * 3).timeline
    path = tmp_path / assemble.TIMELINE
    assert timeline and (timeline.rows, timeline.requested_hz) == (3, 100.0)
    assert timeline.file.model_dump() == {
        "path": "timeline.parquet", "sha256": sha256_file(path), "size_bytes": path.stat().st_size,
    }  # fmt: skip
    assert made(tmp_path, WHOLE, []).timeline


def test_facts_land_in_the_fields_they_name(tmp_path: Path) -> None:
    value = {"train_sha256": "d" * 64, "stream_sha256": "5" * 64}
    audit = [{"name": "base_precision", "requested": "nf4", "effective": "nf4", "ok": True}]
    facts = [line("fact", 1, name="data", value=value), line("fact", 1, name="audit", value=audit)]
    record = made(tmp_path, [*facts, *WHOLE])
    assert record.data and record.data.train_sha256 == "d" * 64
    assert [entry.name for entry in record.audit] == ["base_precision"]


def meters(folder: Path) -> list[dict[str, Any]]:
    """Facts of both optional meters, and the files they name."""
    gradients, kernels = folder / "gradients.safetensors", folder / "fingerprint.json"
    gradients.write_bytes(b"sketches")
    kernels.write_text("{}")
    probe = GradientProbe(file=FileRef.of(gradients, folder), tensors=2, loss=1.5, rows=2, tokens=100)
    fingerprint = Fingerprint(
        file=FileRef.of(kernels, folder), device="cpu", kernels=1, launches=3, device_s=0.5, sha256="0" * 64
    )
    values = {"probe": probe.model_dump(), "fingerprint": fingerprint.model_dump()}
    return [line("fact", 5.5, name=name, value=value) for name, value in values.items()]


def test_the_probe_and_the_fingerprint_are_kept_with_their_files(tmp_path: Path) -> None:
    record = made(tmp_path, [*meters(tmp_path), *WHOLE])
    assert (record.status, record.message) == ("ok", None)
    assert record.probe and (record.probe.loss, record.probe.file.path) == (1.5, "gradients.safetensors")
    assert record.fingerprint and record.fingerprint.launches == 3


@pytest.mark.parametrize("harm", ["gone", "changed", "no number", "a folder"])
def test_a_meter_without_its_file_or_value_is_dropped_and_the_run_stays_ok(tmp_path: Path, harm: str) -> None:
    facts, file = meters(tmp_path), tmp_path / "gradients.safetensors"
    if harm == "no number":
        facts[0]["value"]["loss"] = None  # how the journal writes NaN
    elif harm == "changed":
        file.write_bytes(b"sketchez")
    else:
        file.unlink()
        if harm == "a folder":
            file.mkdir()
    record = made(tmp_path, [*facts, *WHOLE])
    assert record.status == "ok" and record.probe is None and record.fingerprint
    said = {"no number": "probe.loss: Input should be a valid number"}
    assert said.get(harm, "gradients.safetensors is missing or was changed") in str(record.message)


EVALUATED = {"task": "t", "metric": "m", "value": None, "stderr": None, "items": 1}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("eval_after", EVALUATED, "eval_after.value: Input should be a valid number"),
        ("model", {"weights": "imaginary"}, "model.weights: Input should be 'real' or 'random'"),
        ("modle", {}, "modle: left out: a record has no such field"),
        ("audit", None, "audit: Input should be a valid list"),
    ],
)
def test_a_fact_that_is_not_valid_makes_a_good_run_crashed(tmp_path: Path, name: str, value: Any, said: str) -> None:
    journal = [*WHOLE[:-1], line("fact", 5.0, name=name, value=value), begins("save", 5.5), WHOLE[-1]]
    good = line("fact", 1, name="data", value={"train_sha256": "d" * 64})
    record = made(tmp_path, [good, *journal])
    assert (record.status, record.failed_phase) == ("crashed", "steady")
    assert said in str(record.message)
    assert record.data and len(record.steps.wall_s) == 1, "what is good is kept"
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_a_step_without_its_time_makes_a_good_run_crashed(tmp_path: Path) -> None:
    journal = [WHOLE[0], WHOLE[1], WHOLE[2], line("step", 3.5, step=1, **STEP | {"wall_s": None}), *WHOLE[4:]]
    record = made(tmp_path, journal)
    assert (record.status, record.failed_phase, record.steps.wall_s) == ("crashed", "steady", [])
    assert "steps.wall_s.0: Input should be a valid number" in str(record.message)


def test_a_failed_run_keeps_its_own_word_beside_a_fact_that_is_not_valid(tmp_path: Path) -> None:
    fact = line("fact", 1, name="eval_before", value=EVALUATED)
    record = made(tmp_path, [fact, *FAILED, line("failed", 5.0, status="oom", message="why")])
    first, second = str(record.message).split("\n")
    assert (record.status, record.failed_phase, first) == ("oom", "steady", "why")
    assert second.startswith("eval_before: left out")


def test_messages_do_not_tell_this_machines_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here, cache = tmp_path / "users" / "someone", tmp_path / "checkout", tmp_path / "users" / "someone" / "cached"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PEFTMARK_CACHE", str(cache))
    monkeypatch.chdir(here)
    message = f"no {cache}/models/x, no {here}/data.jsonl, no {home}/.config"
    record = made(tmp_path, [line("failed", 1, status="crashed", message=message)])
    assert record.message == "no CACHE/models/x, no ./data.jsonl, no ~/.config"
    told = made(tmp_path, [], ended=("unsupported", f"needs {home}/y")).message
    assert told == "needs ~/y"


# The journal


def test_the_journal_is_read_while_it_is_written_and_keeps_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, started=0.0)
    journal.write("step", loss=float("nan"), grad_norm=float("inf"), nested=[{"x": float("-inf")}], text="a\nb")
    with journal.phase("load", t_s=1.5):
        pass
    step, begun, ended = events.read(path)
    assert (step["loss"], step["grad_norm"], step["nested"], step["text"]) == (None, None, [{"x": None}], "a\nb")
    assert (begun["event"], begun["name"], begun["t_s"]) == ("phase", "load", 1.5)
    assert ended["event"] == "peaks" and ended["torch_allocated_peak_bytes"] is None


def test_peaks_are_written_when_a_phase_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Journal(tmp_path / "j", started=0.0).phase("load"):
        raise ValueError
    assert [entry["event"] for entry in events.read(tmp_path / "j")] == ["phase", "peaks"]


@pytest.mark.parametrize("tail", ['{"t_s": 1, "ev', '{"t_s": 1, "event": "done"}', "", "\udcff"])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "j"
    path.write_text('{"t_s": 0, "event": "phase"}\n' + tail, errors="surrogateescape")
    assert events.read(path) == [{"t_s": 0, "event": "phase"}]
    assert events.read(tmp_path / "none") == []


def test_bytes_that_are_no_text_do_not_lose_the_record(tmp_path: Path) -> None:
    record = made(tmp_path, [line("failed", 1, status="crashed", message="no file \udcff.txt")])
    assert record.message == "no file ?.txt"
    assert Record.model_validate_json(record.model_dump_json()) == record
