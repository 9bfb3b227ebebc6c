"""Derived statistics and findings against numbers known beforehand, from made-up records of a 'Test GPU'."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare, compare_sets, derive, known_config
from bench.errors import InputError
from bench.finding import AccuracyFinding, Finding
from bench.groups import pairs
from bench.record import DataFacts, FileRef, Fingerprint, Health, Phase, Record, Steps
from bench.report.rows import make_rows
from bench.store import Loaded, load
from tests.synthetic import GIB, environment, evaluation, profiled, record, unfinished


def loaded(records: Sequence[Record]) -> list[Loaded]:
    return [Loaded(one, Path("no-such-folder")) for one in records]


def findings(records: Sequence[Record], **options: Any) -> list[Finding]:
    return compare(loaded(records), **options).pairs


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1
    return found[0]


# ---- one record -----------------------------------------------------------------------------------------------------


def test_throughput_is_sum_of_tokens_over_sum_of_timed_seconds() -> None:
    derived = derive(record(step_s=(1.0, 1.0, 1.0, 5.0)))
    assert derived.timed_steps == 4
    assert derived.tokens_per_s == 3200 / 8
    assert derived.padded_tokens_per_s == 4000 / 8
    assert derived.samples_per_s == 32 / 8
    assert derived.step_s_median == 1.0
    assert derived.tokens_per_s_by_median_step == 800
    assert derived.step_s_p10 == 1.0
    assert derived.step_s_p90 == pytest.approx(1 + 0.7 * 4)  # linear between the third and fourth of four


def test_one_timed_step_is_its_own_percentiles() -> None:
    derived = derive(record(step_s=(2.0,)))
    assert (derived.step_s_median, derived.step_s_p10, derived.step_s_p90) == (2.0, 2.0, 2.0)


def test_peaks_are_of_training_under_each_meter() -> None:
    derived = derive(record(peak_gib=20))
    assert derived.training_peaks == {
        "torch_allocated": 20 * GIB, "torch_reserved": 21 * GIB, "nvml_process": 22 * GIB, "nvml_device": 23 * GIB,
    }  # fmt: skip
    assert derived.load_peaks["torch_allocated"] == 6 * GIB
    assert derived.load_peaks["nvml_process"] is None


def test_warmup_peak_above_steady_counts_and_an_unmetered_steady_phase_is_unknown() -> None:
    warmup = Phase(name="warmup", start_s=0, wall_s=1, torch_allocated_peak_bytes=9, nvml_process_peak_bytes=9)
    steady = Phase(name="steady", start_s=1, wall_s=1, torch_allocated_peak_bytes=4)
    peaks = derive(record(phases=[warmup, steady])).training_peaks
    assert peaks["torch_allocated"] == 9
    assert peaks["nvml_process"] is None


def test_startup_is_everything_before_the_steady_steps() -> None:
    assert derive(record(import_s=5)).startup_s == 5 + 7 + 1 + 12
    assert derive(record(phases=[Phase(name="load", start_s=0, wall_s=1)])).startup_s is None


def test_trainer_check_agrees_over_the_same_steps_and_shows_a_slower_clock() -> None:
    check = derive(record()).trainer
    assert check is not None
    assert (check.counts, check.tokens_per_s, check.own_tokens_per_s) == ("padded", 1000, 1000)
    assert check.relative_difference == 0

    steps = record().steps
    late = [*steps.trainer_log_s[:-1], steps.trainer_log_s[-1] + 1.0]  # five seconds for four one-second steps
    slower = derive(record(steps=steps.model_copy(update={"trainer_log_s": late}))).trainer
    assert slower is not None and slower.relative_difference == pytest.approx(4 / 5 - 1)

    off = [n + (7 if i == 5 else 0) for i, n in enumerate(steps.trainer_tokens_seen) if n is not None]
    assert derive(record(steps=steps.model_copy(update={"trainer_tokens_seen": off}))).trainer.counts == "neither"  # type: ignore[union-attr]

    unknown = steps.model_copy(update={"trainer_tokens_seen": [None] * 6})
    assert derive(record(steps=unknown)).trainer is None


def test_trainer_check_without_untimed_steps_leaves_out_the_first() -> None:
    walls = [1.4, 1.0, 1.0, 1.0, 1.0, 1.0]
    logged = [25.0 + sum(walls[: i + 1]) for i in range(6)]
    steps = record().steps.model_copy(update={"wall_s": walls, "trainer_log_s": logged})
    check = derive(record(cell={"untimed_steps": 0}, steps=steps)).trainer
    assert check is not None
    assert check.own_tokens_per_s == pytest.approx(5000 / 5)
    assert check.relative_difference == pytest.approx(0)


def test_steps_before_the_times_settled_are_not_timed() -> None:
    derived = derive(record(cell={"untimed_steps": 0}))  # 10 s, 2 s, then four of 1 s
    assert (derived.timed_steps, derived.tokens_per_s, derived.settled) == (4, 800, None)


def test_mfu_needs_a_known_gpu_and_architecture() -> None:
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
    }  # fmt: skip
    h100 = environment("NVIDIA H100 80GB HBM3")
    full = {"method": "full"}  # rows of 1000 / 8 = 125 positions
    flops_per_step = 1000 * (6 * 1408 + 12 * 8 * 2 * 125)
    assert derive(record(env=h100, cell=full), lambda r: config).mfu == pytest.approx(flops_per_step / 1.0 / 989.4e12)
    assert derive(record(env=h100), lambda r: {**config, "model_type": "mamba"}).mfu is None
    assert derive(record(env=h100), lambda r: None).mfu is None
    assert derive(record(env=h100, cell={"precision": "fp32"}), lambda r: config).mfu is None
    assert derive(record(), lambda r: config).mfu is None


def test_configurations_come_from_the_catalogue_and_never_from_a_folder_that_may_have_changed() -> None:
    random = known_config(record(cell={"source": "random"}))
    assert random is not None and random["hidden_size"] == 4096
    assert known_config(record(cell={"source": "random", "model": "no-such-model"})) is None
    assert known_config(record(cell={"source": "local", "model": "/no/such/folder"})) is None


def test_a_failed_run_has_no_throughput_but_keeps_its_peaks() -> None:
    derived = derive(record(status="oom", failed_phase="steady"))
    assert derived.tokens_per_s is None and derived.mfu is None and derived.trainer is None
    assert derived.training_peaks["nvml_process"] == 22 * GIB


# ---- pairs ----------------------------------------------------------------------------------------------------------


def test_speedup_memory_saving_and_break_even() -> None:
    base = record("hf-peft", step_s=(2.0,) * 4, peak_gib=20, import_s=5)
    cand = record("unsloth", step_s=(1.0,) * 4, peak_gib=10, import_s=40)
    finding = only(findings([cand, base]))
    assert finding.verdict == "measured" and finding.why == ""
    assert finding.baseline is not None and finding.candidate is not None
    assert (finding.baseline.tokens_per_s, finding.candidate.tokens_per_s) == (400, 800)
    assert finding.speedup == 2.0
    assert finding.memory["torch_allocated"].saving == 0.5
    assert finding.memory["torch_reserved"].saving == pytest.approx(1 - 11 / 21)
    assert finding.memory["nvml_process"].saving == pytest.approx(1 - 12 / 22)
    assert finding.memory["nvml_device"].saving == pytest.approx(1 - 13 / 23)
    assert finding.break_even_steps == 35  # 35 s dearer start, 1 s saved a step
    assert finding.speedup_interval is None and finding.speed == "inconclusive"
    assert finding.rates is not None and "1 of at least 3" in (finding.rates.why or "")


def test_no_break_even_when_the_candidate_is_slower_or_starts_sooner() -> None:
    base = record("hf-peft", step_s=(1.0,) * 4, import_s=5)
    assert only(findings([base, record("unsloth", step_s=(2.0,) * 4, import_s=40)])).break_even_steps is None
    assert only(findings([base, record("unsloth", step_s=(0.5,) * 4, import_s=1)])).break_even_steps is None


def test_more_memory_is_a_negative_saving() -> None:
    finding = only(findings([record("hf-peft", peak_gib=10), record("unsloth", peak_gib=15)]))
    assert finding.memory["torch_allocated"].saving == -0.5


def test_repeats_are_one_side_with_a_median_an_interval_and_a_verdict() -> None:
    base = [record("hf-peft", step_s=(s,) * 4, serial=i) for i, s in enumerate((2.0, 2.1, 1.9))]
    cand = [record("unsloth", step_s=(s,) * 4, peak_gib=10 + i, serial=i) for i, s in enumerate((1.0, 1.1, 0.9))]
    finding = only(findings(base + cand))
    assert finding.baseline is not None and finding.baseline.processes == 3
    assert finding.speedup == pytest.approx(2.0)
    interval = finding.speedup_interval
    assert interval is not None and interval.level == 0.99 and 1 < interval.low < 2.0 < interval.high
    assert finding.speed == "faster" and finding.adjusted_p_value == finding.rates.p_value  # type: ignore[union-attr]
    saving = finding.memory["torch_allocated"]
    assert saving.saving == pytest.approx(1 - 11 / 20) and saving.baseline is not None and saving.candidate is not None
    assert (saving.baseline.deterministic, saving.candidate.deterministic) == (True, False)
    assert (saving.least, saving.most) == (pytest.approx(1 - 12 / 20), pytest.approx(1 - 10 / 20))


def test_many_findings_share_the_chance_of_a_false_one() -> None:
    def side(backend: str, r: int, times: tuple[float, ...]) -> list[Record]:
        return [record(backend, step_s=(s,) * 4, serial=i, cell={"r": r}) for i, s in enumerate(times)]

    clear = side("hf-peft", 8, (2.0, 2.1, 1.9)), side("unsloth", 8, (1.0, 1.1, 0.9))
    faint = side("hf-peft", 16, (1.0, 1.01, 0.99)), side("unsloth", 16, (0.97, 0.96, 0.955))
    alone = only(findings([*faint[0], *faint[1]]))
    found = findings([*clear[0], *clear[1], *faint[0], *faint[1]])
    assert alone.speed == "faster" and 0.005 < (alone.adjusted_p_value or 0) < 0.01
    assert [f.speed for f in found] == ["faster", "faster"]
    more = [
        r for n in (32, 64, 128) for r in (*side("hf-peft", n, (1.0, 1.1, 0.9)), *side("unsloth", n, (1.05, 1.1, 0.9)))
    ]
    crowded = findings([*clear[0], *clear[1], *faint[0], *faint[1], *more])
    assert [f.speed for f in crowded if f.cell.r == 16] == ["inconclusive"]


def test_a_side_is_its_own_control_in_abba_order() -> None:
    drift = [record("hf-peft", step_s=(1.0 + i / 100,) * 4, serial=i) for i in range(8)]
    control = only(findings(drift)).baseline.control  # type: ignore[union-attr]
    assert control is not None and control.ratio.numerators == control.ratio.denominators == 4
    assert control.verdict == "inconclusive" and control.ratio.value == pytest.approx(1.0, abs=0.001)
    apart = [record("hf-peft", step_s=((1.0 if i % 4 in (0, 3) else 1.2) + i / 1000,) * 4, serial=i) for i in range(8)]
    assert only(findings(apart)).baseline.control.verdict == "faster"  # type: ignore[union-attr]
    assert only(findings(drift[:5])).baseline.control is None  # type: ignore[union-attr]


def test_contaminated_runs_count_only_when_asked_for_and_it_is_said() -> None:
    base = [record("hf-peft", serial=0), record("hf-peft", status="contaminated", message="another", serial=1)]
    finding = only(findings([*base, record("unsloth")]))
    assert finding.baseline is not None
    assert (finding.baseline.processes, finding.baseline.contaminated) == (1, 0)
    assert [f.status for f in finding.baseline.failures] == ["contaminated"]
    asked = only(findings([*base, record("unsloth")], include_contaminated=True))
    assert asked.baseline is not None
    assert (asked.baseline.processes, asked.baseline.contaminated) == (2, 1)


def test_what_a_contaminated_run_computed_counts_for_parity_and_accuracy_and_its_times_do_not() -> None:
    told_of: dict[str, Any] = {"status": "contaminated", "message": "told", "eval_after": evaluation(0.4)}
    busy = told_of | {"health": Health(reasons=["2 other compute process(es)"])}
    broken = told_of | {"health": Health(reasons=["Xid"], xid_errors=[79])}
    told = compare(loaded([record("hf-peft", **busy), record("unsloth", **busy)]))
    finding = only(told.pairs)
    assert finding.verdict == "failed" and finding.speedup is None
    assert finding.parity is not None and {c.name: c.status for c in finding.parity.checks}["token stream"] == "ok"
    assert finding.candidate is not None and finding.candidate.accuracy_after is not None
    assert [(a.contaminated, len(a.record_ids)) for a in told.accuracy] == [(2, 2)]
    told = compare(loaded([record("hf-peft", **busy), record("unsloth", **broken)]))
    assert only(told.pairs).parity is None and told.accuracy == []


def test_the_processs_own_peaks_of_contaminated_runs_count_and_the_devices_do_not() -> None:
    busy: dict[str, Any] = {"status": "contaminated", "health": Health(reasons=["2 other compute process(es)"])}
    finding = only(findings([record("hf-peft", **busy), record("unsloth", peak_gib=9, **busy)]))
    assert finding.verdict == "failed" and "hf-peft: contaminated" in finding.why and finding.speedup is None
    savings = {meter: memory.saving for meter, memory in finding.memory.items()}
    assert savings["torch_allocated"] == pytest.approx(1 - 9 / 20)
    assert savings["nvml_process"] == pytest.approx(1 - 11 / 22)
    assert savings["nvml_device"] is None and finding.memory["nvml_device"].candidate is None
    assert finding.candidate is not None and (finding.candidate.processes, finding.candidate.contaminated_peaks) == (
        0,
        1,
    )
    row = make_rows([finding])[0]
    assert "unsloth: the process's own peaks take in 1 contaminated run;" in row.why

    both = [record("unsloth", peak_gib=9), record("unsloth", peak_gib=11, serial=1, **busy)]
    mixed = only(findings([record("hf-peft"), *both]))
    assert mixed.verdict == "measured" and mixed.candidate is not None and mixed.candidate.processes == 1
    process, device = mixed.candidate.training_peaks["nvml_process"], mixed.candidate.training_peaks["nvml_device"]
    assert process is not None and (process.minimum, process.maximum) == (11 * GIB, 13 * GIB)
    assert device is not None and (device.minimum, device.maximum) == (12 * GIB, 12 * GIB)


def test_memory_is_not_compared_where_the_work_differs_or_the_gpu_was_at_fault() -> None:
    busy: dict[str, Any] = {"status": "contaminated", "health": Health(reasons=["another"])}
    broken = busy | {"health": Health(reasons=["Xid"], xid_errors=[79])}
    faulty = only(findings([record("hf-peft", **busy), record("unsloth", **broken)]))
    other = DataFacts(train_sha256="e" * 64, stream_sha256="6" * 64, stream_checked_in_forward=True)
    unlike = only(findings([record("hf-peft", **busy), record("unsloth", data=other, **busy)]))
    for finding in (faulty, unlike):
        assert all(memory.saving is None for memory in finding.memory.values())


def test_every_record_appears_when_there_are_three_backends() -> None:
    records = [record(name) for name in ("hf-peft", "unsloth", "hf-peft+liger")]
    assert [(len(p.baseline), p.candidate[0].record.cell.backend) for p in pairs(loaded(records))] == [
        (1, "hf-peft+liger"), (1, "unsloth"),
    ]  # fmt: skip


def test_other_settings_apart_are_not_paired() -> None:
    found = findings([record("hf-peft", cell={"r": 8}), record("unsloth", cell={"r": 16})])
    assert [f.verdict for f in found] == ["not comparable"] * 2
    assert found[0].why == "no record of this cell with another backend"
    assert found[1].why == "no record of this cell with hf-peft"


def test_unlike_environments_are_not_paired_and_the_key_is_named() -> None:
    base = record("hf-peft", env=environment(torch="2.11.0"))
    cand = record("unsloth", env=environment(torch="2.12.0"))
    found = findings([base, cand])
    assert [f.verdict for f in found] == ["not comparable"] * 2
    assert all(f.speedup is None and f.memory["nvml_process"].saving is None for f in found)
    assert "package.torch: 2.11.0 here, 2.12.0 there" in found[0].why + found[1].why
    assert "driver" not in found[0].why


def test_a_difference_that_was_allowed_is_said() -> None:
    base = record("hf-peft", env=environment(torch="2.11.0"))
    cand = record("unsloth", env=environment(torch="2.12.0"))
    finding = only(findings([base, cand], across=["package.torch"]))
    assert finding.verdict == "measured" and finding.across == ["package.torch: 2.11.0 and 2.12.0"]
    with_driver = record("unsloth", env=environment(torch="2.12.0", driver="590.1"))
    assert [f.verdict for f in findings([base, with_driver], across=["package.torch"])] == ["not comparable"] * 2
    with pytest.raises(InputError, match="package.torhc.*\n?.*one of: .*package.torch"):
        findings([base, cand], across=["package.torhc"])


def test_two_sets_are_compared_cell_by_cell_with_their_kernels(tmp_path: Path) -> None:
    def run(name: str, torch: str, kernels: dict[str, int], **fields: Any) -> Loaded:
        folder = tmp_path / name
        folder.mkdir()
        launched = [{"name": kernel, "count": count, "total_us": 1.0} for kernel, count in kernels.items()]
        (folder / "fingerprint.json").write_text(json.dumps({"kernels": launched}))
        seen = Fingerprint(
            file=FileRef.of(folder / "fingerprint.json", folder), device="cuda", kernels=len(kernels), launches=1,
            device_s=1.0, sha256="0",
        )  # fmt: skip
        return Loaded(record("unsloth", env=environment(torch=torch), fingerprint=seen, **fields), folder)

    old = [run("old", "2.11.0", {"gemm": 4, "gone": 1}), run("old2", "2.11.0", {"gemm": 4}, cell={"r": 64})]
    new = [run("new", "2.12.0", {"gemm": 3, "fresh": 1}, step_s=(0.5,) * 4)]
    assert [f.verdict for f in compare_sets(old, new).pairs] == ["not comparable"] * 3
    found = sorted(compare_sets(old, new, across=["package.torch"]).pairs, key=lambda f: f.cell.r or 0)
    assert [(f.cell.r, f.verdict) for f in found] == [(16, "measured"), (64, "not comparable")]
    assert found[1].why == "no record of this cell in the other set"
    assert found[0].speedup == 2.0 and found[0].across == ["package.torch: 2.11.0 and 2.12.0"]
    dispatch = found[0].dispatch
    assert dispatch is not None
    assert [k.name for k in dispatch.only_a + dispatch.only_b] == ["gone", "fresh"]
    assert [(c.name, c.count_a, c.count_b) for c in dispatch.changed] == [("gemm", 4, 3)]


def test_a_failed_parity_leaves_a_warning_and_no_speedup() -> None:
    other = DataFacts(train_sha256="d" * 64, stream_sha256="6" * 64, stream_checked_in_forward=True)
    finding = only(findings([record("hf-peft"), record("unsloth", step_s=(0.5,) * 4, data=other)]))
    assert finding.verdict == "parity failed" and "token stream" in finding.why
    assert "2.00, is no speedup" in finding.why
    assert finding.speedup is None and finding.speed is None and finding.memory["nvml_process"].saving is None
    assert finding.candidate is not None and finding.candidate.tokens_per_s == 1600
    assert finding.parity is not None and finding.parity.status == "failed"


def test_gpu_time_is_the_profiled_pass_times_the_accumulation_and_its_ratio_has_the_process_as_unit() -> None:
    runs = [
        record(backend, serial=n, cell={"gradient_accumulation_steps": 2}, fingerprint=profiled(work_s + n / 1000))
        for backend, work_s in (("hf-peft", 0.3), ("unsloth", 0.1)) for n in range(3)
    ]  # fmt: skip
    finding = only(findings(runs))
    assert finding.baseline is not None and finding.candidate is not None and finding.gpu_work is not None
    assert (finding.baseline.gpu_work_s, finding.candidate.gpu_work_s) == pytest.approx((0.602, 0.202))
    assert finding.baseline.gpu_share == pytest.approx(0.602)  # of steps of 1 s
    assert finding.gpu_work.value == pytest.approx(0.301 / 0.101) and finding.gpu_work.interval() is not None
    row = make_rows([finding])[0]
    assert row.gpu_time == "2.98x"
    assert row.gpu_note.startswith("99 % [") and row.gpu_note.endswith("at work 60 % / 20 % of a step")


@pytest.mark.parametrize("seen", [None, profiled(0.3, "cpu")])
def test_without_a_profile_of_a_gpu_there_is_no_gpu_time(seen: Fingerprint | None) -> None:
    finding = only(findings([record("hf-peft", fingerprint=profiled(0.3)), record("unsloth", fingerprint=seen)]))
    assert finding.verdict == "measured" and finding.gpu_work is None and make_rows([finding])[0].gpu_note == ""


def test_no_committed_run_works_longer_than_its_step() -> None:
    """Kernels and copies of the release suite add up to more than its steps; kernels alone never do."""
    loaded = load(Path(__file__).parents[1] / "results")[0]
    shares = [share for one in loaded if (share := derive(one.record, lambda _: None).gpu_share)]
    assert len(shares) > 80 and max(shares) < 1


def test_a_profiled_pass_that_may_have_left_out_recomputation_gives_no_gpu_time() -> None:
    runs = [record("hf-peft", fingerprint=profiled(0.3)), record("unsloth", fingerprint=profiled(0.1), audit=[])]
    finding = only(findings(runs))
    assert finding.verdict == "measured" and finding.gpu_work is None
    assert finding.candidate is not None and finding.candidate.gpu_work_s is None


def test_seeds_are_compared_item_by_item(tmp_path: Path) -> None:
    def run(backend: str, seed: int, right: set[int], serial: int = 0) -> Loaded:
        folder = tmp_path / f"{backend}-{seed}-{serial}"
        folder.mkdir()
        lines = [
            {"doc_id": n, "doc_hash": str(n), "filter": "none", "exact_match": float(n in right)} for n in range(40)
        ]
        (folder / "eval.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        made = record(backend, serial=serial, cell={"seed": seed}, eval_after=evaluation(len(right) / 40))
        return Loaded(made, folder)

    runs = [run("hf-peft", seed, set(range(20))) for seed in (1, 2)]
    runs += [run("unsloth", seed, set(range(seed, 20 + seed))) for seed in (1, 2)]
    found: list[AccuracyFinding] = compare(runs).accuracy
    assert len(found) == 1 and found[0].seeds == [1, 2] and len(found[0].record_ids) == 4
    paired = found[0].paired
    assert paired is not None and (paired.baseline, paired.candidate, paired.items) == (0.5, 0.5, 40)
    assert compare([run("unsloth", 2, set(range(40)), serial=1), *runs]).accuracy == found, "run again, to score better"
    gone = compare([runs[0], Loaded(runs[2].record, tmp_path / "gone")]).accuracy
    assert gone[0].paired is None and "eval.json" in gone[0].why


def test_accuracy_of_both_sides_before_and_after() -> None:
    base = record("hf-peft", eval_before=evaluation(0.01), eval_after=evaluation(0.44))
    cand = record("unsloth", eval_before=evaluation(0.02), eval_after=evaluation(0.47))
    finding = only(findings([base, cand]))
    values = [
        side.accuracy_before.value if when == "before" else side.accuracy_after.value  # type: ignore[union-attr]
        for side in (finding.baseline, finding.candidate) if side
        for when in ("before", "after")
    ]  # fmt: skip
    assert values == [0.01, 0.44, 0.02, 0.47]


# ---- failures -------------------------------------------------------------------------------------------------------


def test_a_failed_side_stays_with_its_status_and_message() -> None:
    finding = only(findings([record("hf-peft"), unfinished("unsloth", "oom", "out of memory", "warmup")]))
    assert finding.verdict == "failed"
    assert finding.why == "unsloth: oom in warmup: out of memory"
    assert finding.baseline is not None and finding.baseline.tokens_per_s == 800
    assert finding.candidate is not None and finding.candidate.status == "oom"
    assert finding.speedup is None


def test_an_unsupported_side_is_its_own_verdict() -> None:
    finding = only(findings([record("hf-peft"), unfinished("unsloth", "unsupported", "needs an NVIDIA GPU", None)]))
    assert finding.verdict == "unsupported" and finding.why == "unsloth: unsupported: needs an NVIDIA GPU"
    both = [unfinished("hf-peft", "crashed", "boom"), unfinished("unsloth", "unsupported", "needs a GPU", None)]
    assert only(findings(both)).verdict == "failed"


def test_a_crash_beside_finished_repeats_is_kept_and_does_not_count() -> None:
    base = [record("hf-peft", serial=0), unfinished("hf-peft", "crashed", "killed", serial=1)]
    finding = only(findings([*base, record("unsloth")]))
    assert finding.verdict == "measured"
    assert finding.baseline is not None and finding.baseline.processes == 1
    assert [(f.status, f.message) for f in finding.baseline.failures] == [("crashed", "killed")]
    assert len(finding.baseline.record_ids) == 2


def test_a_lone_unsupported_side_says_both() -> None:
    finding = only(findings([unfinished("unsloth", "unsupported", "needs an NVIDIA GPU", None)]))
    assert finding.verdict == "unsupported"
    assert finding.why.endswith("needs an NVIDIA GPU; no record of this cell with hf-peft")
    assert finding.baseline is None


def test_a_finished_run_without_steps_measures_nothing() -> None:
    finding = only(findings([record("hf-peft", steps=Steps()), record("unsloth")]))
    assert finding.speedup is None and finding.break_even_steps is None
    assert finding.verdict == "not comparable" and finding.why == "no timed step of hf-peft"


def test_findings_round_trip_through_json() -> None:
    finding = only(findings([record("hf-peft"), record("unsloth", peak_gib=7)]))
    assert Finding.model_validate_json(finding.model_dump_json()) == finding
