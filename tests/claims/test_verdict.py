"""Each rule on known numbers, and verdicts from records made up with known speeds, peaks and losses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.claims import verdict
from bench.claims.claim import Claim, Part, Rule, suite_cells
from bench.claims.measure import Measure
from bench.claims.verdict import ClaimVerdict, Evidence, judge, together, verdicts
from bench.record import Health, Steps
from bench.store import Loaded
from tests.synthetic import environment, evaluation, record, unfinished
from tests.test_oom import AT_CAP, AT_CARD

AT_LEAST = Rule(kind="at_least", low=2, rounding=0.05)
RANGE = Rule(kind="range", low=2, high=5)
AT_MOST = Rule(kind="at_most", high=24)
UP_TO = Rule(kind="up_to", high=0.8)
NON_INFERIOR = Rule(kind="non_inferior", high=0.03)


@pytest.mark.parametrize("rule, low, high, expected", [
    (AT_LEAST, 1.96, 2.4, "supported"),  # a claimed 2.0 is met from 1.95 on
    (AT_LEAST, 1.90, 2.4, "inconclusive"),
    (AT_LEAST, 1.50, 1.9, "refuted"),
    (RANGE, 2.1, 3.0, "supported"),
    (RANGE, 5.5, 6.0, "supported"),  # above the range is more than was claimed
    (RANGE, 1.9, 2.1, "inconclusive"),
    (RANGE, 1.2, 1.9, "refuted"),
    (AT_MOST, 10, 23, "supported"),
    (AT_MOST, 23, 25, "inconclusive"),
    (AT_MOST, 25, 26, "refuted"),
    (AT_MOST, 79, None, "refuted"),  # out of memory above the budget
    (AT_MOST, 20, None, "inconclusive"),  # out of memory below it
    (Rule(kind="equal", high=1), 1.1, 1.1, "refuted"),
    (Rule(kind="equal", high=0), 0, 0, "supported"),
    (UP_TO, 0.81, 0.83, "supported"),
    (UP_TO, 0.3, 0.4, "inconclusive"),  # "up to" cannot be refuted by trying
    (NON_INFERIOR, -0.02, 0.05, "supported"),
    (NON_INFERIOR, -0.04, 0.05, "inconclusive"),
    (NON_INFERIOR, -0.09, -0.04, "refuted"),
])  # fmt: skip
def test_rules(rule: Rule, low: float, high: float | None, expected: str) -> None:
    assert judge(rule, Measure(label="x", value=low, low=low, high=high)) == expected


def test_without_an_interval_or_with_a_reason_nothing_is_decided() -> None:
    assert judge(AT_LEAST, Measure(label="x", value=9.0)) == "set aside"
    assert judge(AT_LEAST, Measure(label="x", value=9.0, low=8, high=10, why="parity failed")) == "set aside"


@pytest.mark.parametrize("found, expected", [
    (["supported", "supported"], "supported"),
    (["refuted", "refuted"], "refuted"),
    (["supported", "refuted"], "partly"),
    (["supported", "inconclusive"], "partly"),
    (["partly", "refuted"], "partly"),
    (["refuted", "inconclusive"], "inconclusive"),
    (["inconclusive"], "inconclusive"),
])  # fmt: skip
def test_verdicts_together(found: list[str], expected: str) -> None:
    assert together(found) == expected
    assert together(found, anywhere=True) == ("supported" if "supported" in found else expected)


# From records

SUITE = "h100-docs-8b"
FASTER, SLOWER = (0.5, 0.505, 0.495, 0.502), (1.0, 1.01, 0.99, 1.005)


def claim(*parts: Part) -> Claim:
    return Claim(id="c", group="project", statement="s", source="s", date="d", chosen=("x",), parts=parts)


def pair_part(metric: Any = "speedup", rule: Rule = AT_LEAST, suite: str = SUITE, **where: Any) -> Part:
    return Part(
        metric=metric, rule=rule, suites=(suite,), where=where, baseline={"backend": "hf-peft"},
        candidate={"backend": "unsloth"},
    )  # fmt: skip


def runs(
    folder: Path, backend: str, walls: Sequence[float], *, suite: str = SUITE, where: dict[str, Any] | None = None,
    peak_gib: float = 20.0, **fields: Any,
) -> list[Loaded]:  # fmt: skip
    """One record a step time, of the suite's cell of that backend."""
    wanted = {"backend": backend} | (where or {})
    (cell,) = [c for c in suite_cells(suite) if all(getattr(c, k) == v for k, v in wanted.items())]
    made = []
    for serial, step_s in enumerate(walls):
        steps = (step_s,) * (cell.max_steps - 2)
        one = record(backend, step_s=steps, peak_gib=peak_gib, cell=cell.model_dump(), serial=serial, **fields)
        made.append(Loaded(one, folder))
    return made


def one(found: list[Loaded], *parts: Part) -> ClaimVerdict:
    (made,) = verdicts(Evidence(records=found), [claim(*parts)])
    return made


def test_a_speedup_with_its_interval_is_judged_and_names_its_records(tmp_path: Path) -> None:
    base, cand = runs(tmp_path, "hf-peft", SLOWER), runs(tmp_path, "unsloth", FASTER)
    found = one(base + cand, pair_part())
    assert found.verdict == "supported" and found.measured == pytest.approx(2, rel=0.02)
    assert found.low and found.measured and found.high and found.low < found.measured < found.high
    assert set(found.records) == {item.record.id for item in base + cand}
    assert "parity not checked" in found.note
    assert one(base + cand, pair_part(rule=Rule(kind="at_least", low=3))).verdict == "refuted"


def test_one_process_a_side_is_inconclusive_and_told_as_a_point(tmp_path: Path) -> None:
    found = one(runs(tmp_path, "hf-peft", (1.0,)) + runs(tmp_path, "unsloth", (0.2,)), pair_part())
    assert found.verdict == "inconclusive"
    assert "without an interval (point estimate 5" in found.note


@pytest.mark.parametrize("point_s, expected", [(0.6, "refuted"), (0.3, "inconclusive")])
def test_a_point_that_says_otherwise_keeps_a_decided_part_open(tmp_path: Path, point_s: float, expected: str) -> None:
    """Four processes a side refute 2x at rank 32; at rank 16 there is one a side, at 1.7x or at 3.3x."""
    decided = runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", [0.6 * s for s in SLOWER])
    speed = "h100-mistral-7b"
    point = runs(tmp_path, "hf-peft", (1.0,), suite=speed) + runs(tmp_path, "unsloth", (point_s,), suite=speed)
    part = pair_part().model_copy(update={"suites": (SUITE, speed)})
    found = one(decided + point, part)
    assert found.verdict == expected and "refuted in 1 of 1; 1 without an interval" in found.note
    assert one(decided, part).verdict == "refuted"


def test_unequal_work_decides_nothing(tmp_path: Path) -> None:
    other: dict[str, Any] = {
        "data": {"train_sha256": "e" * 64, "stream_sha256": "6" * 64, "stream_checked_in_forward": True}
    }
    found = one(runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER, **other), pair_part())
    assert found.verdict == "inconclusive" and "parity failed" in found.note


def test_two_environments_are_never_paired(tmp_path: Path) -> None:
    base = runs(tmp_path, "hf-peft", SLOWER, env=environment("Other GPU"))
    assert one(base + runs(tmp_path, "unsloth", FASTER), pair_part()).verdict == "not run yet"


def test_memory_is_judged_under_each_meter(tmp_path: Path) -> None:
    """torch's meters see 10 of 40 GiB; NVML adds 2 and 3 GiB on both sides."""
    found_in = runs(tmp_path, "hf-peft", (1.0,), peak_gib=40) + runs(tmp_path, "unsloth", (1.0,), peak_gib=10)
    found = one(found_in, pair_part("vram_saving", Rule(kind="at_least", low=0.72)))
    by_meter = {j.measure.meter: j.verdict for j in found.parts[0].judgements}
    assert by_meter["torch_allocated"] == "supported" and by_meter["nvml_device"] == "refuted"
    assert found.verdict == "partly"
    assert found.measured == pytest.approx(1 - 12 / 42), "the headline is the process's peak as the driver sees it"


def test_up_to_is_reached_by_one_cell_under_each_meter(tmp_path: Path) -> None:
    """8 of 40 GiB for torch; of 43 GiB, the whole device, 11 are a saving of 74 %."""
    found_in = runs(tmp_path, "hf-peft", (1.0,), peak_gib=40) + runs(tmp_path, "unsloth", (1.0,), peak_gib=8)
    assert one(found_in, pair_part("vram_saving", Rule(kind="up_to", high=0.6))).verdict == "supported"
    assert one(found_in, pair_part("vram_saving", Rule(kind="up_to", high=0.79))).verdict == "partly"
    unreached = one(found_in, pair_part("vram_saving", Rule(kind="up_to", high=0.95)))
    assert unreached.verdict == "inconclusive" and "not reached in any tested cell" in unreached.note


def test_a_budget_is_held_against_the_process_as_the_driver_sees_it(tmp_path: Path) -> None:
    part = Part(metric="vram_gib", rule=AT_MOST, suites=(SUITE,), where={"backend": "unsloth"})
    assert one(runs(tmp_path, "unsloth", (1.0,), peak_gib=21), part).verdict == "supported"  # 23 GiB and 2 %
    assert one(runs(tmp_path, "unsloth", (1.0,), peak_gib=22), part).verdict == "inconclusive"
    assert one(runs(tmp_path, "unsloth", (1.0,), peak_gib=23), part).verdict == "refuted"


BUSY: dict[str, Any] = {"status": "contaminated", "health": Health(reasons=["x"], other_processes_during=3)}
FAULT: dict[str, Any] = {"status": "contaminated", "health": Health(reasons=["Xid"], xid_errors=[79])}


def test_runs_beside_others_tell_what_their_own_process_took_and_no_speed(tmp_path: Path) -> None:
    base, cand = runs(tmp_path, "hf-peft", (1.0,), peak_gib=40), runs(tmp_path, "unsloth", (1.0,), peak_gib=10, **BUSY)
    saving = pair_part("vram_saving", Rule(kind="at_least", low=0.7))
    found = one(base + cand, saving)
    assert {j.measure.meter for j in found.parts[0].judgements} == {"torch_allocated", "torch_reserved", "nvml_process"}
    assert found.measured == pytest.approx(1 - 12 / 42) and found.verdict == "supported"
    assert "process peaks of contaminated runs (beside other processes, or throttled) among them in 3" in found.note
    assert one(base + cand, pair_part()).measured is None, "no speedup"
    faulty = runs(tmp_path, "unsloth", (1.0,), peak_gib=10, **FAULT)
    assert one(base + faulty, saving).measured is None


def test_a_peak_of_a_run_beside_others_is_held_against_a_budget(tmp_path: Path) -> None:
    part = Part(metric="vram_gib", rule=AT_MOST, suites=(SUITE,), where={"backend": "unsloth"})
    found = one(runs(tmp_path, "unsloth", (1.0,), peak_gib=21, **BUSY), part)
    assert found.verdict == "supported" and "beside other processes" in found.note
    assert "nvml_device" not in {j.measure.meter for j in found.parts[0].judgements}
    assert one(runs(tmp_path, "unsloth", (1.0,), peak_gib=21, **FAULT), part).measured is None


def test_out_of_memory_beside_others_bounds_nothing_unless_the_cap_refused(tmp_path: Path) -> None:
    part = Part(metric="vram_gib", rule=AT_MOST, suites=(SUITE,), where={"backend": "unsloth"})

    def ended(text: str, **health: Any) -> ClaimVerdict:
        condition = Health(reasons=["x"] * bool(health), **health)
        full = runs(tmp_path, "unsloth", (1.0,), peak_gib=30, status="oom", message=text, health=condition)
        return one(full, part)

    assert ended("CUDA out of memory").verdict == "refuted"
    beside = ended(AT_CARD, other_processes_during=2)
    assert beside.measured is None and beside.verdict == "inconclusive" and "oom: CUDA out of memory" in beside.note
    at_cap = ended(AT_CAP, other_processes_during=2)
    assert at_cap.verdict == "refuted"
    assert "nvml_device" not in {j.measure.meter for j in at_cap.parts[0].judgements}
    assert ended("MemoryError: ").measured is None, "the host's memory"


def test_rates_beside_others_are_set_aside_in_one_phrase(tmp_path: Path) -> None:
    found = one(runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER, **BUSY), pair_part())
    assert "set aside: unsloth: contaminated, so its rate does not count" in found.note and "\n" not in found.note


def test_a_failed_side_is_told(tmp_path: Path) -> None:
    (cell,) = [c for c in suite_cells(SUITE) if c.backend == "unsloth"]
    failed = unfinished("unsloth", "oom", "no room", cell=cell.model_dump())
    found = one([*runs(tmp_path, "hf-peft", SLOWER), Loaded(failed, tmp_path)], pair_part())
    assert found.verdict == "inconclusive" and "oom: no room" in found.note


def test_a_part_that_is_missing_leaves_the_claim_open_and_says_what_to_run(tmp_path: Path) -> None:
    found_in = runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER)
    part = Part(metric="experiment", experiment="merge", measure="merged_distance", rule=Rule(kind="equal", high=1))
    found = one(found_in, pair_part(), part)
    assert found.verdict == "partly" and "peftmark claims run c" in found.note
    assert one([], pair_part(), part).verdict == "not run yet"


ACCUMULATION = {"precision": "fp32"}


def losses(values: list[float]) -> Steps:
    steps = record("hf-peft").steps
    return Steps.model_validate({
        **{name: (getattr(steps, name) * 2)[: len(values)] for name in Steps.model_fields}, "loss": values
    })  # fmt: skip


@pytest.mark.parametrize("shift, expected", [(0.001, "supported"), (0.2, "refuted")])
def test_loss_curves_are_held_against_two_seeds_of_the_baseline(tmp_path: Path, shift: float, expected: str) -> None:
    curve = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5]
    part = Part(
        metric="loss_distance", rule=Rule(kind="at_most", high=1), suites=("cpu-accumulation",),
        baseline={"batch_size": 4, "gradient_accumulation_steps": 1, "seed": 3407},
        candidate={"batch_size": 1, "gradient_accumulation_steps": 4, "seed": 3407},
    )  # fmt: skip
    found = [
        Loaded(record("hf-peft", cell=cell.model_dump(), serial=i, steps=losses([x + add for x in curve])), tmp_path)
        for i, cell in enumerate(suite_cells("cpu-accumulation"))
        for add in [0.1 if cell.seed == 1 else shift if cell.batch_size == 1 else 0.0]
    ]
    assert one(found, part).verdict == expected
    busy = [Loaded(item.record.model_copy(update=BUSY), tmp_path) for item in found]
    assert one(busy, part).verdict == expected, "losses are answers"
    without_yardstick = [item for item in found if item.record.cell.seed != 1]
    assert one(without_yardstick, part).verdict == "inconclusive"


def test_the_seeds_of_a_cell_are_one_measure_and_contaminated_runs_answer_for_it(tmp_path: Path) -> None:
    def run(backend: str, seed: int, right: set[int], **fields: Any) -> Loaded:
        folder = tmp_path / f"{backend}-{seed}"
        folder.mkdir()
        lines = [{"doc_id": n, "doc_hash": str(n), "exact_match": float(n in right)} for n in range(40)]
        (folder / "eval.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        where = {"seed": seed, "r": 16}
        (made,) = runs(folder, backend, (1.0,), suite="h100-seeds", where=where, eval_after=evaluation(0.5), **fields)
        return made

    busy: dict[str, Any] = {"status": "contaminated", "health": Health(reasons=["another process"])}
    broken: dict[str, Any] = {"status": "contaminated", "health": Health(reasons=["Xid"], xid_errors=[79])}
    base = [run("hf-peft", seed, set(range(20)), **busy) for seed in (1, 2, 3407)]
    cand = [run("unsloth", 1, set(range(1, 20))), run("unsloth", 2, set(range(20)), **busy)]
    cand.append(run("unsloth", 3407, set(), **broken))
    found = one(base + cand, pair_part("non_inferiority", NON_INFERIOR, suite="h100-seeds"))
    assert found.measured == pytest.approx(-0.5 / 40)  # one of 40 items in one of two seeds; the third is left out
    assert set(found.records) == {item.record.id for item in base[:2] + cand[:2]}


def test_the_committed_records_give_verdicts() -> None:
    found = {v.id: v for v in verdicts(Evidence.read([Path(__file__).parents[2] / "results"]))}
    assert found["consumer-7b"].verdict == "supported"
    assert found["docs-llama33-70b"].verdict == "not testable here"
    assert all(v.note for v in found.values())


def test_a_limit_lies_between_what_trained_and_what_did_not() -> None:
    part = Part.model_validate({
        "metric": "limit", "rule": {"kind": "at_least", "low": 1000},
        "limit": {"model": "llama-3.1-8b", "precision": "nf4", "r": 32, "vram_gib": 24},
    })  # fmt: skip
    ratio = part.model_copy(update={"metric": "limit_ratio", "rule": Rule(kind="at_least", low=4)})

    def limit(backend: str, value: int | None, failing: int) -> Any:
        from bench.cell import Cell
        from bench.limit.result import LimitResult, Resolution

        return LimitResult(
            name=backend, what="max_length", value=value, first_failing_value=failing, budget_bytes=24 * 2**30,
            resolution=Resolution(step=256, relative=0.05), card_bytes=80 * 2**30, backend=backend, settings={},
            cell=Cell(model="llama-3.1-8b", precision="nf4", r=32, backend=backend), probes=[], validation=None,
            environment=environment(),
        )  # fmt: skip

    def judged(one_part: Part, *limits: Any) -> str:
        return verdicts(Evidence(limits=list(limits)), [claim(one_part)])[0].verdict

    assert judged(part, limit("unsloth", 1024, 1280)) == "supported"
    assert judged(part, limit("unsloth", 768, 1024)) == "inconclusive"
    assert judged(part, limit("unsloth", 512, 768)) == "refuted"
    assert judged(ratio, limit("unsloth", 10240, 10496), limit("hf-peft", 2048, 2304)) == "supported"
    assert judged(ratio, limit("unsloth", 10240, 10496), limit("hf-peft", None, 512)) == "inconclusive"
    assert judged(part) == "not run yet"


def test_the_verdicts_are_these() -> None:
    assert set(verdict.Verdict.__args__) == {  # type: ignore[attr-defined]
        "supported", "partly", "refuted", "inconclusive", "not testable here", "not run yet",
    }  # fmt: skip
