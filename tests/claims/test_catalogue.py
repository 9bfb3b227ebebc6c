"""The catalogue: every claim is complete, and what it names exists and can answer it."""

from collections import defaultdict

import pytest
from pydantic import ValidationError

from bench import suite
from bench.claims import claim
from bench.claims.claim import SUITES, Claim, Part, Rule, catalogue, chosen, matches, suite_path
from bench.claims.experiment import KINDS
from bench.claims.readings import READINGS
from bench.claims.verdict import commands
from bench.errors import InputError

CLAIMS = list(catalogue().values())
PARTS = [pytest.param(part, id=f"{one.id}-{number}") for one in CLAIMS for number, part in enumerate(one.parts)]
SEEDS = {
    "speed-2-5x", "memory-80", "consumer-7b", "full-ft-cost", "lora-merge-free", "lora-small", "lora-modular",
    "start-r8-16", "grad-accum", "mixed-precision", "prompt-format",
}  # fmt: skip


def test_it_has_the_seed_claims_and_more() -> None:
    assert {one.id for one in CLAIMS if one.group == "project"} == SEEDS
    assert sum(not one.not_testable for one in CLAIMS) >= 25
    assert all(not catalogue()[id].not_testable for id in SEEDS)


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.id)
def test_a_claim_has_source_date_and_a_way_to_be_tested_or_a_reason(one: Claim) -> None:
    assert one.source and one.date and one.statement
    assert bool(commands(one)) != bool(one.not_testable)
    if one.parts and not any(part.metric == "kernel_speedup" for part in one.parts):
        assert one.stated or one.chosen


@pytest.mark.parametrize("part", PARTS)
def test_what_a_part_names_exists(part: Part) -> None:
    if part.suites:
        assert part.cells()
        for name in part.suites:
            assert any(matches(cell, part.where) for cell in claim.suite_cells(name)), name
    if part.experiment:
        assert part.measure in READINGS[part.experiment]


@pytest.mark.parametrize("part", [p for p in PARTS if p.values[0].baseline])  # type: ignore[union-attr]
def test_a_contrast_has_both_sides_in_every_suite(part: Part) -> None:
    fields = sorted({*part.baseline, *part.candidate})
    for name in part.suites:
        groups = defaultdict(list)
        for cell in claim.suite_cells(name):
            if matches(cell, part.where):
                groups[cell.twin_key(*fields)].append(cell)
        pairs = [
            group for group in groups.values()
            if any(matches(c, part.baseline) for c in group) and any(matches(c, part.candidate) for c in group)
        ]  # fmt: skip
        assert pairs, name


def test_every_experiment_and_suite_is_asked_for() -> None:
    parts = [part for one in CLAIMS for part in one.parts]
    assert {part.experiment for part in parts if part.experiment} == set(KINDS) == set(READINGS)
    assert {path.stem for path in SUITES.glob("*.yaml")} <= {name for part in parts for name in part.suites}


def test_suites_are_named_as_their_files() -> None:
    for path in SUITES.glob("*.yaml"):
        loaded = suite.load(path)
        assert loaded.name == path.stem and not loaded.warnings
    assert suite_path("ladder") == suite.find("ladder")


def test_unknown_ids_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'speed-2-5x'"):
        chosen(["speed-2-5"])
    assert [one.id for one in chosen(["lora-small", "lora-small"])] == ["lora-small"]


@pytest.mark.parametrize("content, said", [
    ({"kind": "range", "low": 2}, "high"),
    ({"kind": "at_least"}, "low"),
    ({"kind": "at_least", "low": 1, "at": [8]}, "plateau"),
    ({"kind": "plateau", "high": 0.03}, "plateau"),
])  # fmt: skip
def test_half_a_rule_is_refused(content: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Rule.model_validate(content)


def test_a_part_without_its_test_or_with_an_unknown_field_is_refused() -> None:
    rule = Rule(kind="at_least", low=1)
    with pytest.raises(ValidationError, match="baseline"):
        Part(metric="speedup", rule=rule, suites=("ladder",))
    with pytest.raises(ValidationError, match="bakend"):
        Part(metric="vram_gib", rule=rule, suites=("ladder",), where={"bakend": "unsloth"})


def test_a_claim_that_is_neither_tested_nor_explained_is_refused() -> None:
    with pytest.raises(ValidationError, match="not_testable"):
        Claim(id="x", group="project", statement="s", source="s", date="d")
