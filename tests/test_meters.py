"""The sampler beside a real process, and what it does without a GPU."""

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


class FakeNvml:
    """NVML as the reader calls it: queries answer, or fail as NVML does. No GPU is involved."""

    class NVMLError(Exception):
        pass

    class Info:
        def __init__(self, pid: int = 0, used: int | None = None) -> None:
            self.pid, self.usedGpuMemory, self.used = pid, used, used

    nvmlMemory_v2, NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 2, 1, 0

    def __init__(self, running: list[Any]) -> None:
        self.running = running

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:
        return self.running

    def nvmlDeviceGetMemoryInfo(self, handle: object, version: int) -> Any:
        return self.Info(used=1000)

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        raise self.NVMLError

    nvmlDeviceGetClockInfo = nvmlDeviceGetTemperature = nvmlDeviceGetMemoryInfo

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return 4


def reader_of(*processes: tuple[int, int | None]) -> sampler.GpuReader:
    reader = sampler.GpuReader(None, pid=7)
    reader._nv, reader._handle = FakeNvml([FakeNvml.Info(*process) for process in processes]), None
    return reader


def test_own_and_other_processes_are_told_apart() -> None:
    assert reader_of((7, 30), (8, 500), (9, None), (10, 1), (7, 12)).memory() == (42, 1000, 3)
    assert reader_of().memory() == (0, 1000, 0)


def test_a_query_that_fails_is_null_and_the_others_are_read() -> None:
    reader = reader_of()
    assert reader.health()[2] is None and reader.health()[3] == 4


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

    out, row = tmp_path / "t.parquet", (1.0, None, None, 5, None, None, None, None, None)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", die)
        with pytest.raises(OSError, match="disk"):
            sampler.write([row], out)
    assert not out.exists()
    sampler.write([row], out)
    assert [tuple(line.values()) for line in pq.read_table(out).to_pylist()] == [row]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
