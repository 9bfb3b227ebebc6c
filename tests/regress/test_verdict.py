"""Verdicts, the policy and the outputs, on releases whose readings are made up."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.regress import history, outputs, policy
from bench.regress.history import Entry
from bench.regress.reading import LevelRun, Locked, Reading, Release
from bench.regress.verdict import compare
from bench.regress.watch import watch

RULES = policy.load()


def release(version: str, *readings: Reading, could_not: str | None = None, checks: str = "c" * 16) -> Release:
    return Release(
        created=datetime(2026, 11, 1, tzinfo=UTC), package="unsloth", version=version, machine="Test CPU",
        lock=[Locked(name="unsloth", version=version, source="index", sha256="a" * 64)],
        environment={"package.unsloth": version, "cpu": "Test CPU"}, checks_sha256=checks,
        levels={"model": LevelRun(seconds=1.0, could_not=could_not)}, readings=list(readings),
    )  # fmt: skip


def verdicts(*sides: Reading | None) -> dict[str, str]:
    old, new = (release(v, *([side] if side else [])) for v, side in zip("12", sides, strict=True))
    return {metric.name: metric.verdict for metric in compare(old, new, RULES).metrics}


@pytest.mark.parametrize(("old", "new", "verdict"), [
    ("good", "bad", "regressed"), ("bad", "good", "improved"), ("good", "good", "unchanged"),
    ("bad", "bad", "unchanged"), ("good", "unknown", "inconclusive"), (None, "bad", "inconclusive"),
    (None, "good", "unchanged"),
])  # fmt: skip
def test_states(old: str | None, new: str, verdict: str) -> None:
    sides = [Reading.model_validate({"name": "model/x", "state": s}) if s else None for s in (old, new)]
    assert verdicts(*sides)["model/x"] == verdict


def test_a_demand_that_only_the_candidate_has_is_a_regression_that_says_both_versions() -> None:
    demand = Reading(name="static/requirements/torch", state="bad", text="wants torch<2.11; here is 2.13.0")
    found = compare(release("1"), release("2", demand), RULES)
    assert [(m.name, m.baseline, m.candidate) for m in found.failed] == [
        ("static/requirements/torch", "good: met", "bad: wants torch<2.11; here is 2.13.0")
    ]
    assert found.exit_code == 1


def test_a_count_may_not_change_at_all() -> None:
    def count(n: int) -> Reading:
        return Reading(name="model/trained parameters", values=[n], exact=True, better="equal")

    assert verdicts(count(18368), count(18368))["model/trained parameters"] == "unchanged"
    assert verdicts(count(18368), count(18367))["model/trained parameters"] == "regressed"
    assert verdicts(count(18368), count(18369))["model/trained parameters"] == "regressed"


def test_times_of_several_processes_have_an_interval_and_a_detectable_effect() -> None:
    old = Reading(name="static/import_s", values=[10.0, 10.1, 9.9, 10.0], unit="s")
    new = Reading(name="static/import_s", values=[20.0, 20.2, 19.9, 20.1], unit="s")
    one = next(m for m in compare(release("1", old), release("2", new), RULES).metrics if m.name == old.name)
    assert one.verdict == "regressed" and not one.gate
    assert one.low is not None and one.high is not None and one.low < 1.0 < one.high and one.mde
    single = old.model_copy(update={"values": [10.0]})
    one = next(m for m in compare(release("1", single), release("2", new), RULES).metrics if m.name == old.name)
    assert one.verdict == "inconclusive" and "of at least 3 processes" in one.why


def test_a_level_that_ran_on_one_side_alone_regressed_and_on_neither_could_not_run() -> None:
    broken = release("2", could_not="the process died")
    assert [m.name for m in compare(release("1"), broken, RULES).failed] == ["model/ran"]
    neither = compare(release("1", could_not="no triton"), broken, RULES)
    assert neither.exit_code == 2 and neither.could_not == ["model: the process died"]


def test_releases_measured_by_other_checks_are_refused_unless_allowed_and_then_it_is_said() -> None:
    sides = release("1"), release("2", checks="d" * 16)
    with pytest.raises(InputError, match="1 and 2, checks"):
        compare(*sides, RULES)
    assert compare(*sides, RULES, across=["checks"]).differences == [f"checks: {'c' * 16} and {'d' * 16}"]


def test_a_faulty_policy_names_line_field_and_mend(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules:\n  - match: speed/*\n    margin: -1\n    gates: true\n")
    with pytest.raises(InputError) as told:
        policy.load(file)
    assert "line 3" in str(told.value) and "rules[0].gates" in str(told.value) and "policy.yaml" in str(told.value)


def test_every_default_rule_has_a_reason_and_a_gate_can_be_taken_away(tmp_path: Path) -> None:
    assert all(rule.why for rule in RULES.rules)
    file = tmp_path / "policy.yaml"
    file.write_text('rules:\n  - {match: "model/*", gate: false}\n')
    sides = [release(v, Reading(name="model/x", state=s)) for v, s in (("1", "good"), ("2", "bad"))]  # type: ignore[arg-type]
    found = compare(sides[0], sides[1], policy.load(file))
    assert found.exit_code == 0 and outputs.rows(found)[0].note == "does not fail the check"


def test_markdown_and_rows_put_like_cases_of_a_family_into_one_row() -> None:
    def cases(state: str, error: float) -> list[Reading]:
        text = f"failed: loss: {error} tolerances at (0,)" if state == "bad" else ""
        fields = [{"name": f"kernels/swiglu/case {i}/float32/unsloth", "state": state, "text": text} for i in range(3)]
        return [Reading.model_validate(field) for field in fields]

    found = compare(release("1", *cases("good", 0)), release("2", *cases("bad", 12.5)), RULES)
    assert [row.metric for row in outputs.rows(found)] == [
        "kernels/swiglu: 3, e.g. kernels/swiglu/case 0/float32/unsloth"
    ]
    text = outputs.markdown(found)
    assert "❌ unsloth 1 -> 2: REGRESSED (3 regressions fail the check" in text and "12.5 tolerances" in text


def test_junit_has_a_failure_a_skip_and_an_error(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    old = release("1", Reading(name="model/a", state="good"), Reading(name="model/b", state="good"))
    new = release("2", Reading(name="model/a", state="bad", text="a\x00b"), Reading(name="model/b", state="unknown"))
    outputs.junit(compare(old, new, RULES), tmp_path / "junit.xml")
    suites = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    results = {case.name: [type(result).__name__ for result in case.result] for suite in suites for case in suite}
    assert results == {"a": ["Failure"], "b": ["Skipped"], "ran": []}


def test_watch_compares_with_the_last_good_release_and_marks_the_chart(tmp_path: Path) -> None:
    file, seen = tmp_path / "history.jsonl", []

    def measured(version: str) -> Release:
        seen.append(version)
        state = "bad" if version == "2" else "good"
        return release(version, Reading.model_validate({"name": "model/x", "state": state}))

    assert watch(file, ["1"], measured, RULES).new
    assert not watch(file, ["1"], measured, RULES).new
    bad = watch(file, ["1", "2"], measured, RULES)
    assert bad.comparison and bad.comparison.exit_code == 1
    good = watch(file, ["1", "2", "3"], measured, RULES)
    assert good.comparison and good.comparison.baseline.version == "1" and good.comparison.exit_code == 0
    assert seen == ["1", "2", "3"]
    entries = history.read(file)
    assert [(e.release.version, e.good, e.against) for e in entries] == [
        ("1", True, None), ("2", False, "1"), ("3", True, "1"),
    ]  # fmt: skip
    series = {one.name: one for one in history.series(entries)}["model"]
    assert [(p.value, p.mark) for p in series.points] == [(0.0, None), (1.0, "regressed"), (0.0, None)]


def test_watch_measures_the_baseline_again_where_the_checks_have_changed(tmp_path: Path) -> None:
    file, seen = tmp_path / "history.jsonl", []
    history.append(file, Entry(release=release("1", checks="old"), good=True))

    def measured(version: str) -> Release:
        seen.append(version)
        return release(version, Reading(name="model/x", state="good"))

    watched = watch(file, ["1", "2"], measured, RULES)
    assert watched.comparison and seen == ["2", "1"]


def test_a_broken_line_of_a_history_is_named(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history.append(file, Entry(release=release("1"), good=True))
    with file.open("a") as stream:
        stream.write(json.dumps({"good": True}) + "\n")
    with pytest.raises(InputError, match="line 2, release"):
        history.read(file)
