"""What the check says of kernels whose faults are known: run for real, in its own processes."""

import importlib.util

import pytest

from kernels_check.check import check
from kernels_check.record import Entry, KernelRecord

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
DYING, OTHER = "tests.kernels_check.toy", "tests.kernels_check.other_toy"


@pytest.fixture(scope="module")
def record() -> KernelRecord:
    return check("cpu", only=[DYING, OTHER])


def entry(record: KernelRecord, candidate: str, case: str = "sums") -> Entry:
    (found,) = [e for e in record.entries if e.candidate == candidate and e.case == case and e.family == "toy"][:1]
    return found


def test_a_right_kernel_passes_and_its_launch_is_counted(record: KernelRecord) -> None:
    right = entry(record, "right")
    assert right.status == "passed" and right.launched == {"column_sums": 1} and right.shapes == {"x": [300, 13]}
    assert right.forward is not None and 0 < right.forward.tolerances < 1


def test_a_wrong_sign_fails_and_says_where(record: KernelRecord) -> None:
    wrong = entry(record, "wrong sign")
    assert wrong.status == "failed" and wrong.forward is not None and wrong.forward.tolerances > 1000
    assert f"at ({wrong.forward.index[0]},)" in (wrong.reason or "")
    assert float(wrong.forward.got) == pytest.approx(-float(wrong.forward.expected), rel=1e-5)


def test_an_unwritten_column_shows(record: KernelRecord) -> None:
    unwritten = entry(record, "unwritten column")
    assert unwritten.status == "failed" and unwritten.forward is not None
    assert unwritten.forward.index == [12] and unwritten.forward.got == "nan"


def test_a_write_past_the_end_shows(record: KernelRecord) -> None:
    past = entry(record, "written past the end")
    assert past.status == "failed" and "1 element(s) written after a new tensor of shape (13,)" in (past.reason or "")


def test_a_16_bit_accumulator_fails(record: KernelRecord) -> None:
    """Its results look right: within 1 % of the terms' magnitude. The derived tolerance sees it."""
    narrow = entry(record, "16-bit accumulator")
    assert narrow.status == "failed" and narrow.forward is not None and 10 < narrow.forward.tolerances < 1e5


def test_sums_of_bfloat16_are_rounded_at_every_step(record: KernelRecord) -> None:
    """1024 ones: exact in a tree, 256 when added one by one in bfloat16, garbage as integers."""
    assert entry(record, "tree", "sum in bfloat16").status == "passed"


def test_what_was_not_launched_is_not_passed(record: KernelRecord) -> None:
    idle = entry(record, "no launch")
    assert idle.status == "not exercised" and idle.reason == "not launched: column_sums"


def test_an_input_may_be_overwritten_only_where_the_case_says_so(record: KernelRecord) -> None:
    assert entry(record, "overwrites its input").status == "failed"
    assert "overwrote the input x" in (entry(record, "overwrites its input").reason or "")
    assert entry(record, "declared overwriting").status == "passed"


def test_exceptions_and_absences_are_told_apart(record: KernelRecord) -> None:
    raised, absent, asking, gpu = (entry(record, name) for name in ("raises", "absent", "asks CUDA", "GPU only"))
    assert (raised.status, raised.reason) == ("failed", "RuntimeError: no such luck")
    assert (absent.status, absent.reason) == ("not runnable here", "unsloth 1.0: no such kernel")
    assert (asking.status, asking.reason) == ("not runnable here", "calls CUDA where no interpreter stands in")
    assert (gpu.status, gpu.reason) == ("not runnable here", "needs tensor cores")


def test_a_known_fault_fails_but_not_the_whole_check(record: KernelRecord) -> None:
    known = entry(record, "known")
    assert known.status == "failed" and known.known_fault == "reported upstream" and known not in record.bad
    assert entry(record, "wrong sign") in record.bad


def test_what_switched_itself_off_is_told(record: KernelRecord) -> None:
    assert entry(record, "says that it falls back").switched_off == ["fast kernel disabled (self-check)"]


def test_a_death_is_its_cases_failure_and_the_next_family_goes_on(record: KernelRecord) -> None:
    dead = [e for e in record.entries if e.status == "crashed"]
    assert [(e.case, e.candidate, e.reason) for e in dead] == [("dies", "killed", "its process ended by signal 11")]
    assert dead[0] in record.bad
    assert not [e for e in record.entries if e.case == "never reached"]
    assert record.entries[-1].candidate == "right" and record.entries[-1].status == "passed"


def test_a_record_survives_being_written(record: KernelRecord) -> None:
    assert KernelRecord.model_validate_json(record.model_dump_json()) == record
