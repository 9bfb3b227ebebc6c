"""Probes through the real executor with the fake backend's memory model; what a record says of its value."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import progress, vram_cap
from bench.backends.fake import RANK_BYTES, TOKEN_BYTES, WEIGHTS_BYTES
from bench.errors import InputError
from bench.limit import probing, result
from bench.limit.family import Family, family
from bench.limit.guess import Guess
from bench.limit.result import LimitResult
from bench.limit.search import search as search_of
from bench.record import Health
from bench.store import Store
from tests import fakes, synthetic
from tests.test_oom import AT_CAP, AT_CARD

GIB = 2**30
BUDGET = 5 * GIB


def fake(model: str = "fake", **fields: Any) -> Family:
    return family("batch_size", backend="fake", model=model, budget_bytes=BUDGET, **{"max_length": 2048, **fields})


def search(cells: Family, root: Path, *, validate: bool = False) -> LimitResult:
    store = Store(root)
    with store.locked():
        return probing.run(
            cells, fakes.setting(root), store, lambda: progress.make("quiet"), name="test", validate=validate
        )


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limit")


@pytest.fixture(scope="module")
def found(where: Path) -> LimitResult:
    return search(fake(), where, validate=True)


def test_the_limit_of_the_memory_model_is_found_and_every_probe_is_a_record(found: LimitResult, where: Path) -> None:
    true = (BUDGET - WEIGHTS_BYTES - 16 * RANK_BYTES) / (2048 * TOKEN_BYTES)
    assert found.value == int(true) == 5 and found.first_failing_value == 6
    records = {item.record.id: item.record for item in Store(where).load()[0]}
    assert found.validation and found.validation.above
    validated = [found.validation.at_limit, found.validation.above]
    assert found.validation.holds and [(p.value, p.status) for p in validated] == [(5, "ok"), (6, "oom")]
    assert {p.record_id for p in [*found.probes, *validated]} == set(records) and len(found.probes) <= 7
    for probe in found.probes:
        record = records[probe.record_id]
        assert record.cell == fake().at(probe.value)
        assert (probe.status, probe.fits) == (record.status, record.status == "ok")
        assert probe.reason == (None if probe.fits else "out of memory in steady")
    assert found.cell.batch_size == 5 and found.cell.vram_budget_bytes == found.budget_bytes == BUDGET


def test_the_same_search_again_makes_no_probe_and_a_killed_one_goes_on(
    found: LimitResult, where: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(where, root)
    again = search(fake(), root, validate=True)
    assert (again.value, again.first_failing_value) == (5, 6)
    assert len(again.probes) == len(found.probes) and all(probe.reused for probe in again.probes)
    assert again.validation and again.validation.at_limit.reused and again.validation.holds

    shutil.rmtree(next(root.rglob(f"*/{found.probes[-1].record_id}")))
    resumed = search(fake(), root)
    assert resumed.value == 5 and [probe.reused for probe in resumed.probes].count(False) == 1


def test_records_of_another_rank_are_not_reused(found: LimitResult, where: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(where, root)
    other = search(fake(r=100), root)
    assert other.value == 2 and not any(probe.reused for probe in other.probes)


def test_a_limit_that_does_not_hold_is_said(found: LimitResult) -> None:
    """A search whose second process at the limit ran out of memory, as one near the edge can."""
    assert found.validation
    failed = found.validation.at_limit.model_copy(update={"status": "oom", "fits": False})
    validation = found.validation.model_copy(update={"at_limit": failed, "holds": False})
    assert "DOES NOT HOLD" in str(result.table(found.model_copy(update={"validation": validation})).caption)


def test_a_crash_stops_the_search_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)batch_size 4: the probe ended as crashed: ValueError: scripted.*log"):
        search(fake("fake-crash"), tmp_path)
    assert [item.record.status for item in Store(tmp_path).load()[0]] == ["crashed"]


def test_nothing_fits_and_everything_fits_are_answers(tmp_path: Path) -> None:
    none = search(replace(fake(max_length=65_536), largest=1), tmp_path)
    assert (none.value, none.first_failing_value) == (None, 1)
    every = search(replace(fake(max_length=512), largest=1), tmp_path)
    assert (every.value, every.first_failing_value) == (1, None)
    assert "not even 1" in str(result.table(none).caption) and "no larger" in str(result.table(every).caption)


def test_a_result_is_loaded_and_published_with_its_records(found: LimitResult, where: Path, tmp_path: Path) -> None:
    root, into = tmp_path / "run", tmp_path / "results"
    shutil.copytree(where, root)
    result.write(found, root)
    for _ in range(2):
        result.publish(root, into)
    assert result.load(into / "limits") == result.load(root) == [found]
    assert len(Store(into).load()[0]) == len(found.probes) + 2
    (into / "limits" / "test" / "limit.json").write_text("{}")
    with pytest.raises(InputError, match="not the result of a limits search"):
        result.load(into)


# What a record says: records made up here, of no GPU


def judged(**fields: Any) -> Any:
    cells = family("max_length", backend="unsloth", model="llama-3.1-8b", budget_bytes=24 * GIB)
    record = synthetic.record("unsloth", **{"peak_gib": 20.0, **fields})
    return probing.judge(record.model_copy(update={"cell": cells.at(4096)}), cells, reused=False)


def test_what_trained_above_the_budget_does_not_fit() -> None:
    inside, over = judged(peak_gib=21.9), judged(peak_gib=22.1)  # NVML is 2 GiB above the tensors in these records
    assert inside.fits and inside.reason is None
    assert not over.fits and over.status == "ok" and over.reason == "trained, but NVML's process peak is 24.10 GiB"


def test_a_contaminated_probe_trained() -> None:
    assert judged(status="contaminated", message="throttled").fits


@pytest.mark.parametrize("status", ["crashed", "timeout", "diverged", "unsupported"])
def test_an_end_that_says_nothing_of_memory_is_an_error(status: str) -> None:
    with pytest.raises(InputError, match=rf"max_length 4096: the probe ended as {status}: because"):
        judged(status=status, message="because")


def test_out_of_memory_that_is_not_the_budgets_is_an_error() -> None:
    with pytest.raises(InputError, match="the host's memory ran out"):
        judged(status="oom", message="MemoryError: ", failed_phase="load")
    with pytest.raises(InputError, match="beside 2 other process"):
        judged(status="oom", message="CUDA out of memory", health=Health(reasons=[], other_processes_during=2))
    assert not judged(status="oom", message="CUDA out of memory", failed_phase="warmup").fits


def test_out_of_memory_at_the_cap_counts_beside_others() -> None:
    health = Health(reasons=[], other_processes_before=1, other_processes_during=2)
    probe = judged(status="oom", message=f"OutOfMemoryError: {AT_CAP}", failed_phase="steady", health=health)
    assert not probe.fits and probe.reason == "out of memory in steady"
    with pytest.raises(InputError, match="beside 2 other process.*not for certain by the cap"):
        judged(status="oom", message=f"OutOfMemoryError: {AT_CARD}", failed_phase="steady", health=health)


def test_a_run_with_a_gpu_fault_says_nothing() -> None:
    with pytest.raises(InputError, match="ended as contaminated"):
        judged(status="contaminated", message="Xid", health=Health(reasons=["Xid"], xid_errors=[79]))


def test_a_contaminated_probe_is_reused(found: LimitResult, where: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(where, root)
    for path in root.rglob("record.json"):
        path.write_text(path.read_text().replace('"status": "ok"', '"status": "contaminated"'))
    again = search(fake(), root)
    assert again.value == found.value and all(probe.reused for probe in again.probes)


def test_without_nvml_on_a_gpu_the_budget_cannot_be_checked() -> None:
    with pytest.raises(InputError, match="budget cannot be checked"):
        judged(phases=[])


def test_a_measured_peak_sets_the_guess_right() -> None:
    model = {"model": "llama-3.1-8b", "budget_bytes": 24 * GIB, "precision": "nf4"}
    cells = family("max_length", backend="hf-peft", **model)  # type: ignore[arg-type]
    prober = probing.Prober(cells, fakes.setting(Path()), Store(Path("nowhere")), lambda: progress.make("quiet"), print)
    first = prober.guess()
    probe = judged(peak_gib=20.0)
    prober.probes.append(probe.model_copy(update={"value": 8192, "outside_allocator_bytes": GIB}))
    after = prober.guess()
    assert after < first, "20 GiB at 8,192 tokens is far more than the model says"
    guess, free_bytes = Guess.of(cells.base), 24 * GIB - vram_cap.RESERVE_BYTES
    assert guess
    value, scale = round(after / probing.AIM), guess.scale(cells.at(8192), 21 * GIB)
    assert guess.need_bytes(cells.at(value), scale) <= free_bytes < guess.need_bytes(cells.at(value + 256), scale)
    assert guess.need_bytes(cells.at(8192), scale) == pytest.approx(21 * GIB)


def test_a_search_of_a_known_architecture_needs_few_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the truth is what the memory model says, 3 % of the growth more or less."""
    cells = family("max_length", backend="unsloth", model="llama-3.1-8b", budget_bytes=16 * GIB, r=32)
    model = Guess.of(cells.base)
    assert model
    for wrong in (0.97, 1.03):
        prober = probing.Prober(cells, fakes.setting(tmp_path), Store(tmp_path), lambda: progress.make("quiet"), print)

        def trained(value: int, prober: probing.Prober = prober, wrong: float = wrong) -> bool:
            need = round(model.need_bytes(cells.at(value), wrong))
            fits = need <= 16 * GIB - vram_cap.RESERVE_BYTES
            peaks = {"torch_allocated_peak_bytes": need - GIB, "outside_allocator_bytes": GIB, "fits": fits}
            prober.probes.append(judged().model_copy(update={"value": value} | peaks))
            return fits

        search_of(trained, cells.grid, prober.guess, {})
        assert len(prober.probes) <= 3
