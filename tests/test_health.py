"""Health over synthetic rows, made up here and of no GPU, and over the committed timelines of real runs."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench import store
from bench.health import judge
from bench.meters.sampler import COLUMNS
from bench.record import Health, Phase

STEADY = Phase(name="steady", start_s=10.0, wall_s=20.0)
RESULTS = Path(__file__).parents[1] / "results"
PUBLISHED = store.load(RESULTS)[0]


def synthetic(**columns: list[Any]) -> dict[str, list[Any]]:
    """A made-up timeline of 400 rows, 0 to 39.9 s, of which 10 to 30 s are steady; columns not given are null."""
    return {name: columns.get(name, [None] * 400) for name in COLUMNS} | {"t_s": [n / 10 for n in range(400)]}


def series(usual: Any, *, at: dict[int, Any] | None = None) -> list[Any]:
    return [(at or {}).get(n, usual) for n in range(400)]


def health(columns: dict[str, list[Any]], *, before: int = 0) -> Health:
    return judge(synthetic(**columns), STEADY, other_processes_before=before)


FINE: dict[str, list[Any]] = {
    "sm_clock_mhz": series(1980), "throttle_reasons": series(0), "other_processes": series(0),
    "ecc_uncorrected": series(None, at={0: 2, 399: 2}), "xid": series(None, at={0: [], 399: []}),
}  # fmt: skip


def test_a_gpu_in_good_health_gives_readings_and_no_reason() -> None:
    assert health(FINE).model_dump() == {
        "reasons": [], "other_processes_before": 0, "other_processes_during": 0, "throttled_share": 0.0,
        "sm_clock_mhz_median": 1980.0, "sm_clock_mhz_min": 1980.0, "ecc_errors": 0, "xid_errors": [],
    }  # fmt: skip


@pytest.mark.parametrize("rows", [{}, synthetic(), {"t_s": [1.0], "other_processes": [None]}])
def test_what_cannot_be_read_is_null_and_never_zero(rows: dict[str, list[Any]]) -> None:
    found = judge(rows, STEADY, other_processes_before=None).model_dump()
    assert found.pop("reasons") == []
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"other_processes": series(0, at={3: 2, 4: 1})}, "up to 2 other compute process(es) on the GPU while"),
        (
            {"throttle_reasons": series(0, at={150: 0x20})},
            "software thermal slowdown in 1 of 201 steady",
        ),
        ({"throttle_reasons": series(0x4, at={150: 0x4C})}, "hardware slowdown, hardware thermal slowdown in 1 of 201"),
        ({"throttle_reasons": series(0, at={150: 0x80})}, "hardware power brake in 1 of 201"),
        ({"sm_clock_mhz": series(1980, at={n: 1700 for n in range(150, 153)})}, "below its median of 1980 MHz in 3 of"),
        ({"ecc_uncorrected": series(None, at={0: 2, 250: 3, 399: 5})}, "3 uncorrected ECC error(s)"),
        ({"xid": series(None, at={0: [], 125: [31], 250: [], 399: [43, 31]})}, "Xid error(s) 31, 43, 31"),
    ],
)
def test_each_fault_is_a_reason_in_numbers(columns: dict[str, list[Any]], said: str) -> None:
    (reason,) = health(FINE | columns).reasons
    assert said in reason


def test_the_share_of_slowed_samples_is_a_reading_and_told() -> None:
    found = health(FINE | {"throttle_reasons": series(0, at={150: 0x20, 151: 0x20})})
    assert found.throttled_share == 2 / 201
    assert "(1.0%)" in found.reasons[0]


def test_all_faults_are_told_at_once() -> None:
    found = health(before=1, columns=FINE | {
        "other_processes": series(1), "throttle_reasons": series(8), "xid": series([79]),
        "ecc_uncorrected": list(range(400)), "sm_clock_mhz": series(1980, at=dict.fromkeys(range(150, 200), 1000)),
    })  # fmt: skip
    assert len(found.reasons) == 6
    assert (found.throttled_share, found.sm_clock_mhz_min, found.ecc_errors) == (1.0, 1000.0, 399)
    assert found.other_processes_before == found.other_processes_during == 1


def test_the_power_cap_is_no_reason_however_low_the_clock() -> None:
    capped = dict.fromkeys(range(150, 200), 0x4)
    found = health(FINE | {
        "throttle_reasons": series(0, at=capped), "sm_clock_mhz": series(1980, at=dict.fromkeys(capped, 1200)),
    })  # fmt: skip
    assert found.reasons == [] and found.sm_clock_mhz_min == 1200


def test_an_idle_gpu_or_an_unread_reason_is_no_clock_drop() -> None:
    low = series(1980, at=dict.fromkeys(range(150, 200), 400))
    for mask in (0x1, None):
        masks = series(0, at=dict.fromkeys(range(150, 200), mask))
        assert health(FINE | {"sm_clock_mhz": low, "throttle_reasons": masks}).reasons == []


@pytest.mark.parametrize(("mhz", "samples", "drops"), [(1782, 100, 0), (1781, 3, 1), (1781, 2, 0)])
def test_a_clock_drop_is_over_ten_per_cent_in_over_one_per_cent_of_the_samples(
    mhz: int, samples: int, drops: int
) -> None:
    clocks = series(1980, at=dict.fromkeys(range(150, 150 + samples), mhz))
    assert len(health(FINE | {"sm_clock_mhz": clocks}).reasons) == drops


def test_only_the_steady_phase_counts_for_throttling_and_clocks() -> None:
    outside = {"throttle_reasons": series(0, at={5: 0x40, 395: 0x40}), "sm_clock_mhz": series(1980, at={5: 300})}
    found = health(FINE | outside)
    assert (found.reasons, found.throttled_share, found.sm_clock_mhz_min) == ([], 0.0, 1980)
    early = judge(synthetic(**FINE), None, other_processes_before=0)
    assert (early.throttled_share, early.sm_clock_mhz_median, early.ecc_errors) == (None, None, 0)


def test_one_reading_of_a_counter_says_nothing_of_what_came() -> None:
    assert health(FINE | {"ecc_uncorrected": series(None, at={0: 2})}).ecc_errors is None


@pytest.mark.parametrize("loaded", PUBLISHED, ids=[item.record.id for item in PUBLISHED])
def test_no_committed_run_is_condemned(loaded: store.Loaded) -> None:
    """Real timelines of an H100, among them power-capped ones; those from before the error columns read as null."""
    record = loaded.record
    if record.status != "ok" or not record.environment.gpus or not record.timeline:
        pytest.skip("not a good run on a GPU")
    rows = pq.read_table(loaded.folder / record.timeline.file.path).to_pydict()
    found = judge(rows, record.phase("steady"), other_processes_before=None)
    assert found.reasons == []
    assert found.throttled_share == 0.0 and found.sm_clock_mhz_median and found.sm_clock_mhz_min
    if "xid" not in rows:
        assert found.ecc_errors is None and found.xid_errors is None
