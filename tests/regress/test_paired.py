"""The levels that run cells, on the fake backend: real workers and records, scripted steps and peaks. Not a GPU."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.derived import METERS
from bench.errors import InputError
from bench.regress import outputs, policy
from bench.regress.index import Index
from bench.regress.levels import paired
from bench.regress.overlay import Overlay, build
from bench.regress.sequential import LOOKS, Look
from bench.regress.verdict import Comparison, MetricVerdict, Side
from bench.stats import ALPHA
from bench.store import Loaded
from tests.regress.wheels import PACKAGE, wheel
from tests.synthetic import profiled, record

SUITE = """
name: fake
timeout_s: 60
recipe: {model: fake, backend: fake, source: random, max_steps: 4, untimed_steps: 2}
"""
SEED = """
import sys
if "bench.worker" in sys.orig_argv:
    import pathlib
    import bench.backends.fake, bench.events
    runs = pathlib.Path(__file__).with_name("runs")
    runs.write_text(runs.read_text() + "+" if runs.exists() else "+")
    noise = (0.002, -0.001, 0.001, -0.002)[(len(runs.read_text()) * {stride}) % 4]
    bench.backends.fake.STEP_S = 0.01 * {slower} * (1 + noise)
    peak = round({more} * 20 * 2**30) // 2**21 * 2**21
    bench.events.peaks_bytes = lambda: {{"torch_allocated_peak_bytes": peak, "torch_reserved_peak_bytes": peak}}
"""
EMPTY = Comparison(
    created=datetime(2026, 11, 1, tzinfo=UTC), package=PACKAGE, baseline=Side(version="1.0", lock=[]),
    candidate=Side(version="1.1", lock=[]), machine="Test CPU", differences=[], could_not=[], metrics=[],
)  # fmt: skip


def side(folder: Path, version: str, slower: float = 1.0, more: float = 1.0, model: str = "") -> Overlay:
    """A release under which the fake backend's steps and peaks are scaled; a process differs from the next by up to
    0.4 %, the same in every run of the test."""
    made = build(str(wheel(folder, version)), PACKAGE, Index(folder))
    text = SEED.format(slower=slower, more=more, stride=1 if version == "1.0" else 3)
    if model:
        text += "    real = bench.backends.fake._misbehave\n"
        text += f"    bench.backends.fake._misbehave = lambda script: real({model!r})\n"
    (made.folder / "sitecustomize.py").write_text(text)
    return made


def compared(
    folder: Path, budget_minutes: float = 10.0, **candidate: float | str
) -> tuple[dict[str, MetricVerdict], int]:
    file = folder / "suite.yaml"
    file.write_text(SUITE)
    sides = side(folder, "1.0"), side(folder, "1.1", **candidate)  # type: ignore[arg-type]
    found = paired.added(EMPTY, *sides, str(file), budget_minutes, policy.load(), lambda text: None)
    return {metric.name: metric for metric in found.metrics}, found.exit_code


@pytest.mark.slow
def test_five_percent_slower_and_five_percent_more_memory_are_found_at_the_first_look(tmp_path: Path) -> None:
    found, code = compared(tmp_path, slower=1.05, more=1.05)
    speed, memory = found["speed/tokens_per_s"], found["memory/torch_reserved_peak_bytes"]
    assert code == 1 and speed.verdict == memory.verdict == "regressed" and speed.why == "4 pairs"
    assert speed.low is not None and speed.high is not None and -0.07 < speed.low < -0.048 < speed.high < -0.02
    assert memory.effect == pytest.approx(0.05, abs=1e-3) and memory.low == pytest.approx(memory.high)


@pytest.mark.slow
def test_a_release_against_itself_is_unchanged(tmp_path: Path) -> None:
    found, code = compared(tmp_path)
    assert code == 0 and {metric.verdict for metric in found.values()} == {"unchanged"}
    assert set(found) > {"speed/ran", "speed/tokens_per_s", "memory/torch_reserved_peak_bytes"}


@pytest.mark.slow
def test_a_candidate_that_runs_out_of_memory_regressed_and_no_more_pairs_are_run(tmp_path: Path) -> None:
    found, code = compared(tmp_path, model="fake-oom")
    assert code == 1 and found["speed/ran"].verdict == "regressed" and "oom" in found["speed/ran"].candidate


@pytest.mark.slow
def test_a_spent_budget_ends_with_what_is_known(tmp_path: Path) -> None:
    found, code = compared(tmp_path, budget_minutes=0.0001, slower=1.05)
    speed = found["speed/tokens_per_s"]
    assert code == 0 and (speed.verdict, speed.low, speed.why) == ("inconclusive", None, "one pair has no interval")
    assert speed.effect == pytest.approx(1 / 1.05 - 1, abs=0.02)


def test_a_metric_that_only_some_runs_tell_is_listed_and_open() -> None:
    """GPU time of a candidate whose profiled pass was not seen to compute again what training does."""
    told = Loaded(record("unsloth", fingerprint=profiled(0.3)), Path("nowhere"))
    untold = Loaded(record("unsloth", fingerprint=profiled(0.3), serial=1, audit=[]), Path("nowhere"))
    found = paired._metrics(paired.Runs(pairs=[(told, untold)] * 4), {}, policy.load())
    (work,) = (metric for metric in found if metric.name == "speed/gpu_work_s")
    assert work.verdict == "inconclusive"
    assert (work.baseline, work.candidate) == ("read in 4 of 4 runs", "read in 0 of 4 runs")


def test_gpu_time_decides_where_the_wall_clock_is_open() -> None:
    """Steps that vary by 13 % from process to process, as measured for a small model; GPU time that hardly does."""

    def run(backend: str, n: int, wall_s: float, work_s: float) -> Loaded:
        made = record(backend, step_s=(wall_s,) * 4, fingerprint=profiled(work_s), serial=n)
        return Loaded(made, Path("nowhere"))

    walls, works = ((1.0, 1.2), (1.1, 0.9), (0.9, 1.0), (1.2, 1.1)), (0.3001, 0.3000, 0.3002, 0.2999)
    runs = paired.Runs(pairs=[
        (run("unsloth", n, one, works[n]), run("unsloth", n + 4, other, 1.05 * works[-n]))
        for n, (one, other) in enumerate(walls)
    ])  # fmt: skip
    found = {metric.name: metric for metric in paired._metrics(runs, {}, policy.load())}
    work = found["speed/gpu_work_s"]
    assert found["speed/tokens_per_s"].verdict == "inconclusive"
    assert work.verdict == "regressed" and work.gate and work.effect == pytest.approx(0.05, abs=1e-3)
    without = paired.Runs(pairs=[(Loaded(record(), Path("nowhere")), Loaded(record(serial=1), Path("nowhere")))] * 4)
    assert "speed/gpu_work_s" not in {metric.name for metric in paired._metrics(without, {}, policy.load())}


def test_an_open_rate_beside_unchanged_gpu_time_passes_and_says_what_it_could_show() -> None:
    walls, works = (1.0, 1.2, 0.9, 1.1), (0.3001, 0.3000, 0.3002, 0.2999)

    def run(n: int) -> Loaded:
        seen = profiled(works[n % 4] * (1 + n / 1e5))
        return Loaded(record("unsloth", step_s=(walls[n % 4],) * 4, fingerprint=seen, serial=n), Path("nowhere"))

    runs = paired.Runs(pairs=[(run(n), run(5 + n)) for n in range(4)])
    looks: dict[str, Look] = {}
    assert not paired._decided(runs, looks, policy.load())
    found = EMPTY.model_copy(update={"metrics": paired._metrics(runs, looks, policy.load())})
    verdicts = {metric.name: metric.verdict for metric in found.metrics}
    assert verdicts["speed/tokens_per_s"] == "inconclusive" and verdicts["speed/gpu_work_s"] == "unchanged"
    told = outputs.markdown(found)
    rate = next(metric for metric in found.metrics if metric.name == "speed/tokens_per_s")
    assert (
        found.exit_code == 0 and "1 inconclusive" in told and rate.mde and f"could show {100 * rate.mde:.1f} %" in told
    )


def test_alpha_is_divided_by_weight_among_the_metrics_that_there_are() -> None:
    pairs = [
        (Loaded(record(serial=n), Path("nowhere")), Loaded(record(serial=n + 4), Path("nowhere"))) for n in range(4)
    ]
    found = paired._metrics(paired.Runs(pairs=pairs), {}, policy.load())
    levels = {metric.name: 1 - metric.level for metric in found if metric.level is not None}
    assert set(levels) == {"speed/tokens_per_s", *(f"memory/{meter}_peak_bytes" for meter in METERS)}
    assert sum(levels.values()) == pytest.approx(ALPHA * LOOKS[4])
    assert levels["speed/tokens_per_s"] == pytest.approx(8 * levels["memory/nvml_process_peak_bytes"])


def test_a_suite_of_several_cells_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE + "axes: {r: [4, 8]}\n")
    here = Overlay(package=PACKAGE, version="1", folder=tmp_path)
    with pytest.raises(InputError, match="has 2 cells"):
        paired.added(EMPTY, here, here, str(file), 1.0, policy.load(), lambda text: None)
