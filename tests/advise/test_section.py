"""The memory model on the page: points, parts, the trade-off by rank, advice under a cap, and what is left out."""

from typing import Any

import altair as alt
import pytest

from bench.advise.advice import RANKS, advise
from bench.advise.charts import GROUPS
from bench.advise.fit import load_fit
from bench.advise.gpus import find
from bench.advise.predict import predict
from bench.advise.question import Asked, find_model
from bench.advise.section import section
from bench.advise.setup import setup_of
from bench.advise.shapes import shape_of
from bench.derived import derive
from bench.models.catalogue import catalogue
from bench.record import Health, Record
from bench.report.payload import rows_of
from bench.report.sections import Chart, Row, Section
from bench.report.view import anchor
from tests import synthetic
from tests.advise.made import committed, records

CARD_MIB = 16376
PEAK_OVER_GIB = 2
"""What NVML sees in synthetic records beyond their peak."""


def made(*own: Record) -> Section:
    found = section(own, load_fit())
    assert found is not None
    return found


def chart(one: Section, name: str) -> Chart:
    return next(chart for chart in one.charts if chart.id == name)


def rows(one: Section, name: str) -> list[dict[str, Any]]:
    drawn = chart(one, name)
    return rows_of({"records": {"backend": []}, **one.data}, drawn)[drawn.tables[0]]


@pytest.fixture(scope="module")
def all_of_it() -> Section:
    return made(*(item.record for item in committed()))


def test_records_that_the_fit_does_not_know_have_no_section() -> None:
    assert section([synthetic.record()], load_fit()) is None
    assert section([], load_fit()) is None


def test_every_chart_is_valid_and_draws_columns_that_are_there(all_of_it: Section) -> None:
    for one in all_of_it.charts:
        whole = alt.HConcatChart if "hconcat" in one.spec else alt.LayerChart
        whole.from_dict(dict(one.spec), validate=True)
        assert set(one.columns) <= set(rows(all_of_it, one.id)[0])


def test_a_point_is_a_cell_of_the_fit_whose_record_the_page_has() -> None:
    fit, own = load_fit(), [item.record for item in records()]
    one = made(*own)
    known = {row.record_id: row for row in fit.rows if row.record_id in {record.id for record in own}}
    shown = {row["record_id"]: row for row in rows(one, "memory-predicted")}
    assert shown.keys() == known.keys() and 0 < len(shown) < len(fit.rows)
    for name, row in shown.items():
        assert row["measured"] == pytest.approx(known[name].measured["nvml_process"] / 2**30, abs=1e-3)
        assert row["error"] == f"{100 * known[name].error('nvml_process'):+.1f} %" and row["href"] == f"#{anchor(name)}"
    score = fit.left_out["nvml_process"]
    for share in (score.median, score.p95, -score.lowest):
        assert f"{100 * share:.1f} %" in one.text and f"{100 * share:.1f} %" in chart(one, "memory-predicted").alt


def test_the_parts_of_a_bar_are_those_that_advice_gives(all_of_it: Section) -> None:
    advice = advise(Asked(model=find_model("llama-3.1-8b"), gpu=find("NVIDIA H100 80GB HBM3")), load_fit())
    bars: dict[str, dict[str, float]] = {}
    for row in rows(all_of_it, "memory-by-rank"):
        bars.setdefault(row["bar"], {})[row["part"]] = row["gib"]
    assert len(bars) == 2 * len(RANKS) and all(list(parts) == list(GROUPS) for parts in bars.values())
    for choice in advice.choices:
        parts = bars[f"{choice.backend} r{choice.r}"]
        assert sum(parts.values()) == pytest.approx(choice.nvml.value / 2**30, abs=1e-3)
        assert parts["gradients"] * 2**30 == pytest.approx(
            next(part.size_bytes for part in choice.parts if part.name == "gradients"), abs=1e5
        )


def test_the_trade_off_sets_measured_accuracy_beside_predicted_memory_and_speed(all_of_it: Section) -> None:
    fit = load_fit()
    by_id = {item.record.id: item.record for item in committed()}
    shown = {(row["backend"], row["r"]): row for row in rows(all_of_it, "rank-trade-off")}
    for one in fit.accuracy:
        assert {r for backend, r in shown if backend == one.backend} == {*RANKS, *(score.r for score in one.ranks)}
        for score in one.ranks:
            row = shown[one.backend, score.r]
            assert row["difference"] == 100 * score.difference and row["accuracy"] == f"{100 * score.accuracy:.1f} %"
            assert row["low"] <= row["difference"] <= row["high"]
            peak = derive(by_id[score.record_ids[0]], lambda _: None).training_peaks["nvml_process"]
            assert row["gib_measured"] == pytest.approx((peak or 0) / 2**30, abs=0.01)
            assert row["gib_low"] <= row["gib_measured"] <= row["gib_high"]
    far = shown["hf-peft", 256]
    assert far["difference"] is None and far["gib_measured"] is None and far["gib"] > shown["hf-peft", 4]["gib"]
    assert far["rate_record"] in {point.record_id for point in fit.speeds}


def test_without_one_of_its_records_an_accuracy_is_not_drawn() -> None:
    fit = load_fit()
    missing = fit.accuracy[0].ranks[0].record_ids[0]
    one = made(*(item.record for item in committed() if item.record.id != missing))
    assert {row["backend"] for row in rows(one, "rank-trade-off")} == {other.backend for other in fit.accuracy[1:]}


# Advice under a cap


def capped(status: str = "ok", batch: int = 10, gib: float = 10, **fields: Any) -> Record:
    cell = {"model": "llama-3.2-3b", "precision": "nf4", "r": 128, "batch_size": batch, "max_length": 2048,
            "packing": "wrapped", "optimizer": "adamw_8bit", "vram_budget_bytes": CARD_MIB * 2**20}  # fmt: skip
    return synthetic.record("hf-peft", status=status, peak_gib=gib, cell=cell | fields.pop("cell", {}), **fields)


def line(record: Record) -> Row:
    ((row,),) = [table.rows for table in made(record).tables]
    return row


def test_the_committed_records_bear_the_advice_out(all_of_it: Section) -> None:
    """The batches were the largest that the fit of then called fitting: on the smallest card today's is less sure."""
    (table,) = all_of_it.tables
    told = [(row.cells[2].text, row.cells[3].text, row.cells[4].tag) for row in table.rows]
    assert told == [
        *[("fits", "trained", "holds"), ("no", "out of memory in warmup", "holds")] * 2,
        ("tight", "trained", "inconclusive"), ("no", "out of memory in warmup", "holds"),
    ]  # fmt: skip
    assert [row.cells[1].text for row in table.rows[::2]] == ["23.99 GiB", "15.99 GiB", "8.00 GiB"]
    assert "rtx-4090" in table.rows[0].cells[1].sub


@pytest.mark.parametrize(
    ("record", "said", "happened", "tag"),
    [
        (capped(batch=1), "fits", "trained", "holds"),
        (capped(batch=1, gib=15), "fits", "trained, but above the budget", "does not hold"),
        (capped("oom", batch=1, failed_phase="steady"), "fits", "out of memory in steady", "does not hold"),
        (capped(), "no", "trained", "does not hold"),
        (capped(gib=15), "no", "trained, but above the budget", "holds"),
        (capped("oom", failed_phase="warmup"), "no", "out of memory in warmup", "holds"),
        (capped(batch=8), "tight", "trained", "inconclusive"),
        (capped("crashed"), "no", "crashed", ""),
        (capped("oom", failed_phase="warmup", health=Health(reasons=["other"], other_processes_during=1)),
         "no", "out of memory in warmup, which says nothing of the budget", ""),
    ],
)  # fmt: skip
def test_agreement(record: Record, said: str, happened: str, tag: str) -> None:
    cells = line(record).cells
    assert (cells[2].text, cells[3].text, cells[4].tag, cells[4].text) == (said, happened, tag, "" if tag else "—")
    assert cells[5].links[0].href == f"#{anchor(record.id)}"


def test_a_line_says_the_cell_the_card_the_interval_and_the_peak() -> None:
    record = capped(batch=7, gib=12.5)
    cells = line(record).cells
    assert (cells[0].text, cells[0].sub) == ("llama-3.2-3b nf4 r128", "hf-peft, batch 7 of 2048 tokens")
    assert cells[1].text == "15.99 GiB" and "rtx-4080" in cells[1].sub.split(", ")
    shape = shape_of(catalogue()["llama-3.2-3b"].config)
    peak = predict(load_fit(), shape, setup_of(record.cell), "NVIDIA GeForce RTX 4080").peaks["nvml_process"]
    low, value, high = (f"{size / 2**30:.2f}" for size in (peak.low, peak.value, peak.high))
    assert cells[2].sub == f"{value} GiB ({low} to {high})"
    assert cells[3].sub == f"peak {12.5 + PEAK_OVER_GIB:.2f} of 15.99 GiB"


def test_only_a_budget_that_is_a_cards_memory_and_a_cell_that_is_modelled_have_a_line() -> None:
    others = [{"vram_budget_bytes": 10**10}, {"packing": "bfd"}, {"model": "<b>unknown</b>"}]
    assert section([capped(cell=cell) for cell in others], load_fit()) is None
