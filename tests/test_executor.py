"""The executor: what is killed, what fails in which way, and what a second run does. Real processes, fake backend."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench import executor
from bench.errors import PeftmarkError
from bench.executor import is_done
from bench.plan import Job
from bench.record import Record
from bench.store import Store
from tests import fakes
from tests.synthetic import environment


def run(jobs: list[Job], folder: Path, listener: fakes.Listener | None = None, **options: object) -> list[Record]:
    fail_fast = bool(options.pop("fail_fast", False))
    setting = replace(fakes.setting(folder), **options)  # type: ignore[arg-type]
    return executor.run(jobs, setting, Store(folder), listener or fakes.Listener(), fail_fast=fail_fast)


def kill_worker(job: Job, phase: str) -> None:
    if job.cell.model == "fake-hang" and phase == "steady":
        workers = [p for p in psutil.Process().children() if "bench.worker" in p.cmdline()]
        assert len(workers) == 1
        workers[0].kill()


# Killed


def test_a_killed_worker_is_a_crashed_record_and_the_run_goes_on(tmp_path: Path) -> None:
    killed, after = run([fakes.job("fake-hang"), fakes.job()], tmp_path, fakes.Listener(kill_worker))
    assert (killed.status, killed.failed_phase) == ("crashed", "steady")
    assert "killed by SIGKILL" in str(killed.message) and "host memory" in str(killed.message)
    assert len(killed.steps.wall_s) == fakes.UNTIMED
    assert killed.steps.loss == [1.0, 0.5]
    assert killed.timeline and killed.timeline.rows > 0
    assert after.status == "ok"
    assert [item.record for item in Store(tmp_path).load()[0]] == sorted([killed, after], key=lambda r: r.id)
    assert not fakes.processes_of(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_killed_run_leaves_no_process_and_goes_on_where_it_stopped(tmp_path: Path, signum: signal.Signals) -> None:
    suite = fakes.suite(tmp_path, "max_steps: [3, 90]")
    out = tmp_path / "run"
    command = ("run", suite, "--out", out, "--quiet")
    process = fakes.start(*command, cwd=tmp_path)

    def in_second_cell() -> bool:
        journals = list(out.glob("work/*/journal.jsonl"))
        return bool(list(out.glob("records/*/*/record.json")) and journals and "step" in journals[0].read_text())

    fakes.wait_for(in_second_cell)
    assert len(fakes.processes_of(out)) == 2
    process.send_signal(signum)
    ended = fakes.finish(process)
    assert ended.returncode == (-9 if signum == signal.SIGKILL else 130)
    fakes.wait_for(lambda: not fakes.processes_of(out), timeout_s=5)
    kept, broken = Store(out).load()
    assert [item.record.cell.max_steps for item in kept] == [3] and not broken
    if signum == signal.SIGKILL:
        (journal,) = out.glob("work/*/journal.jsonl")
        assert "done" not in journal.read_text(), "the worker died with its parent, not of its own"
    else:
        assert "finished cells are kept" in ended.stderr and "Traceback" not in ended.stderr
        assert not list((out / "work").iterdir())

    again = fakes.finish(fakes.start(*command, cwd=tmp_path))
    assert again.returncode == 0, again.stderr
    after, broken = Store(out).load()
    assert [item.record.cell.max_steps for item in after] == [3, 90] and not broken
    assert after[0].record == kept[0].record
    assert {item.record.status for item in after} == {"ok"}
    assert not list((out / "work").iterdir())


def test_a_worker_that_hangs_dies_with_its_killed_parent(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = fakes.start("run", fakes.suite(tmp_path, "model: [fake-hang]"), "--out", out, "--quiet", cwd=tmp_path)
    fakes.wait_for(lambda: any("step" in path.read_text() for path in out.glob("work/*/journal.jsonl")))
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    try:
        process.kill()
        process.communicate()
        fakes.wait_for(lambda: not fakes.processes_of(out), timeout_s=5)
    finally:
        for child in children:
            if child.is_running():
                child.kill()


def test_the_ended_workers_whole_group_is_killed(tmp_path: Path) -> None:
    child = f"import subprocess, time; subprocess.Popen(['sleep', '3600.{os.getpid()}']); time.sleep(3600)"
    with executor._child([executor.sys.executable, "-c", child]) as process:
        sleeper = fakes.wait_for(lambda: psutil.Process(process.pid).children())[0]
    fakes.wait_for(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE, timeout_s=5)


# Statuses

ENDINGS = {
    "fake": ("ok", None, None),
    "fake-oom": ("oom", "steady", "CUDA out of memory"),
    "fake-crash": ("crashed", "steady", "ValueError: scripted crash"),
    "fake-exit": ("crashed", "steady", "the worker exited with code 7"),
    "fake-audit": ("crashed", "steady", "asked for nf4, got bf16"),
    "fake-diverge": ("diverged", "steady", "loss is nan"),
    "fake-unsupported": ("unsupported", "steady", "scripted"),
}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("endings")


@pytest.fixture(scope="module")
def endings(where: Path) -> dict[str, Record]:
    jobs = [fakes.job(model) for model in ENDINGS] + [fakes.job("refused", unsupported="no such GPU here")]
    listener = fakes.Listener()
    made = run(jobs, where, listener)
    assert listener.statuses == [record.status for record in made]
    assert {item.record.id: item.record for item in Store(where).load()[0]} == {r.id: r for r in made}
    return {record.cell.model: record for record in made}


@pytest.mark.parametrize("model", ENDINGS)
def test_each_ending_has_its_status_phase_and_message(endings: dict[str, Record], model: str) -> None:
    status, phase, message = ENDINGS[model]
    record = endings[model]
    assert (record.status, record.failed_phase) == (status, phase)
    assert record.message is None if message is None else message in str(record.message)
    seen = fakes.STEPS if status == "ok" else fakes.UNTIMED
    assert len(record.steps.wall_s) == len(record.steps.real_tokens) == seen
    assert [phase.name for phase in record.phases] == ["import", "load", "warmup", "steady"]
    assert record.wall_s and all(0 <= p.start_s <= p.start_s + p.wall_s <= record.wall_s for p in record.phases)


def test_a_cell_refused_by_the_plan_is_a_record_without_a_run(endings: dict[str, Record]) -> None:
    record = endings["refused"]
    assert (record.status, record.message, record.failed_phase) == ("unsupported", "no such GPU here", None)
    assert record.wall_s is None and not record.phases and record.timeline is None


def test_a_cell_that_runs_too_long_is_stopped(tmp_path: Path) -> None:
    (record,) = run([fakes.job("fake-hang")], tmp_path, timeout_s=1.5)
    assert (record.status, record.failed_phase) == ("timeout", "steady")
    assert "timeout_s" in str(record.message)
    assert len(record.steps.wall_s) == fakes.UNTIMED
    assert record.wall_s and 1.5 <= record.wall_s < 6
    assert not fakes.processes_of(tmp_path)


def test_a_worker_that_dies_at_once_is_crashed_without_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor.sys, "executable", "/bin/false")
    (record,) = run([fakes.job()], tmp_path)
    assert (record.status, record.failed_phase, record.phases) == ("crashed", None, [])
    assert "exited with code 1" in str(record.message)


def test_a_record_keeps_its_journal_and_log_but_no_job_file(endings: dict[str, Record], where: Path) -> None:
    for model in ("fake", "fake-crash"):
        folder = where / "records" / endings[model].cell.slug / endings[model].id
        names = {path.name for path in folder.iterdir()}
        assert names == {"record.json", "journal.jsonl", "timeline.parquet", "worker.log"}
        log = (folder / "worker.log").read_text()
        assert log == "" if model == "fake" else "ValueError: scripted crash" in log


def test_a_fact_that_is_not_valid_ends_its_cell_and_not_the_run(tmp_path: Path) -> None:
    def spoil(job: Job, phase: str) -> None:
        if job.cell.max_steps == 60 and phase == "steady":
            (journal,) = tmp_path.glob("work/*/journal.jsonl")
            fact = {"t_s": 1.0, "event": "fact", "name": "eval_after", "value": {"task": "t", "value": None}}
            with journal.open("a") as file:
                file.write(json.dumps(fact) + "\n")

    spoilt, after = run([fakes.job(max_steps=60), fakes.job()], tmp_path, fakes.Listener(spoil))
    assert (spoilt.status, spoilt.failed_phase, len(spoilt.steps.wall_s)) == ("crashed", "steady", 60)
    assert "eval_after: left out" in str(spoilt.message)
    assert after.status == "ok"


# The GPU before a cell: readings made up here, on no GPU


def gpu_seen(monkeypatch: pytest.MonkeyPatch, *counts: int | None) -> list[int]:
    """The executor's looks at the GPU find these numbers of processes, the last one for good; counts its looks."""
    looks: list[int] = []

    class Reader:
        def __init__(self, index: int | None, pid: int) -> None:
            assert index == 0 and pid == os.getpid()

        def memory(self) -> tuple[None, None, int | None]:
            looks.append(1)
            return None, None, counts[min(len(looks), len(counts)) - 1]

    monkeypatch.setattr(executor, "GpuReader", Reader)
    return looks


def test_a_cell_waits_for_what_is_left_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = gpu_seen(monkeypatch, 2, 1, 0)
    (record,) = run([fakes.job()], tmp_path, device_index=0)
    assert len(looks) == 3
    assert (record.status, record.message) == ("ok", None)
    assert record.health and (record.health.other_processes_before, record.health.other_processes_during) == (0, None)


def test_who_stays_on_the_gpu_contaminates_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "SETTLE_S", 0.3)
    gpu_seen(monkeypatch, 1)
    finished, failed = run([fakes.job(), fakes.job("fake-oom")], tmp_path, device_index=0)
    assert finished.status == "contaminated" and len(finished.steps.wall_s) == fakes.STEPS
    assert finished.message == "1 other compute process(es) on the GPU before the cell started"
    assert failed.status == "oom" and failed.health and failed.health.reasons == [finished.message]
    assert {item.record.status for item in Store(tmp_path).load()[0]} == {"contaminated", "oom"}


def test_a_gpu_that_cannot_be_read_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = gpu_seen(monkeypatch, None)
    (record,) = run([fakes.job()], tmp_path, device_index=0)
    assert len(looks) == 1 and record.status == "ok"
    assert record.health and record.health.other_processes_before is None


def test_without_a_gpu_there_is_no_health(endings: dict[str, Record]) -> None:
    assert {record.health for record in endings.values()} == {None}


# What is done


def test_done_is_the_same_cell_and_repeat_in_the_same_environment(endings: dict[str, Record]) -> None:
    machine = environment(gpu=None)
    records = list(endings.values())
    done = {model: is_done(fakes.job(model), records, machine) for model in ENDINGS}
    assert {model for model in done if done[model]} == {"fake", "fake-oom", "fake-diverge", "fake-unsupported"}
    assert not is_done(fakes.job(repeat=1), records, machine)
    assert not is_done(fakes.job(r=8), records, machine)
    assert not is_done(fakes.job(), records, environment(gpu=None, torch="2.12.0"))
    assert is_done(fakes.job(), records, machine.model_copy(update={"git_revision": "1" * 40, "git_dirty": True}))
    for status in ("timeout", "contaminated"):
        assert not is_done(fakes.job(), [endings["fake"].model_copy(update={"status": status})], machine)


# Preparation


def test_preparation_of_fake_cells_needs_nothing(tmp_path: Path) -> None:
    assert executor.prepare([fakes.cell()], fakes.setting(tmp_path)) == []


def test_a_preparation_that_fails_says_why(tmp_path: Path) -> None:
    cell = fakes.cell("no-such-model", backend="hf-peft")
    with pytest.raises(PeftmarkError, match="no-such-model"):
        executor.prepare([cell], fakes.setting(tmp_path))


def test_a_preparation_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor.sys, "executable", "/bin/false")
    with pytest.raises(PeftmarkError, match="died"):
        executor.prepare([fakes.cell()], fakes.setting(tmp_path))


def test_workers_see_the_gpu_and_the_network_that_the_run_allows(tmp_path: Path) -> None:
    setting = replace(fakes.setting(tmp_path), device_index=3)
    env = executor._worker_env(setting)
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"], env["HF_HUB_OFFLINE"]) == ("3", "PCI_BUS_ID", "1")
    free = executor._worker_env(replace(setting, device_index=None, offline=False))
    assert free.get("HF_HUB_OFFLINE") == os.environ.get("HF_HUB_OFFLINE")
    assert free.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
