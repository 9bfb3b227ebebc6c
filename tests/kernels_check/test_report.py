"""The page and the comparison, from small records made here: what is told, left out and escaped."""

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import environment
from bench.errors import InputError
from bench.groups import machine_name
from kernels_check.cli import app
from kernels_check.mutate import MutationRecord, Outcome, Verdict
from kernels_check.page import report
from kernels_check.page.compare import Comparison, compare
from kernels_check.page.reading import read, read_check, read_folder
from kernels_check.page.timings import Timings, speed_rows
from kernels_check.record import Entry, Error, KernelRecord, Status, Unavailable, write

NASTY = "<script>alert(1)</script>"


def error(tolerances: float, result: str = "Y") -> Error:
    return Error(result=result, tolerances=tolerances, index=[0, 3], got="1", expected="2", tolerance=0.1)


def entry(case: str = "plain", status: Status = "passed", **rest: Any) -> Entry:
    given = {"family": "norm", "dtype": "float32", "candidate": "unsloth", "seed": 0} | rest
    return Entry(case=case, status=status, **given)


def record(*entries: Entry, unsloth: str = "2026.1.1", **rest: Any) -> KernelRecord:
    given = {"device": "cpu", "seed": 0, "checks_sha256": "a" * 64, "not_covered": ["speed"], "seconds": 1.0} | rest
    return KernelRecord(
        created=datetime(2026, 1, 2, tzinfo=UTC),
        unsloth_copy="installed",
        versions={"unsloth": unsloth, "torch": "2"},
        environment=environment.current(),
        entries=list(entries),
        unavailable=[Unavailable(family="fp8", reason="no case yet")],
        **given,
    )


def benchmark(candidate: str, median: float, **rest: Any) -> dict[str, Any]:
    info = {
        "family": "norm", "shape": "llama-8b", "dims": {"rows": 4096}, "dtype": "bfloat16", "direction": "forward",
        "candidate": candidate, "bytes": 2_000_000, "flops": 0, "copies": 3, "cpu_bound_rounds": 0.0,
    }  # fmt: skip
    return bench_entry(median, info | rest)


def bench_entry(median: float, info: dict[str, Any]) -> dict[str, Any]:
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.2 * median, "iqr": 0.3 * median, "rounds": 20, "data": []}
    return {"name": "test_speed[x]", "group": "g", "stats": stats, "extra_info": info}


CEILINGS = [
    bench_entry(1e-3, {"ceiling": "bandwidth", "bytes": 1_000_000_000}),
    bench_entry(1e-3, {"ceiling": "bandwidth", "bytes": 2_000_000_000}),
    bench_entry(1e-2, {"ceiling": "matmul", "flops": 4_000_000_000_000}),
]


def timings(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {
        "datetime": "2026-01-03T10:00:00",
        "machine_info": {},
        "benchmarks": [*benchmarks, *CEILINGS],
        "skipped": [
            {"family": "norm", "shape": "llama-8b", "direction": "forward", "candidate": "liger", "reason": NASTY}
        ],
        "environment": environment.current().model_dump(mode="json"),
        "versions": {"unsloth": "2026.1.1"},
    }


def page_of(folder: Path) -> tuple[str, str]:
    report.write(folder, folder / "out")
    return tuple((folder / "out" / name).read_text("utf-8") for name in ("index.html", "report.md"))  # type: ignore[return-value]


def told(found: Comparison) -> set[tuple[str, str, str, int]]:
    return {(one.kind, one.old, one.new, one.count) for one in found.changes}


def test_nothing_differs_between_a_record_and_itself() -> None:
    one = record(entry(forward=error(0.9), launched={"k": 1}), entry("b", "failed", reason="Y: 3 tolerances at (1,)"))
    found = compare(one, one)
    assert (found.header, found.changes, found.common) == ([], [], 2)


def test_changes_of_status_kernels_and_errors_are_found_and_the_same_one_is_told_once() -> None:
    old = record(
        entry("a", launched={"k": 2}, forward=error(0.3), gradient=error(0.2, "dX")),
        entry("a", dtype="float16", launched={"k": 2}),
        entry("b", "failed", reason="dX: 1.2e+04 tolerances at (2, 3); overwrote the input X"),
        entry("c", "failed", reason="dX: inf tolerances at (); overwrote the input X"),
        entry("gone"),
        unsloth="2025.1.1",
    )  # fmt: skip
    new = record(
        entry("a", launched={"k": 1, "l": 1}, forward=error(0.61), gradient=error(0.39, "dX")),
        entry("a", "not exercised", dtype="float16", launched={"k": 1, "l": 1}, reason="not launched: k"),
        entry("b"),
        entry("c"),
        entry("fresh"),
    )
    found = compare(old, new)
    assert found.header == ["unsloth: 2025.1.1 -> 2026.1.1"]
    assert told(found) == {
        ("kernels", "k x2", "k, l", 2),
        ("forward", "0.3 tolerances, Y", "0.61 tolerances, Y", 1),
        ("status", "passed", "not exercised: not launched: k", 1),
        ("status", "failed: dX wrong; overwrote the input X", "passed", 2),
        ("status", "passed", "absent", 1),
        ("status", "absent", "passed", 1),
    }
    assert found.changes[0].places == "a (float32, float16)"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (error(0.04), error(0.09), False),  # more than twofold, but both far below what counts
        (error(0.04), error(0.11), True),
        (error(0.5), error(0.99), False),
        (error(0.0), error(0.2), True),
        (error(math.inf), error(math.inf), False),
        (error(math.inf), error(0.01), True),
        (error(0.1, "dX"), error(0.9, "dW"), False),  # the older release has no dW: its worst is of another result
        (error(0.1, "dX"), error(1.1, "dW"), True),
    ],
)
def test_which_errors_count_as_changed(old: Error, new: Error, found: bool) -> None:
    pair = record(entry(gradient=old)), record(entry(gradient=new))
    assert [one.kind for one in compare(*pair).changes] == (["gradient"] if found else [])


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("checks_sha256", "b" * 64)])
def test_other_checks_and_seeds_are_refused_unless_allowed(key: str, value: Any) -> None:
    old, new = record(entry()), record(entry(), **{key: value})
    with pytest.raises(InputError, match=rf"kernels compare, {key}: .*older.*newer[\s\S]*--across {key}"):
        compare(old, new)
    assert [text.partition(":")[0] for text in compare(old, new, [key]).header] == [key]
    with pytest.raises(InputError, match="--across sed: .*\n.*checks_sha256, seed"):
        compare(old, new, ["sed"])


def test_what_neither_release_can_run_is_no_change() -> None:
    old, new = (record(entry("a", "not runnable here", reason=f"unsloth {n} has no k")) for n in (1, 2))
    assert compare(old, new).changes == []


def test_another_device_is_said() -> None:
    assert "device: cpu -> cuda" in compare(record(entry()), record(entry(), device="cuda")).header


def test_the_command_prints_the_changes(tmp_path: Path) -> None:
    write(record(entry(), unsloth="2025.1.1"), tmp_path / "old.json")
    write(record(entry("plain", "failed", reason="[bold]broken")), tmp_path / "new.json")
    ran = CliRunner().invoke(
        app, ["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")], env={"COLUMNS": "200"}
    )
    assert ran.exit_code == 0
    assert "unsloth: 2025.1.1 -> 2026.1.1" in ran.output
    assert re.search(r"norm\s+unsloth\s+status\s+passed\s+failed: \[bold\]broken\s+1: plain \(float32\)", ran.output)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json: is not JSON"),
        ("[]", "x.json: has none of the fields benchmarks"),
        ('{"checks_sha256": "a", "schema_version": 99}', "x.json, schema_version: 99 is newer than 1"),
        ('{"checks_sha256": "a"}', r"x.json, created: Field required \(and \d+ more"),
        ('{"benchmarks": [{"extra_info": {"candidate": 1}}]}', "x.json, datetime: Field required"),
    ],
)
def test_a_bad_file_is_named_with_its_field_and_the_mend(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=rf"{message}[\s\S]*mend: \w+"):
        read(tmp_path / "x.json")
    ran = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_bad_entry_of_a_benchmark_names_its_place(tmp_path: Path) -> None:
    bad = timings(benchmark("eager", 1e-3), benchmark("unsloth", 1e-3, bytes=-1))
    (tmp_path / "x.json").write_text(json.dumps(bad))
    with pytest.raises(InputError, match=r"x.json, benchmarks\.1\.extra_info\.timed\.bytes: "):
        read(tmp_path / "x.json")


def test_absent_files_and_other_kinds_of_record_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.json: cannot be read: No such file"):
        read(tmp_path / "none.json")
    with pytest.raises(InputError, match="holds no JSON file"):
        read_folder(tmp_path)
    (tmp_path / "speed.json").write_text(json.dumps(timings()))
    with pytest.raises(InputError, match=r"speed.json: is no record of a check\n.*kernels check --out"):
        read_check(tmp_path / "speed.json")


def test_infinite_errors_survive_the_file(tmp_path: Path) -> None:
    write(record(entry(forward=error(math.inf))), tmp_path / "x.json")
    forward = read_check(tmp_path / "x.json").entries[0].forward
    assert forward and forward.tolerances == math.inf


def test_ratios_and_shares_of_the_roofline() -> None:
    made = Timings.model_validate(timings(
        benchmark("eager", 4e-6), benchmark("unsloth", 2e-6), benchmark("compile", 2e-6, flops=1_600_000_000),
        benchmark("unsloth", 8e-6, direction="forward+backward"),
    ))  # fmt: skip
    eager, unsloth, matmul, alone = speed_rows(made)["norm"]
    # 2 MB at the better of the two bandwidths, 2e12 bytes/s, is 1 us; 1.6 GFLOP at 4e14/s is 4 us.
    assert (eager.ratio, eager.share, eager.bound) == (None, pytest.approx(0.25), "memory")
    assert (unsloth.ratio, unsloth.share) == (pytest.approx(2.0), pytest.approx(0.5))
    assert (unsloth.ratio_low, unsloth.ratio_high) == (pytest.approx(2 * 0.9 / 1.2), pytest.approx(2 * 1.2 / 0.9))
    assert (matmul.share, matmul.bound) == (pytest.approx(2.0), "matmul")
    assert alone.ratio is None  # eager was not timed in that direction


def test_without_ceilings_there_is_no_share() -> None:
    made = timings(benchmark("eager", 1e-3))
    made["benchmarks"] = made["benchmarks"][:1]
    (row,) = speed_rows(Timings.model_validate(made))["norm"]
    assert (row.share, row.bound) == (None, None)


def test_a_page_of_one_check_has_only_its_sections(tmp_path: Path) -> None:
    write(record(entry(forward=error(0.5)), entry("b", "failed", known_fault="seen")), tmp_path / "cpu.json")
    html, markdown = page_of(tmp_path)
    for text in (html, markdown):
        assert "1 of 2" in text and "0.5" in text and "Known fault: seen" in text
        assert "fp8" in text  # not covered
        assert 'href="../cpu.json"' in text or "(../cpu.json)" in text
        for absent in ("Speed", "roofline", "aults seen", "Differences", "Whole models", "cuda: passed"):
            assert absent not in text
    assert not re.search(r"<(script|link|img)|https?://", html)


def test_everything_from_a_file_is_escaped(tmp_path: Path) -> None:
    bad = entry(NASTY, "failed", family=NASTY, candidate=NASTY, reason=NASTY, known_fault=NASTY, switched_off=[NASTY])
    write(record(bad, not_covered=[NASTY]), tmp_path / "new.json")
    write(record(entry(NASTY, family=NASTY, candidate=NASTY), unsloth="2025.1.1"), tmp_path / "old.json")
    speed = timings(benchmark("eager", 1e-3, shape=NASTY, family=NASTY, direction=NASTY, dtype=NASTY))
    (tmp_path / "speed.json").write_text(json.dumps(speed | {"datetime": NASTY, "versions": {NASTY: NASTY}}))
    html, markdown = page_of(tmp_path)
    assert "<script" not in html and "<script" not in markdown
    assert "&lt;script&gt;alert(1)" in html and "&lt;script&gt;alert(1)" in markdown


def test_both_devices_stand_side_by_side_and_each_table_names_its_file(tmp_path: Path) -> None:
    write(record(entry(forward=error(0.25))), tmp_path / "cpu.json")
    write(record(entry(forward=error(0.75)), device="cuda"), tmp_path / "cuda.json")
    html, markdown = page_of(tmp_path)
    row = next(line for line in markdown.splitlines() if line.startswith("| unsloth | float32"))
    assert row.index("0.25") < row.index("0.75")
    section = html.split("<h2>norm</h2>")[1].split("</section>")[0]
    for name in ("cpu", "cuda"):
        assert f'<a href="../{name}.json">{name}.json</a>: {name}: {machine_name(environment.current())}' in section
    assert "Differences" not in html  # one record a device


def test_the_newest_release_is_shown_and_older_ones_are_compared_with_it(tmp_path: Path) -> None:
    write(record(entry(), unsloth="2025.12.1"), tmp_path / "a.json")
    write(record(entry("plain", "failed", reason="worse"), unsloth="2026.2.1"), tmp_path / "b.json")
    write(record(entry(), unsloth="2026.10.1", seed=3), tmp_path / "c.json")
    html, markdown = page_of(tmp_path)
    assert "cpu, unsloth 2026.10.1" in html
    assert markdown.count("Not compared: seed: 0 and 3.") == 2
    write(record(entry(), unsloth="2026.10.1"), tmp_path / "c.json")
    _, markdown = page_of(tmp_path)
    assert markdown.index("### b.json against c.json") < markdown.index("### a.json against c.json")
    assert "| norm | unsloth | status | failed: worse | passed | 1 | plain (float32) |" in markdown


def test_mutation_scores_by_family(tmp_path: Path) -> None:
    def outcome(name: str, seen: bool, equivalent: str | None = None) -> Outcome:
        verdict = Verdict(mutant=name, family="norm", bad=entry(status="failed") if seen else None, seconds=1.0)
        other = Verdict(mutant=name, family="other", bad=None, seconds=1.0)
        status = "flagged" if seen else "equivalent"
        return Outcome(
            mutant=name, file="f.py", equivalent=equivalent, verdicts=[verdict, other],
            status=status if equivalent else "killed" if seen else "survived",
        )  # fmt: skip

    made = MutationRecord(
        created=datetime(2026, 1, 2, tzinfo=UTC), seed=0, unsloth="2026.1.1", environment=environment.current(),
        outcomes=[outcome("sign", True), outcome(NASTY, False), outcome("eq", False, "same")], seconds=1.0,
    )  # fmt: skip
    write(record(entry()), tmp_path / "cpu.json")
    write(made, tmp_path / "mutation.json")
    html, markdown = page_of(tmp_path)
    assert "Faults seen: 1 of 2; equivalent changes taken for a fault: 0 of 1" in markdown
    assert "1 of 2 faults killed" in html and "Not seen: &lt;script&gt;" in html


def test_speed_is_in_its_kernels_section(tmp_path: Path) -> None:
    write(record(entry()), tmp_path / "cpu.json")
    made = timings(benchmark("eager", 4e-6), benchmark("unsloth", 2e-6, cpu_bound_rounds=0.25))
    (tmp_path / "speed.json").write_text(json.dumps(made))
    html, markdown = page_of(tmp_path)
    section = html.split("<h2>norm</h2>")[1].split("</section>")[0]
    for text in (
        "2.0 µs",
        "2.00x (1.50 to 2.67)",
        "50.0 %",
        "CPU-bound in 25.0 % of rounds",
        "not timed",
        "width:50.0%",
    ):
        assert text in section
    assert "| llama-8b | bfloat16 | forward | unsloth | 2.0 µs | 2.00x (1.50 to 2.67) | 50.0 % memory |" in markdown
    assert "2,000 GB/s, 400 TFLOP/s" in html
