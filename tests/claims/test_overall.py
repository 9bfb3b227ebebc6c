"""The paragraph to be quoted: its numbers are those of the records, and it says what was not measured."""

from pathlib import Path

from bench.claims.claim import Rule
from bench.claims.overall import paragraph
from bench.claims.section import section
from bench.claims.verdict import Evidence, verdicts
from tests.claims.test_verdict import FASTER, SLOWER, claim, pair_part, runs
from tests.synthetic import environment

SPEED = claim(pair_part()).model_copy(update={"id": "speed-2-5x"})
MEMORY = claim(pair_part("vram_saving", Rule(kind="up_to", high=0.8))).model_copy(update={"id": "memory-80"})


def test_numbers_extremes_versions_and_what_was_not_measured(tmp_path: Path) -> None:
    """Two settings of speed would need two suites: one setting, run on two drivers, counts once."""
    records = runs(tmp_path, "hf-peft", SLOWER, peak_gib=40) + runs(tmp_path, "unsloth", FASTER, peak_gib=10)
    newer = environment(driver="590.0")
    records += runs(tmp_path, "hf-peft", SLOWER[:1], peak_gib=40, env=newer)
    records += runs(tmp_path, "unsloth", FASTER[:1], peak_gib=20, env=newer)
    told = paragraph(verdicts(Evidence(records=records), [SPEED, MEMORY]), [one.record for one in records])
    assert told.startswith("1 x Test GPU, 2026-01-01, torch 2.11.0")
    assert "in the median of 1 setting (2.00x to 2.00x; 1 with an interval)" in told
    assert "62 % (62 % to 62 %) by torch allocated" in told  # the median of 75 and 50 %
    assert told.endswith(
        "median and extremes of 1 setting; and the length that fits into the same memory was not measured."
    )


def test_without_either_there_is_no_paragraph(tmp_path: Path) -> None:
    records = runs(tmp_path, "hf-peft", SLOWER) + runs(tmp_path, "unsloth", FASTER)
    assert paragraph(verdicts(Evidence(records=records), [claim(pair_part())]), []) == ""
    made = section(verdicts(Evidence(records=records), [claim(pair_part())]))
    assert made is not None and "to be quoted" not in made.text
