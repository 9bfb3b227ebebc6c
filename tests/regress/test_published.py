"""The published history of Unsloth: of one revision, in order, and what docs/regress.md says of it is in the files."""

import re
from pathlib import Path

import pytest

from bench.regress import history
from bench.regress.bisect import Bisection
from bench.regress.history import Entry

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results" / "releases"
TEXT = (ROOT / "docs" / "regress.md").read_text(encoding="utf-8").partition("## History of Unsloth")[2]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if "| 2026-" in line]
ENTRIES = history.read(FOLDER / "unsloth-cpu.jsonl")[: len(ROWS)]
"""Those of the table: the workflow appends newer ones."""
BISECTIONS = sorted(FOLDER.glob("bisect-*.json"))


def row(entry: Entry) -> list[str]:
    """The first cells of the release's row."""
    release = entry.release
    locked = {item.name: item for item in release.lock}
    states = [r.state for r in release.readings if r.level == "kernels" and r.state]
    verdict = "passed" if entry.against else "first that imports" if entry.good else "does not import"
    if entry.improved:
        verdict += f", {len(entry.improved)} improved"
    counts = ", ".join(str(states.count(state)) for state in ("good", "bad", "unknown"))  # type: ignore[arg-type]
    return [release.version, str(locked["unsloth"].built), locked["unsloth-zoo"].version, verdict, counts]


def test_history_is_of_one_clean_revision_and_in_order() -> None:
    releases = [entry.release for entry in ENTRIES]
    assert len(releases) >= 12 and not any(entry.regressed for entry in ENTRIES)
    assert {(r.git_revision, r.git_dirty, r.checks_sha256, r.machine) for r in releases} == {
        (releases[0].git_revision, False, releases[0].checks_sha256, releases[0].machine)
    }
    assert str(releases[0].git_revision)[:7] in TEXT
    versions = [tuple(map(int, r.version.split("."))) for r in releases]
    assert versions == sorted(set(versions))
    assert [entry.against for entry in ENTRIES if entry.against] == [r.version for r in releases[1:-1]]


def test_every_row_of_the_table_is_that_of_the_file() -> None:
    assert [cells[:5] for cells in ROWS] == [row(entry) for entry in ENTRIES]


@pytest.mark.parametrize("file", BISECTIONS, ids=lambda file: file.stem)
def test_a_bisection_holds_what_it_found(file: Path) -> None:
    kept = Bisection.model_validate_json(file.read_text(encoding="utf-8"))
    checked = {one.release.version: one for one in kept.releases}
    assert {one.release.git_revision for one in kept.releases} == {ENTRIES[0].release.git_revision}
    assert kept.changed and not checked[kept.last_without].changed and file.stem.endswith(kept.first_with)
    states = {name: [checked[v].release.by_name[name].state for v in (kept.last_without, kept.first_with)]
              for name in kept.changed}  # fmt: skip
    assert set(map(tuple, states.values())) == {("bad", "good")}
    assert re.search(rf"\| {re.escape(kept.last_without)} \| {re.escape(kept.first_with)} \|.*{file.name}", TEXT)
