"""Many records: reading, comparing and exporting grow as the records do, and export's memory does not grow.

No clock is asserted: times are ratios within one run, in seconds of this process's CPU. ``make perf`` runs the large
ones too (marker ``scale``), up to 100,000 records, and prints their times.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import export, store
from bench.compare import compare, compare_sets
from tests.perf.runs import write

FACTOR = 4
WORST_RATIO = 8.0
"""Of the time for FACTOR times the records. Linear is 4, n log n 5 at these sizes, quadratic 16; 8 is midway between
linear and quadratic in the logarithm, and far from both by more than a shared machine's noise (5.05 was seen)."""
SMALL, LARGE = 200, 25_000
GIB = 2**30

Folder = Callable[[int], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run folder with so many records, written once a session."""
    made: dict[int, Path] = {}

    def of(count: int) -> Path:
        if count not in made:
            made[count] = write(tmp_path_factory.mktemp("scale") / str(count), count)
        return made[count]

    return of


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def ratio(work: Callable[[Any], object], small: Any, large: Any, rounds: int) -> float:
    work(small)  # imports, and what is made once
    return cpu_s(lambda: work(large), rounds) / cpu_s(lambda: work(small), rounds)


def loaded(folder: Path) -> list[store.Loaded]:
    good, bad = store.load(folder)
    assert not bad
    return good


def halves(records: list[store.Loaded]) -> None:
    """Two sets of the same cells, as two releases make them."""
    compare_sets([r for r in records if r.record.repeat < 2], [r for r in records if r.record.repeat >= 2])


def exported(folder: Path) -> None:
    file = folder.parent / "records.parquet"
    records = (one for one in store.read_all(folder) if isinstance(one, store.Loaded))
    assert export.write(records, file) == int(folder.name)


SIZES = [
    pytest.param(SMALL, 4, id=str(SMALL * FACTOR)),
    pytest.param(LARGE, 1, id=str(LARGE * FACTOR), marks=[pytest.mark.scale, pytest.mark.timeout(3600)]),
]


@pytest.mark.parametrize(("count", "rounds"), SIZES)
def test_reading_and_exporting_are_linear(folder: Folder, count: int, rounds: int) -> None:
    small, large = folder(count), folder(FACTOR * count)
    assert ratio(exported, small, large, rounds) <= WORST_RATIO


@pytest.mark.parametrize("work", [compare, halves])
@pytest.mark.parametrize(("count", "rounds"), SIZES)
def test_comparing_is_linear(folder: Folder, count: int, rounds: int, work: Callable[[Any], object]) -> None:
    small, large = loaded(folder(count)), loaded(folder(FACTOR * count))
    assert ratio(work, small, large, rounds) <= WORST_RATIO


CHILD = """
import json, re, sys, tempfile, time
from pathlib import Path
from bench import store
from bench.compare import compare
from bench.finding import Findings, FindingsFile

folder, spent, start = Path(sys.argv[1]), {}, time.process_time()
def took(name):
    global start
    spent[name], start = time.process_time() - start, time.process_time()

if "export" in sys.argv:
    from bench import export
    export.write((one for one in store.read_all(folder) if isinstance(one, store.Loaded)), folder.parent / "x.csv")
    took("export")
if "compare" in sys.argv or "render" in sys.argv:
    good, bad = store.load(folder)
    took("load")
    found = compare(good)
    took("compare")
if "render" in sys.argv:
    from bench import report
    with tempfile.TemporaryDirectory() as out:
        report.render(FindingsFile(title="x", own=found, published=Findings()), good, [], Path(out))
        spent["page bytes"] = (Path(out) / "index.html").stat().st_size
    took("render")
peak_kib = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]  # ru_maxrss has the parent's too
print(json.dumps({**spent, "peak bytes": int(peak_kib) * 1024}))
"""


def in_child(folder: Path, *what: str) -> dict[str, float]:
    """CPU seconds of each part, and the peak resident memory of a process that does nothing else."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "-c", CHILD, str(folder), *what]
    ran = subprocess.run(line, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def told(capsys: pytest.CaptureFixture[str], count: int, found: dict[str, float]) -> None:
    parts = [f"{name} {v / 2**20:,.0f} MiB" if "bytes" in name else f"{name} {v:.1f} s" for name, v in found.items()]
    with capsys.disabled():
        print(f"\n{count:,} records, CPU time: {', '.join(parts)}")


@pytest.mark.scale
@pytest.mark.timeout(3600)
def test_10000_records_load_compare_and_render_in_two_gibibytes(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = in_child(folder(10_000), "compare", "render")
    told(capsys, 10_000, found)
    assert found["peak bytes"] < 2 * GIB


@pytest.mark.scale
@pytest.mark.timeout(3600)
def test_100000_records_are_exported_in_the_memory_of_25000(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = []
    for count in (LARGE, FACTOR * LARGE):
        found = in_child(folder(count), "export")
        told(capsys, count, found)
        peaks.append(found["peak bytes"])
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.scale
@pytest.mark.timeout(3600)
def test_100000_records_are_compared_in_memory_that_grows_no_faster(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = []
    for count in (LARGE, FACTOR * LARGE):
        found = in_child(folder(count), "compare")
        told(capsys, count, found)
        peaks.append(found["peak bytes"])
    assert peaks[1] <= FACTOR * peaks[0]


def test_reading_benchmark(folder: Folder, benchmark: Callable[..., list[store.Loaded]]) -> None:
    assert len(benchmark(loaded, folder(SMALL))) == SMALL


def test_comparing_benchmark(folder: Folder, benchmark: Callable[..., Any]) -> None:
    assert benchmark(compare, loaded(folder(SMALL))).pairs
