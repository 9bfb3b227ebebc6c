"""What README and docs/claims.md say of the claims is what the committed records give today."""

import re
from collections import Counter
from pathlib import Path

import pytest

from bench.claims.verdict import ClaimVerdict, Evidence, verdicts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, ClaimVerdict]:
    return {one.id: one for one in verdicts(Evidence.read([ROOT / "results"]))}


def test_readme_counts_the_verdicts(found: dict[str, ClaimVerdict]) -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.search(r"A rate needs an interval to count\. On [-\d]+: ([^.]*)\.", text)
    assert told is not None
    parts = (part.strip().partition(" ") for part in told.group(1).split(","))
    assert {name: int(count) for count, _, name in parts} == Counter(one.verdict for one in found.values())


def test_the_documented_table_has_every_decided_claim_with_its_verdict(found: dict[str, ClaimVerdict]) -> None:
    text = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").partition("## So far")[2]
    rows = re.findall(r"^\| ([\w., -]+?) \| (supported|partly|refuted) \|", text, re.MULTILINE)
    told = {id: verdict for ids, verdict in rows for id in ids.split(", ")}
    assert told == {id: one.verdict for id, one in found.items() if one.verdict in ("supported", "partly", "refuted")}
    counts = Counter(one.verdict for one in found.values())
    decided = ", ".join(f"{counts[name]} {name}" for name in ("supported", "partly", "refuted", "inconclusive"))
    assert decided in " ".join(text.split())
