"""The ladder: its order and changes, ratios of made-up records with known numbers, gaps, and refusals."""

from typing import Any

import pytest

from bench import ladder, suite
from bench.cell import Cell
from bench.errors import InputError
from bench.ladder import RUNG_FIELDS, Ladder, ladders
from bench.record import Record
from tests import synthetic
from tests.synthetic import GIB

RUNGS: list[dict[str, Any]] = [
    {"attention": "eager", "gradient_checkpointing": "on"},
    {"attention": "sdpa", "gradient_checkpointing": "on"},
    {"attention": "sdpa", "gradient_checkpointing": "off"},
    {"attention": "sdpa", "gradient_checkpointing": "on", "backend": "unsloth"},
]


def run(fields: dict[str, Any], step_s: float, peak_gib: float, serial: int = 0, **more: Any) -> Record:
    """A synthetic finished run: 800 real tokens a step, so 800 / step_s tokens a second."""
    return synthetic.record(
        fields.get("backend", "hf-peft"), step_s=(step_s,) * 4, peak_gib=peak_gib, cell=fields, serial=serial, **more
    )


def failed(fields: dict[str, Any], status: str = "oom") -> Record:
    return synthetic.record(
        fields.get("backend", "hf-peft"), step_s=(1.0,) * 4, peak_gib=70.0, cell=fields, status=status,
        message="no room", failed_phase="steady",
    )  # fmt: skip


def one(records: list[Record], order: list[Cell]) -> Ladder:
    (made,) = ladders(records, order)
    return made


def measured() -> list[Record]:
    return [run(RUNGS[0], 4.0, 40), run(RUNGS[1], 2.0, 20), run(RUNGS[2], 1.0, 60), run(RUNGS[3], 0.5, 10)]


def test_rungs_follow_the_given_order_and_say_what_changed() -> None:
    records = measured()
    made = one(records[::-1], [r.cell for r in records])
    assert [rung.cell for rung in made.rungs] == [r.cell for r in records]
    assert [[(c.field, c.before, c.after) for c in rung.changes] for rung in made.rungs] == [
        [],
        [("attention", "eager", "sdpa")],
        [("gradient_checkpointing", "on", "off")],
        [("backend", "hf-peft", "unsloth"), ("gradient_checkpointing", "off", "on")],
    ]
    assert [rung.name for rung in made.rungs] == [
        "hf-peft, attention eager, gradient checkpointing on", "attention sdpa", "gradient checkpointing off",
        "unsloth, gradient checkpointing on",
    ]  # fmt: skip


def test_ratios_are_over_the_rung_before_and_over_the_first() -> None:
    records = measured()
    rungs = one(records, [r.cell for r in records]).rungs
    assert [rung.tokens_per_s for rung in rungs] == [200, 400, 800, 1600]
    assert rungs[0].over_previous is None and rungs[0].over_first is None
    assert [r.over_previous.tokens_per_s for r in rungs[1:] if r.over_previous] == [2, 2, 2]
    assert [r.over_first.tokens_per_s for r in rungs[1:] if r.over_first] == [2, 4, 8]
    assert rungs[2].over_previous and rungs[2].over_first
    assert rungs[2].over_previous.training_peaks["torch_allocated"] == 3
    assert rungs[2].over_first.training_peaks["torch_allocated"] == 1.5
    assert rungs[2].over_previous.training_peaks["nvml_process"] == pytest.approx(62 / 22)


def test_repeats_are_one_rung_at_their_median() -> None:
    again = [run(RUNGS[1], 4.0, 30, serial=1), run(RUNGS[1], 1.0, 50, serial=2)]
    records = measured() + again
    rung = one(records, [r.cell for r in measured()]).rungs[1]
    assert (rung.processes, rung.tokens_per_s) == (3, 400)
    assert rung.training_peaks["torch_allocated"] == 30 * GIB
    assert len(rung.record_ids) == 3


def test_running_out_of_memory_is_a_rung_without_ratios() -> None:
    records = measured()
    order = [r.cell for r in records]
    records[1] = failed(RUNGS[1])
    rungs = one(records, order).rungs
    assert (rungs[1].status, rungs[1].message, rungs[1].tokens_per_s) == ("oom", "no room", None)
    assert rungs[1].training_peaks["torch_allocated"] == 70 * GIB
    assert rungs[1].over_previous is None and rungs[1].over_first is None
    assert rungs[2].over_previous is None, "the rung before has no number"
    assert rungs[2].over_first and rungs[2].over_first.tokens_per_s == 4


def test_first_is_the_first_that_ended_ok() -> None:
    records = measured()
    order = [r.cell for r in records]
    records[0] = failed(RUNGS[0])
    rungs = one(records, order).rungs
    assert rungs[1].over_first is None
    assert rungs[3].over_first and rungs[3].over_first.tokens_per_s == 4


def test_a_failed_repeat_does_not_spoil_a_rung() -> None:
    records = measured()
    rung = one([*records, failed(RUNGS[1], "crashed")], [r.cell for r in records]).rungs[1]
    assert (rung.status, rung.processes, rung.tokens_per_s, rung.message) == ("ok", 1, 400, None)


def test_a_rung_without_a_record_stays_in_its_place() -> None:
    records = measured()
    rungs = one([records[0], records[3]], [r.cell for r in records]).rungs
    assert [rung.status for rung in rungs] == ["ok", None, None, "ok"]
    assert rungs[3].over_previous is None
    assert rungs[3].over_first and rungs[3].over_first.tokens_per_s == 8


def test_precisions_are_ladders_of_their_own_and_other_records_are_left_out() -> None:
    other = [run(fields | {"precision": "nf4"}, 1.0, 8) for fields in RUNGS[:2]]
    lone = run(RUNGS[0] | {"r": 64}, 1.0, 8)
    unlisted = run(RUNGS[0] | {"seed": 1}, 1.0, 8)
    order = [r.cell for r in [*measured(), *other, lone]]
    made = ladders([*other, *measured(), lone, unlisted], order)
    assert [one.shared["precision"] for one in made] == ["bf16", "nf4"]
    assert [len(one.rungs) for one in made] == [4, 2]


def test_unlike_environments_are_refused_with_what_differs() -> None:
    records = measured()
    records[2] = run(RUNGS[2], 1.0, 60, env=synthetic.environment(torch="2.12.0", driver="590.1"))
    with pytest.raises(InputError) as raised:
        ladders(records, [r.cell for r in records])
    assert "driver: 580.1, 590.1; package.torch: 2.11.0, 2.12.0" in raised.value.what
    assert raised.value.mend == "give the records of one"


def test_the_shipped_suite_is_a_ladder_a_precision_and_changes_one_thing_at_a_time() -> None:
    order = ladder.shipped_order()
    assert not suite.load(suite.find("ladder")).warnings
    records = [synthetic.unfinished(cell.backend, "oom", "x", cell=cell.model_dump()) for cell in order]
    made = ladders(records, order)
    assert [one.shared["precision"] for one in made] == ["nf4", "bf16"]
    assert [len(one.rungs) for one in made] == [12, 11]
    for one_ladder in made:
        for rung in one_ladder.rungs[1:]:
            fields = [change.field for change in rung.changes]
            into_unsloth = fields == ["backend", "padding_free"] and rung.cell.backend == "unsloth"
            assert len(fields) == 1 or into_unsloth, rung.name
    rungs = [rung.cell for one_ladder in made for rung in one_ladder.rungs]
    varied = {name for name in Cell.model_fields if len({getattr(cell, name) for cell in rungs}) > 1}
    assert varied <= {*RUNG_FIELDS, "precision"}
    controls = [cell for cell in order if cell not in rungs]
    assert [cell.precision for cell in controls] == ["nf4", "bf16"]
    assert all(cell.model_copy(update={"seed": rungs[0].seed}) in rungs for cell in controls)
