"""The claims on the page: who is told, what the lines say, and that the charts are valid and draw those rows."""

from pathlib import Path

import altair as alt
import pytest

from bench.claims.claim import Rule
from bench.claims.section import section
from bench.claims.verdict import Evidence, verdicts
from bench.report.payload import rows_of
from bench.report.view import anchor
from tests.claims.test_verdict import FASTER, SLOWER, claim, pair_part, runs


def test_a_claim_is_a_line_with_both_numbers_its_verdict_and_links_to_its_runs(tmp_path: Path) -> None:
    records = runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER)
    made = section(verdicts(Evidence(records=records), [claim(pair_part())]))
    assert made is not None
    ((row,),) = [table.rows for table in made.tables]
    assert row.cells[0].text == "s" and row.cells[2].text == "at least 2x"
    assert row.cells[3].text.partition("x [")[0] in ("1.99", "2", "2.01")
    assert row.cells[4].tag == "supported"
    assert {link.href for link in row.cells[5].links} == {f"#{anchor(one.record.id)}" for one in records}


def test_of_many_runs_a_line_leads_to_the_first_and_says_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.claims.section.LINKS", 2)
    records = runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER)
    made = section(verdicts(Evidence(records=records), [claim(pair_part())]))
    assert made is not None
    cell = made.tables[0].rows[0].cells[5]
    assert len(cell.links) == 2 and cell.sub == f"and {len(records) - 2} more: peftmark claims verdict --json"


def test_each_unit_has_a_valid_chart_of_its_rows(tmp_path: Path) -> None:
    records = runs(tmp_path, "hf-peft", SLOWER, peak_gib=40) + runs(tmp_path, "unsloth", FASTER, peak_gib=10)
    saving = pair_part("vram_saving", Rule(kind="up_to", high=0.8))
    made = section(verdicts(Evidence(records=records), [claim(pair_part(), saving)]))
    assert made is not None and [chart.id for chart in made.charts] == ["claims-x", "claims-share"]
    for chart in made.charts:
        alt.Chart.from_dict(dict(chart.spec), validate=True)
        ((row,),) = rows_of(made.data, chart).values()
        assert row["claimed_low"] == row["claimed_high"] and row["low"] <= row["measured"] <= row["high"]


def test_claims_without_a_record_are_counted_and_a_page_without_any_has_no_section(tmp_path: Path) -> None:
    records = runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER)
    nowhere = claim(pair_part(suite="h100-tinyllama"))
    made = section(verdicts(Evidence(records=records), [claim(pair_part()), nowhere]))
    assert made is not None and "Of 1 others these records say nothing" in made.text
    assert section(verdicts(Evidence(records=[]))) is None
