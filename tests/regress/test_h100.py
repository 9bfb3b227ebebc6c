"""Pairs of processes on an H100, judged as `peftmark regress` does: two releases, and a release against itself."""

from itertools import pairwise
from pathlib import Path

import pytest

from bench.regress import policy
from bench.regress.levels import paired
from bench.regress.levels.pairs import SIDES, Runs
from bench.regress.sequential import Look
from bench.regress.verdict import MetricVerdict
from bench.store import Loaded, load

RESULTS = Path(__file__).parents[2] / "results"
TEXT = (Path(__file__).parents[2] / "docs" / "regress.md").read_text(encoding="utf-8")
MEMORY = [name for name in paired.READINGS if name.startswith("memory/")]


def judged(found: list[tuple[Loaded, Loaded]]) -> dict[str, MetricVerdict]:
    """Pair after pair, as they were run: what is decided at a look stays so."""
    runs, looks, rules = Runs(), dict[str, Look](), policy.load()
    for pair in found:
        runs.pairs.append(pair)
        paired._decided(runs, looks, rules)
    return {metric.name: metric for metric in paired._metrics(runs, looks, rules)}


def test_two_releases_are_what_the_docs_say_of_them() -> None:
    folder = RESULTS / "releases" / "h100" / "unsloth-2026.10.8-2026.10.9"
    pairs = []
    for number in range(1, 5):
        (old,), (new,) = (load(folder / f"pair-{number}" / side)[0] for side in SIDES)
        pairs.append((old, new))
    assert {one.record.environment.packages["unsloth"].version for one, _ in pairs} == {"2026.10.8"}
    assert {one.record.environment.packages["unsloth"].version for _, one in pairs} == {"2026.10.9"}
    found = judged(pairs)
    assert {found[name].verdict for name in MEMORY} == {"unchanged"}
    work = found["speed/gpu_work_s"]
    assert work.effect is not None and work.low is not None and work.high is not None
    assert work.verdict == found["speed/tokens_per_s"].verdict == "inconclusive"
    assert f"| {100 * work.effect:+.1f} % | 99.8 % [{100 * work.low:+.1f}, {100 * work.high:+.1f}] |" in TEXT


@pytest.mark.parametrize("backend", ["hf-peft", "unsloth"])
def test_a_release_against_itself_is_unchanged(backend: str) -> None:
    """The processes of h100-control on one machine, each with the next one of its backend, the order turned."""
    runs = [
        one for one in load(RESULTS)[0] if one.record.suite == "h100-control" and one.record.cell.backend == backend
    ]
    first = [one for one in runs if one.record.environment.git_revision == runs[0].record.environment.git_revision]
    first.sort(key=lambda one: one.record.started_at)
    couples = list(pairwise(first))[::2]
    found = judged([couple if number % 2 == 0 else couple[::-1] for number, couple in enumerate(couples)])
    assert len(couples) == 6 and {found[name].verdict for name in MEMORY} == {"unchanged"}
    assert {name for name, one in found.items() if one.verdict != "unchanged"} == {"speed/tokens_per_s"}
    assert ("speed/gpu_work_s" in found) is (backend == "hf-peft")
