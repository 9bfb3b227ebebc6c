"""Samples NVML and host memory of one process from a process beside it: ``python -m bench.meters.sampler``.

Outside the training process, so that its GIL cannot starve the sampler; at fixed deadlines, sleeping in between.
Ends when the watched process ends, its own parent dies, or on SIGTERM, and then writes one Parquet file:

    t_s                     seconds since ``--started`` (CLOCK_MONOTONIC, which all processes of a machine share)
    nvml_process_bytes      GPU memory of the watched process and of its session's others (those it started), by
                            nvmlDeviceGetComputeRunningProcesses
    nvml_device_bytes       GPU memory in use on the device (nvmlDeviceGetMemoryInfo v2, as nvidia-smi shows it)
    host_rss_bytes          resident memory of the watched process
    sm_clock_mhz, temperature_c, power_w, throttle_reasons (NVML bit mask)     every tenth row, else null
    other_processes         other compute processes on the device
    ecc_uncorrected, xid    the GPU's count of uncorrected ECC errors, and the Xid errors since the row before that has
                            a list: first row, every 125th, and a last one after the process has ended; else null

Columns that cannot be read are null throughout.
"""

import argparse
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HEALTH_EVERY = 10
ERRORS_EVERY = 125
COLUMNS = (
    "t_s", "nvml_process_bytes", "nvml_device_bytes", "host_rss_bytes", "sm_clock_mhz", "temperature_c", "power_w",
    "throttle_reasons", "other_processes", "ecc_uncorrected", "xid",
)  # fmt: skip


class GpuReader:
    """NVML queries for one device; every value is None where NVML or that query is missing.

    ``pid`` is the process whose memory is told apart; it and the processes of its session are never "other".
    """

    def __init__(self, index: int | None, pid: int) -> None:
        self._own = {pid}
        self._pid = pid
        self._nv: Any = None
        self._events: Any = None
        if index is None:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._nv = pynvml
        except Exception:  # library, driver or device missing: the columns stay null
            self._nv = None

    def watch_errors(self) -> None:
        """Have the driver report Xid errors from now on; where it cannot, they stay null."""
        nv = self._nv
        if nv is None:
            return
        try:
            events = nv.nvmlEventSetCreate()
            nv.nvmlDeviceRegisterEvents(self._handle, nv.nvmlEventTypeXidCriticalError, events)
        except nv.NVMLError:
            return
        self._events = events

    def _try(self, query: Callable[[], Any]) -> Any:
        if self._nv is None:
            return None
        try:
            return query()
        except self._nv.NVMLError:
            return None

    def memory(self) -> tuple[int | None, int | None, int | None]:
        """(process bytes, device bytes, number of other compute processes)."""
        nv = self._nv
        running = self._try(lambda: nv.nvmlDeviceGetComputeRunningProcesses(self._handle))
        device = self._try(lambda: nv.nvmlDeviceGetMemoryInfo(self._handle, version=nv.nvmlMemory_v2).used)
        if running is None:
            return None, device, None
        self._own |= {p.pid for p in running if _in_session(p.pid, self._pid)}
        mine = [p.usedGpuMemory for p in running if p.pid in self._own]
        known = [used for used in mine if used is not None]
        return sum(known) if known or not mine else None, device, len(running) - len(mine)

    def health(self) -> tuple[int | None, int | None, float | None, int | None]:
        """(SM clock MHz, temperature C, power W, throttle reasons)."""
        nv = self._nv
        power_mw = self._try(lambda: nv.nvmlDeviceGetPowerUsage(self._handle))
        return (
            self._try(lambda: nv.nvmlDeviceGetClockInfo(self._handle, nv.NVML_CLOCK_SM)),
            self._try(lambda: nv.nvmlDeviceGetTemperature(self._handle, nv.NVML_TEMPERATURE_GPU)),
            None if power_mw is None else power_mw / 1000,
            self._try(lambda: nv.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)),
        )

    def errors(self) -> tuple[int | None, list[int] | None]:
        """(uncorrected ECC errors since the driver was loaded, Xid errors since the last call)."""
        nv = self._nv
        kinds = (nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_VOLATILE_ECC) if nv else ()
        return self._try(lambda: nv.nvmlDeviceGetTotalEccErrors(self._handle, *kinds)), self._xids()

    def _xids(self) -> list[int] | None:
        if self._events is None:
            return None
        found = []
        while True:
            try:
                found.append(self._nv.nvmlEventSetWait_v2(self._events, 0).eventData)
            except self._nv.NVMLError as error:
                return found if found or error.value == self._nv.NVML_ERROR_TIMEOUT else None


def _in_session(pid: int, leader: int) -> bool:
    try:
        return os.getsid(pid) == leader
    except OSError:  # gone, or of another namespace
        return False


def sample(pid: int, gpu: GpuReader, *, hz: float, started: float, stop: Callable[[], bool]) -> list[tuple[Any, ...]]:
    """Rows in the order of ``COLUMNS`` until the process ends or ``stop()`` is true."""
    rows: list[tuple[Any, ...]] = []
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return rows
    gpu.watch_errors()
    deadline = time.monotonic()
    while not stop():
        try:
            rss = process.memory_info().rss
            if process.status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        mine, device, others = gpu.memory()
        health = gpu.health() if len(rows) % HEALTH_EVERY == 0 else (None, None, None, None)
        errors = gpu.errors() if len(rows) % ERRORS_EVERY == 0 else (None, None)
        rows.append((time.monotonic() - started, mine, device, rss, *health, others, *errors))
        deadline = max(deadline + 1 / hz, time.monotonic())
        time.sleep(max(0.0, deadline - time.monotonic()))
    if (errors := gpu.errors()) != (None, None):  # an error may be what ended the process
        rows.append((time.monotonic() - started, None, None, None, *gpu.health(), None, *errors))
    return rows


def write(rows: list[tuple[Any, ...]], out: Path) -> None:
    """Write rows as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"t_s": pa.float64(), "power_w": pa.float32(), "xid": pa.list_(pa.int64())}
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    table = pa.table({
        name: pa.array(column, type=kinds.get(name, pa.int64())) for name, column in zip(COLUMNS, columns, strict=True)
    })  # fmt: skip
    draft = out.with_suffix(".draft")
    pq.write_table(table, draft, compression="zstd", compression_level=9)
    draft.rename(out)


def main() -> None:
    """Command line; see the module's docstring."""
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--pid", type=int, required=True)
    cli.add_argument("--gpu", type=int, default=None)
    cli.add_argument("--hz", type=float, required=True)
    cli.add_argument("--started", type=float, required=True)
    cli.add_argument("--out", type=Path, required=True)
    args = cli.parse_args()
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: told_to_stop.append(signum))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    rows = sample(
        args.pid, GpuReader(args.gpu, args.pid), hz=args.hz, started=args.started,
        stop=lambda: bool(told_to_stop) or os.getppid() != parent,
    )  # fmt: skip
    write(rows, args.out)


if __name__ == "__main__":
    main()
