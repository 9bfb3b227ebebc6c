"""The ladder on the page and in the Markdown: where bars stand, what failed rungs say."""

from bench.report.ladder import view
from bench.report.page import make_templates
from bench.report.rows import METER_NAMES
from tests.test_ladder import RUNGS, failed, measured, one


def test_bars_go_from_the_rung_before_to_the_rung() -> None:
    records = measured()
    shown = view(one(records, [r.cell for r in records]))
    assert [(s.start, s.end, s.kind) for s in shown.speed] == [
        (0, 200, "whole"), (200, 400, "better"), (400, 800, "better"), (0, 1600, "whole"),
    ]  # fmt: skip
    assert [(s.start, s.end, s.kind) for s in shown.memory] == [
        (0, 42, "whole"), (42, 22, "better"), (22, 62, "worse"), (0, 12, "whole"),
    ]  # fmt: skip
    assert shown.speed[2].text == "800 (2.00x)"


def test_a_gap_has_no_bar_and_the_next_one_stands_on_zero() -> None:
    records = measured()
    order = [r.cell for r in records]
    records[1] = failed(RUNGS[1])
    shown = view(one(records, order))
    assert (shown.speed[1].kind, shown.speed[1].text, shown.speed[1].end) == ("none", "oom", None)
    assert (shown.speed[2].kind, shown.speed[2].start, shown.speed[2].text) == ("whole", 0, "800")
    assert shown.rows[1].peaks[0] == "≥ 70.00"


def test_markdown_shows_every_rung() -> None:
    records = measured()
    order = [r.cell for r in records]
    records[1] = failed(RUNGS[1])
    names = {"ladder": view(one(records, order)), "meters": METER_NAMES}
    text = make_templates().get_template("ladder.md.j2").render(names)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4 and len({row.count("|") for row in rows}) == 1
    assert "backend: hf-peft → unsloth; gradient_checkpointing: off → on" in text
