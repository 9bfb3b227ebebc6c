"""The sampler's NVML readings against nvidia-smi's, taken beside it of the same process and device."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from bench.executor import SAMPLER_HZ
from bench.health import judge
from tests.gpu.harness import ROOT, needs_gpu

pytestmark = [pytest.mark.gpu, needs_gpu]

HELD_BYTES = 4 * 2**30
MIB = 2**20
CHILD = f"""
import time
import torch
held = torch.ones({HELD_BYTES}, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
time.sleep(4)
"""


@contextmanager
def started(*command: str, **options: object) -> Iterator["subprocess.Popen[str]"]:
    """A child that does not outlive the block."""
    process = subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=20)


def test_peaks_agree_with_nvidia_smi_and_sampling_keeps_its_rate(tmp_path: Path) -> None:
    out = tmp_path / "timeline.parquet"
    first_gpu = os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
    smi = ["nvidia-smi", "-i", "0", "--format=csv,noheader,nounits", "-lms", "100"]
    with (
        (tmp_path / "apps.csv").open("w") as apps_file,
        (tmp_path / "device.csv").open("w") as device_file,
        started(sys.executable, "-c", CHILD, env=first_gpu) as child,
        started(
            sys.executable, "-m", "bench.meters.sampler", "--pid", str(child.pid), "--gpu", "0",
            "--hz", str(SAMPLER_HZ), "--started", repr(time.monotonic()), "--out", str(out), cwd=ROOT,
        ) as sampler,
        started(*smi, "--query-compute-apps=pid,used_memory", stdout=apps_file),
        started(*smi, "--query-gpu=memory.used", stdout=device_file),
    ):  # fmt: skip
        assert sampler.wait(timeout=120) == 0  # it ends when the child does
        assert child.wait(timeout=10) == 0

    shown = [line.split(",") for line in (tmp_path / "apps.csv").read_text().splitlines() if line.count(",") == 1]
    process_mib = [int(mib) for pid, mib in shown if pid.strip() == str(child.pid)]
    device_mib = [int(line) for line in (tmp_path / "device.csv").read_text().splitlines() if line.strip().isdigit()]
    assert len(process_mib) > 20, f"nvidia-smi hardly saw process {child.pid}: {shown[-10:]}"
    assert len(device_mib) > 20

    rows = pq.read_table(out).to_pydict()
    process_peak = max(value for value in rows["nvml_process_bytes"] if value is not None)
    device_peak = max(value for value in rows["nvml_device_bytes"] if value is not None)
    assert process_peak >= HELD_BYTES
    assert process_peak == pytest.approx(max(process_mib) * MIB, rel=0.01)
    assert device_peak >= process_peak
    assert device_peak == pytest.approx(max(device_mib) * MIB, rel=0.01)

    rate = (len(rows["t_s"]) - 1) / (rows["t_s"][-1] - rows["t_s"][0])
    assert rate >= 100, f"{rate:.0f} rows a second"
    assert [clock for clock in rows["sm_clock_mhz"] if clock], "no SM clock was read"
    ecc = [count for count in rows["ecc_uncorrected"] if count is not None]
    assert not ecc or len(ecc) > 3 and min(ecc) >= 0, "read once a second and at the end, or nowhere"
    xids = [codes for codes in rows["xid"] if codes is not None]
    assert not xids or len(xids) > 3 and not any(xids), "watched from the start, or nowhere"


def test_a_process_that_comes_later_is_seen_and_the_sampler_is_a_light_load(tmp_path: Path) -> None:
    out = tmp_path / "timeline.parquet"
    visible = os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
    started_at = time.monotonic()
    idle = [sys.executable, "-c", "import time; time.sleep(120)"]
    with (
        started(*idle, env=visible) as watched,
        started(
            sys.executable, "-m", "bench.meters.sampler", "--pid", str(watched.pid), "--gpu", "0",
            "--hz", str(SAMPLER_HZ), "--started", repr(started_at), "--out", str(out), cwd=ROOT,
        ) as sampler,
    ):  # fmt: skip
        time.sleep(2)  # imported and sampling
        came_s = time.monotonic() - started_at
        with started(sys.executable, "-c", CHILD, env=visible) as other:
            before, since = psutil.Process(sampler.pid).cpu_times(), time.monotonic()
            assert other.wait(timeout=100) == 0
            after, wall_s = psutil.Process(sampler.pid).cpu_times(), time.monotonic() - since
        watched.kill()
        assert sampler.wait(timeout=30) == 0
    rows = pq.read_table(out).to_pydict()
    seen = [(t, n) for t, n in zip(rows["t_s"], rows["other_processes"], strict=True) if n is not None]
    assert {n for t, n in seen if t < came_s} == {0}, "the GPU was not free to begin with"
    assert max(n for _, n in seen) == 1
    found = judge(rows, None, other_processes_before=0)
    assert found.reasons == ["up to 1 other compute process(es) on the GPU while the cell ran"]
    share = (after.user + after.system - before.user - before.system) / wall_s
    assert share < 0.5, f"{share:.1%} of a core"
