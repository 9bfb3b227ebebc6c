"""The command line: what each command prints and writes; exit code 1 for a bad cell, 2 for an error to mend."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench import doctor, environment
from bench.cli import app
from bench.record import SCHEMA_VERSION, Record
from bench.store import Store, load
from tests import fakes, synthetic


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path


def peftmark(*args: object, code: int = 0) -> Result:
    """The command in this process; its exit code must be ``code``."""
    ran = CliRunner().invoke(app, [str(arg) for arg in args])
    assert ran.exit_code == code, ran.output + repr(ran.exception)
    return ran


def records(folder: str | Path) -> list[Record]:
    good, bad = load(Path(folder))
    assert not bad
    return [item.record for item in good]


def stored(folder: Path, **fields: Any) -> Path:
    """A record made up for the test, put into a run folder; the path of its file."""
    store, made = Store(folder), synthetic.record(**fields)
    return store.add(made, store.workspace(made.id)) / "record.json"


# Looking, without running


def test_plan_as_table_and_as_json(tmp_path: Path) -> None:
    suite = fakes.suite(tmp_path, "r: [4, 8], model: [fake, fake-unsupported-plan]", more="repeats: 2")
    table = peftmark("plan", suite).stdout
    assert "fakes: 4 cells, 8 runs" in table and "4 of 8 runs can run here" in table
    assert "asked for by the" in table
    jobs = json.loads(peftmark("plan", suite, "--json").stdout)["jobs"]
    assert len(jobs) == 8
    assert {job["unsupported"] for job in jobs if job["cell"]["model"] == "fake"} == {None}


def test_a_misspelt_suite_is_told_the_nearest_name() -> None:
    for command in (["plan", "demoo"], ["run", "demoo"], ["fetch", "demoo"]):
        told = peftmark(*command, code=2).stderr
        assert "demoo" in told and "did you mean 'demo'?" in told and "Traceback" not in told


def test_a_misspelt_key_keeps_its_brackets_and_its_line(tmp_path: Path) -> None:
    suite = fakes.suite(tmp_path, "rr: [4, 8]")
    told = peftmark("run", suite, code=2).stderr
    assert "unknown key 'rr'" in told and "did you mean 'r'?" in told and str(suite) in told
    suite.write_text("name: s\nrecipe: {backend: fake, model: fake}\naxes: {r: 4}\n")
    assert "write [4]" in peftmark("run", suite, code=2).stderr


def test_schema_is_a_json_schema_that_knows_the_fields(tmp_path: Path) -> None:
    shown = json.loads(peftmark("schema").stdout)
    assert shown["$schema"].startswith("https://json-schema.org/") and {"recipe", "axes"} <= shown["properties"].keys()
    assert "learning_rate" in json.dumps(shown)
    peftmark("schema", "--out", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == shown


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("models", {"smollm2-135m-instruct", "llama-3.1-8b"}),
        ("tasks", {"chain-sum", "gsm-symbolic", "logic", "gsm8k", "custom"}),
        ("backends", {"hf-peft", "unsloth"}),
        ("suites", {"demo"}),
    ],
)
def test_list(what: str, expected: set[str]) -> None:
    assert expected <= set(peftmark("list", what).stdout.replace("│", " ").split())


def test_list_of_something_else_is_refused() -> None:
    assert "backends" in peftmark("list", "colours", code=2).stderr


def test_doctor_says_what_can_run_and_so_does_its_exit_code() -> None:
    checks = doctor.diagnose(environment.current())
    code = 0 if doctor.can_run(checks) else 1
    told = json.loads(peftmark("doctor", "--json", code=code).stdout)
    assert [check["name"] for check in told] == [check.name for check in checks]
    assert checks[0].name in peftmark("doctor", code=code).stdout


def test_an_index_that_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "current", lambda: synthetic.environment(gpu=None))
    told = peftmark("run", fakes.suite(tmp_path), "--gpu", 5, code=2).stderr
    assert "--gpu: there is no GPU 5 here; NVML sees 0" in told and "peftmark doctor" in told
    monkeypatch.setattr(environment, "current", synthetic.environment)
    for index in (1, -1):
        told = peftmark("run", fakes.suite(tmp_path), "--gpu", index, code=2).stderr
        assert f"there is no GPU {index} here; NVML sees 1" in told
    assert not (tmp_path / "runs").exists()


# Running


def test_a_run_is_told_resumed_and_made_anew_on_request(tmp_path: Path) -> None:
    suite = fakes.suite(tmp_path, "model: [fake, fake-crash, fake-unsupported-plan]")
    lines = peftmark("run", suite, code=1).stdout
    assert "3 runs to make, 0 done before" in lines
    assert "1 ok, 1 crashed, 1 unsupported" in lines
    assert "see them with: peftmark report runs/fakes --out runs/fakes/report" in lines
    first = {r.cell.model: r for r in records("runs/fakes")}
    assert {model: r.status for model, r in first.items()} == {
        "fake": "ok", "fake-crash": "crashed", "fake-unsupported-plan": "unsupported",
    }  # fmt: skip
    assert Path("runs/fakes/suite.yaml").read_text() == suite.read_text()

    again = peftmark("run", suite, "--quiet", code=1).stdout
    assert "1 crashed, 2 done before" in again
    after = {r.id: r for r in records("runs/fakes")}
    assert len(after) == 4 and all(after[r.id] == r for r in first.values())

    suite.write_text(suite.read_text().replace("fake-crash, ", ""))
    assert "nothing ran, 2 done before" in peftmark("run", suite, "--quiet").stdout
    assert len(records("runs/fakes")) == 4

    assert "1 ok, 1 unsupported;" in peftmark("run", suite, "--quiet", "--fresh").stdout
    fresh = {r.id: r for r in records("runs/fakes")}
    assert len(fresh) == 6 and all(fresh[id] == r for id, r in after.items())


def test_another_environment_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = fakes.suite(tmp_path, "model: [fake-unsupported-plan]")
    for torch in ("2.11.0", "2.11.0", "2.12.0"):
        here = synthetic.environment(gpu=None, torch=torch)
        monkeypatch.setattr(environment, "current", lambda here=here: here)
        peftmark("run", suite, "--out", "run", "--quiet")
    assert [r.environment.packages["torch"].version for r in records("run")] == ["2.11.0", "2.12.0"]


def test_json_lines_and_nothing_else(tmp_path: Path) -> None:
    ran = peftmark("run", fakes.suite(tmp_path), "--json", "--out", "run")
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["event"] for line in lines if line["event"] != "event"] == [
        "start", "job_started", "job_finished", "end",
    ]  # fmt: skip
    finished = next(line for line in lines if line["event"] == "job_finished")
    (made,) = records("run")
    assert (finished["status"], finished["cell_digest"]) == ("ok", made.cell_digest)


def test_quiet_says_the_summary_alone(tmp_path: Path) -> None:
    said = peftmark("run", fakes.suite(tmp_path, "model: [fake-unsupported-plan]"), "--quiet").stdout.splitlines()
    assert len(said) == 2
    assert said[0].startswith("1 unsupported; ") and said[1].startswith("records in runs/fakes;")


def test_fail_fast_stops_after_the_first_bad_record(tmp_path: Path) -> None:
    suite = fakes.suite(tmp_path, "model: [fake-oom, fake-crash, fake]")
    assert "1 oom, 1 crashed, 1 not run" in peftmark("run", suite, "--fail-fast", "--quiet", code=1).stdout
    assert [r.status for r in records("runs/fakes")] == ["oom", "crashed"]


def test_unsloth_without_a_gpu_is_recorded_as_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "current", lambda: synthetic.environment(gpu=None))
    (tmp_path / "u.yaml").write_text("name: u\nrecipe: {model: llama-3.2-1b, source: random, backend: unsloth}\n")
    peftmark("run", "u.yaml", "--quiet")
    (made,) = records("runs/u")
    assert (made.status, made.message, made.failed_phase) == ("unsupported", "needs an NVIDIA GPU", None)


def test_a_model_that_cannot_be_had_offline_stops_before_any_cell(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: m\nrecipe: {model: no-such/model, backend: hf-peft}\n")
    told = peftmark("run", "m.yaml", "--offline", code=2).stderr
    assert "no-such/model" in told and "Traceback" not in told
    assert records("runs/m") == []


def test_the_second_run_into_a_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    suite, run = fakes.suite(tmp_path, "max_steps: [100]"), tmp_path / "run"
    first = fakes.start("run", suite, "--out", run, "--quiet", cwd=tmp_path)
    fakes.wait_for(lambda: list(run.glob("work/*/journal.jsonl")))
    told = peftmark("run", suite, "--out", run, code=2).stderr
    assert str(run) in told and "another run is writing here" in told and "give --out another folder" in told
    ended = fakes.finish(first)
    assert ended.returncode == 0, ended.stderr
    (made,) = records(run)
    assert (made.status, len(made.steps.wall_s)) == ("ok", 100)


def test_a_full_disk_is_told_and_the_rest_runs_when_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    suite = fakes.suite(tmp_path, "max_steps: [3]")
    peftmark("run", suite, "--out", run, "--quiet")
    before = {path: path.read_bytes() for path in run.rglob("record.json")}
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    fakes.suite(tmp_path, "max_steps: [3, 4]")
    told = peftmark("run", suite, "--out", run, "--quiet", code=2).stderr
    assert "No space left on device" in told and "Traceback" not in told
    assert "free space or give another --out; finished cells are kept, and the same command goes on" in told
    assert {path: path.read_bytes() for path in run.rglob("record.json")} == before
    filler.unlink()
    assert "1 ok, 1 done before" in peftmark("run", suite, "--out", run, "--quiet").stdout
    assert [r.cell.max_steps for r in records(run)] == [3, 4]


# Records that are broken, reports and publication


@pytest.mark.parametrize("command", ["run", "report"])
def test_broken_records_are_told_and_skipped(tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    stored(run, serial=0)
    cut, newer = stored(run, serial=1), stored(run, serial=2)
    cut.write_text(cut.read_text()[:300])
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    if command == "run":
        told = peftmark("run", fakes.suite(tmp_path, "model: [fake-unsupported-plan]"), "--out", run, "--quiet").stderr
    else:
        told = peftmark("report", run, "--out", "report").stderr
        assert (tmp_path / "report" / "index.html").exists()
    lines = told.splitlines()
    assert len(lines) == 2 and all(line.startswith("skipped ") for line in lines)
    assert f"{cut}: not a whole record" in told
    assert f"{newer}: schema version {SCHEMA_VERSION + 1} is newer than this peftmark; upgrade it" in told
    assert cut.exists() and newer.exists()


def test_a_report_of_a_run_with_failures(tmp_path: Path) -> None:
    suite = fakes.suite(tmp_path, "model: [fake, fake-oom, fake-unsupported-plan]")
    peftmark("run", suite, "--quiet")
    shown = peftmark("report", "runs/fakes", "--out", "report", "--title", "My [title]").stdout
    assert "oom" in shown and str(tmp_path / "report" / "index.html") in shown
    assert {p.name for p in Path("report").iterdir()} >= {"index.html", "report.md", "findings.json"}
    json.loads(Path("report/findings.json").read_text())
    for page in ("report/index.html", "report/report.md"):
        text = Path(page).read_text()
        assert "fake-oom" in text and "fake-unsupported-plan" in text
    assert "My [title]" in Path("report/index.html").read_text()


def test_a_report_of_nothing_is_an_error_that_says_so(tmp_path: Path) -> None:
    assert "none: no such folder" in peftmark("report", "none", "--out", "r", code=2).stderr
    (tmp_path / "empty").mkdir()
    assert "empty: holds no records" in peftmark("report", "empty", "--out", "r", code=2).stderr
    assert not Path("r").exists()


def test_publish_copies_and_refuses_a_second_time(tmp_path: Path) -> None:
    source = stored(tmp_path / "run")
    (source.parent / "worker.log").write_text("said")
    said = peftmark("publish", "run").stdout
    (published,) = Path("results").rglob("record.json")
    assert f"published {published.parent}" in said
    assert published.read_bytes() == source.read_bytes()
    assert [p.name for p in published.parent.iterdir()] == ["record.json"]
    assert "already published; records are never overwritten" in peftmark("publish", "run", code=2).stderr
    peftmark("publish", source.parent, "--into", "elsewhere")
    assert records("elsewhere") == records("results") == records("run")
