"""The sampler beside a real process, and what it does without a GPU."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from bench import health
from bench.executor import SAMPLER_HZ
from bench.meters import sampler
from bench.meters.torch_memory import peaks_bytes, reset_peaks
from bench.store import Store
from tests import fakes

SIZE_BYTES = 200 * 2**20
HUNGRY = f"""
import time
time.sleep(0.7)
held = b"x" * {SIZE_BYTES}
time.sleep(0.5)
"""
IDLE = "import time; time.sleep(60)"


def watched(
    code: str, out: Path, hz: float = 100.0
) -> "tuple[subprocess.Popen[bytes], subprocess.Popen[bytes], float]":
    """The child, the sampler beside it, and the clock both count from."""
    child = subprocess.Popen([sys.executable, "-c", code])
    started = time.monotonic()
    command = [sys.executable, "-m", "bench.meters.sampler", "--pid", str(child.pid), "--hz", str(hz)]
    return child, subprocess.Popen([*command, "--started", repr(started), "--out", str(out)]), started


def read(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return columns


def test_a_childs_memory_is_seen_at_the_asked_rate_until_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "timeline.parquet"
    child, beside, started = watched(HUNGRY, out)
    beside.wait(15)  # by itself, though nobody has reaped the child
    child.wait(1)
    lived_s = time.monotonic() - started
    rows = read(out)
    assert tuple(rows) == sampler.COLUMNS
    assert SIZE_BYTES <= max(rows["host_rss_bytes"]) <= 1.1 * SIZE_BYTES
    assert min(rows["host_rss_bytes"]) < 0.2 * SIZE_BYTES
    times = rows["t_s"]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert times[0] > 0 and times[-1] < lived_s
    assert 50 <= len(times) / (times[-1] - times[0]) <= 101, "at least half of the 100 Hz asked for, and not more"


def test_without_a_gpu_its_columns_are_null_and_typed(tmp_path: Path) -> None:
    out = tmp_path / "timeline.parquet"
    watched("import time; time.sleep(0.6)", out)[1].wait(15)
    columns = read(out)
    assert columns["t_s"]
    for name in set(sampler.COLUMNS) - {"t_s", "host_rss_bytes"}:
        assert set(columns[name]) == {None}, name
    assert str(pq.read_schema(out).field("nvml_process_bytes").type) == "int64"


def test_a_gpu_that_is_not_there_reads_as_nothing() -> None:
    reader = sampler.GpuReader(99, 1)
    assert reader.memory() == (None, None, None)
    assert reader.health() == (None, None, None, None)


def test_sigterm_ends_it_with_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "timeline.parquet"
    child, beside, _ = watched(IDLE, out)
    time.sleep(0.8)
    beside.send_signal(signal.SIGINT)  # Ctrl-C is the parent's affair
    time.sleep(0.1)
    assert beside.poll() is None
    beside.terminate()
    assert beside.wait(10) == 0
    child.kill()
    child.wait()
    assert read(out)["t_s"]
    assert not list(tmp_path.glob("*.draft"))


def test_a_process_that_is_gone_makes_no_rows(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    rows = sampler.sample(child.pid, sampler.GpuReader(None, child.pid), hz=10, started=0.0, stop=lambda: False)
    assert rows == []
    sampler.write(rows, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == {name: [] for name in sampler.COLUMNS}


OWN, OTHERS = 5_000_007, (5_000_008, 5_000_009, 5_000_010)
"""Beyond Linux's largest process id, so that none of them is of this machine."""


class FakeNvml:
    """NVML as the reader calls it: queries answer, or fail as NVML does. No GPU is involved."""

    class NVMLError(Exception):
        def __init__(self, value: int = 3) -> None:
            self.value = value

    class Info:
        def __init__(self, pid: int = 0, used: int | None = None) -> None:
            self.pid, self.usedGpuMemory, self.used = pid, used, used

    class Event:
        def __init__(self, xid: int) -> None:
            self.eventData = xid

    nvmlMemory_v2, NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 2, 1, 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, nvmlEventTypeXidCriticalError, NVML_ERROR_TIMEOUT = (
        1,
        0,
        8,
        10,
    )

    def __init__(self, running: list[Any], xids: list[int] | None = None) -> None:
        self.running, self.xids, self.ecc = running, xids, 0

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:
        return self.running

    def nvmlDeviceGetMemoryInfo(self, handle: object, version: int) -> Any:
        return self.Info(used=1000)

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        raise self.NVMLError

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:
        return 1980

    nvmlDeviceGetTemperature = nvmlDeviceGetClockInfo

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return 4

    def nvmlDeviceGetTotalEccErrors(self, handle: object, kind: int, counter: int) -> int:
        assert (kind, counter) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        if self.ecc < 0:
            raise self.NVMLError
        return self.ecc

    def nvmlEventSetCreate(self) -> str:
        return "set"

    def nvmlDeviceRegisterEvents(self, handle: object, kinds: int, events: str) -> None:
        if self.xids is None:
            raise self.NVMLError

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> Any:
        assert self.xids is not None and (events, timeout_ms) == ("set", 0)
        if not self.xids:
            raise self.NVMLError(self.NVML_ERROR_TIMEOUT)
        return self.Event(self.xids.pop(0))


def reader_of(*processes: tuple[int, int | None], pid: int = OWN, xids: list[int] | None = None) -> sampler.GpuReader:
    reader = sampler.GpuReader(None, pid)
    reader._nv, reader._handle = FakeNvml([FakeNvml.Info(*process) for process in processes], xids), None
    return reader


def test_own_and_other_processes_are_told_apart() -> None:
    first, second, third = OTHERS
    reader = reader_of((OWN, 30), (first, 500), (second, None), (third, 1), (OWN, 12))
    assert reader.memory() == (42, 1000, 3)
    assert reader_of().memory() == (0, 1000, 0)


def test_memory_that_the_driver_does_not_tell_is_null() -> None:
    assert reader_of((OWN, None), (OTHERS[0], 5)).memory() == (None, 1000, 1)


def test_what_the_watched_process_started_is_its_own_even_when_it_has_gone() -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as leader:
        try:
            assert leader.stdout
            child = int(leader.stdout.readline())
            reader = reader_of((leader.pid, 30), (child, 12), (OTHERS[0], 500), pid=leader.pid)
            assert reader.memory() == (42, 1000, 1)
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
    fakes.wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert reader.memory() == (42, 1000, 1)


def test_a_query_that_fails_is_null_and_the_others_are_read() -> None:
    reader = reader_of(xids=[])
    assert reader.health()[2] is None and reader.health()[3] == 4
    reader._nv.ecc = -1
    reader.watch_errors()
    assert reader.errors() == (None, [])


def test_errors_are_told_once_and_are_null_where_the_driver_tells_none() -> None:
    reader = reader_of(xids=[31, 43])
    assert reader.errors() == (0, None), "not watched for yet"
    reader.watch_errors()
    assert reader.errors() == (0, [31, 43])
    assert reader.errors() == (0, [])
    silent = reader_of(xids=None)
    silent.watch_errors()
    assert silent.errors() == (0, None)
    assert sampler.GpuReader(99, 1).errors() == (None, None)


def test_the_error_that_ends_the_process_is_in_the_last_row(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", IDLE])
    reader = reader_of((child.pid, 5), pid=child.pid, xids=[])
    deadline = time.monotonic() + 0.4

    def stop() -> bool:
        if time.monotonic() > deadline and child.poll() is None:
            reader._nv.xids.append(79)
            reader._nv.ecc = 1
            child.kill()
            child.wait()
        return False

    rows = sampler.sample(child.pid, reader, hz=50, started=0.0, stop=stop)
    sampler.write(rows, tmp_path / "t.parquet")
    columns = read(tmp_path / "t.parquet")
    assert (columns["xid"][0], columns["ecc_uncorrected"][0]) == ([], 0)
    assert (columns["xid"][-1], columns["ecc_uncorrected"][-1], columns["host_rss_bytes"][-1]) == ([79], 1, None)
    assert set(map(str, columns["xid"][1:-1])) == {"None"}
    assert health.judge(columns, None, other_processes_before=0).xid_errors == [79]


def test_the_sampler_itself_is_a_light_load(tmp_path: Path) -> None:
    """Its CPU time at the rate that runs use, without NVML's part of it; tests/gpu measures the whole."""
    child, beside, _ = watched(IDLE, tmp_path / "t.parquet", hz=SAMPLER_HZ)
    try:
        fakes.wait_for(lambda: psutil.Process(beside.pid).cpu_times().user > 0.05)
        time.sleep(0.7)  # imported and sampling
        before, since = psutil.Process(beside.pid).cpu_times(), time.monotonic()
        time.sleep(2)
        after, wall_s = psutil.Process(beside.pid).cpu_times(), time.monotonic() - since
    finally:
        child.kill()
        child.wait()
        beside.wait(10)
    share = (after.user + after.system - before.user - before.system) / wall_s
    assert share < 0.1, f"{share:.1%} of a core"


def test_without_torch_the_allocators_peaks_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    reset_peaks()
    assert peaks_bytes() == {"torch_allocated_peak_bytes": None, "torch_reserved_peak_bytes": None}
    assert "torch" not in sys.modules


def test_a_run_has_the_timeline_of_its_worker(tmp_path: Path) -> None:
    from bench import executor

    job = fakes.job(max_steps=60)
    (record,) = executor.run([job], fakes.setting(tmp_path), Store(tmp_path), fakes.Listener())
    rows = read(tmp_path / "records" / record.cell.slug / record.id / "timeline.parquet")
    steady = record.phase("steady")
    assert steady and record.timeline and record.timeline.rows == len(rows["t_s"])
    inside = [
        rss
        for t, rss in zip(rows["t_s"], rows["host_rss_bytes"], strict=True)
        if steady.start_s <= t <= steady.start_s + steady.wall_s
    ]
    assert steady.host_rss_peak_bytes == max(inside)
    assert 5 * 2**20 < max(inside) < psutil.virtual_memory().total
    assert len(inside) > 0.5 * executor.SAMPLER_HZ * steady.wall_s


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(table: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"PAR1")
        raise OSError("disk")

    out, row = tmp_path / "t.parquet", (1.0, None, None, 5, None, None, None, None, None, None, [31])
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", die)
        with pytest.raises(OSError, match="disk"):
            sampler.write([row], out)
    assert not out.exists()
    sampler.write([row], out)
    assert [tuple(line.values()) for line in pq.read_table(out).to_pylist()] == [row]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
