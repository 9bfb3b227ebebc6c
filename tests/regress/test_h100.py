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
RELEASES = RESULTS / "releases" / "h100"
TEXT = (Path(__file__).parents[2] / "docs" / "regress.md").read_text(encoding="utf-8")
MEMORY = [name for name in paired.READINGS if name.startswith("memory/")]
GPU, RATE = paired.GPU_WORK, paired.SPEED
Pairs = list[tuple[Loaded, Loaded]]


def judged(found: Pairs) -> dict[str, MetricVerdict]:
    """Pair after pair, as they were run: what is decided at a look stays so."""
    runs, looks, rules = Runs(), dict[str, Look](), policy.load()
    for pair in found:
        runs.pairs.append(pair)
        paired._decided(runs, looks, rules)
    return {metric.name: metric for metric in paired._metrics(runs, looks, rules)}


def kept(name: str) -> Pairs:
    """The pairs of one folder of runs, in order."""
    pairs = []
    for number in range(1, 1 + len(list((RELEASES / name).glob("pair-*")))):
        (base,), (cand,) = (load(RELEASES / name / f"pair-{number}" / side)[0] for side in SIDES)
        pairs.append((base, cand))
    return pairs


def told(metric: MetricVerdict) -> str:
    """As the table of docs/regress.md has it."""
    assert metric.effect is not None and metric.low is not None and metric.high is not None and metric.level
    effect, low, high = (100 * part for part in (metric.effect, metric.low, metric.high))
    if metric.low == metric.high:
        return f"{metric.verdict} | {effect:+.1f} % | the same in every pair"
    return f"{metric.verdict} | {effect:+.1f} % | {100 * metric.level:.4g} % [{low:+.1f}, {high:+.1f}]"


@pytest.mark.parametrize(("rows", "gpu", "memory"), [
    ("", "improved", dict.fromkeys(MEMORY, "regressed")),
    ("-8-rows", "inconclusive", dict.fromkeys(MEMORY, "unchanged") | {MEMORY[0]: "regressed"}),
    ("-2-rows", "inconclusive", dict.fromkeys(MEMORY, "unchanged")),
])  # fmt: skip
def test_two_releases_are_what_the_docs_say_of_them(rows: str, gpu: str, memory: dict[str, str]) -> None:
    pairs = kept(f"unsloth-2026.10.8-2026.10.9{rows}")
    for side, version in enumerate(("2026.10.8", "2026.10.9")):
        assert {pair[side].record.environment.packages["unsloth"].version for pair in pairs} == {version}
    found = judged(pairs)
    assert {name: found[name].verdict for name in MEMORY} == memory
    assert found[GPU].verdict == gpu and found[RATE].verdict == "inconclusive"
    for name in (GPU, RATE, *([] if rows else MEMORY)):
        assert told(found[name]) in TEXT, told(found[name])


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


@pytest.mark.parametrize(("rows", "gpu"), [("", "unchanged"), ("-8-rows", "inconclusive")])
def test_the_newest_release_against_itself_gives_no_false_alarm(rows: str, gpu: str) -> None:
    """With sixteen rows the command made three pairs; two more are processes of 2026.10.9 that followed each other."""
    pairs = kept(f"unsloth-2026.10.9-2026.10.9{rows}")
    if not rows:
        newer = [candidate for _, candidate in kept("unsloth-2026.10.8-2026.10.9")]
        pairs += [(newer[0], newer[1]), (newer[3], newer[2])]
    found = judged(pairs)
    assert {found[name].verdict for name in MEMORY} == {"unchanged"}
    assert all(found[name].effect == 0 for name in MEMORY)
    assert found[GPU].verdict == gpu and found[RATE].verdict == "inconclusive"
    assert told(found[GPU]) in TEXT and told(found[RATE]) in TEXT, (told(found[GPU]), told(found[RATE]))
