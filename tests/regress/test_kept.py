"""Pairs of runs that are kept: judged again, gone on from, refused. On the fake backend, with one real pair copied."""

import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from bench import environment, store
from bench.cli import app
from bench.regress.levels import pairs
from bench.regress.process import Ended
from bench.regress.verdict import Comparison
from tests.regress.test_paired import SUITE
from tests.regress.wheels import PACKAGE, wheel

ONE_PAIR = "0.0001"
"""Minutes: the first pair is run, and no second one fits."""


def release(folder: Path, version: str, package: str) -> str:
    """A folder with the release in it: no pip, which takes seconds."""
    made = folder / f"{package}-{version}"
    if not made.is_dir():
        with zipfile.ZipFile(wheel(folder, version, name=package)) as archive:
            archive.extractall(made)
    return str(made)


def regress(folder: Path, *more: str, candidate: str = "1.0", package: str = "unsloth") -> tuple[int, str]:
    (folder / "suite.yaml").write_text(SUITE)
    sides = release(folder, "1.0", package), release(folder, candidate, package)
    ran = CliRunner().invoke(app, [
        "regress", "--package", package, "--baseline", sides[0], "--candidate", sides[1],
        "--levels", "", "--suite", str(folder / "suite.yaml"), "--json", str(folder / "found.json"), *more,
    ])  # fmt: skip
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, " ".join(ran.output.split())


def judged(folder: Path) -> Comparison:
    return Comparison.model_validate_json((folder / "found.json").read_text())


def ids(runs: Path, side: str) -> list[str]:
    return [one.record.id for one in store.load(runs / side)[0]]


@pytest.fixture(scope="module")
def one_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the first pair of release 1.0 against itself."""
    folder = tmp_path_factory.mktemp("kept")
    code, told = regress(folder, "--runs", str(folder / "runs"), "--budget-minutes", ONE_PAIR)
    assert code == 0, told
    return folder / "runs"


@pytest.fixture
def runs(tmp_path: Path, one_pair: Path) -> Path:
    """Four whole pairs, copies of the first."""
    for number in range(1, 5):
        shutil.copytree(one_pair / "pair-1", tmp_path / "runs" / f"pair-{number}")
    return tmp_path / "runs"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every record below the folder."""
    for file in folder.rglob("record.json"):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*arguments: object, **settings: object) -> Ended:
        raise AssertionError("a pair was run")

    monkeypatch.setattr(pairs, "run", ran)


@pytest.mark.parametrize("budget", ["0", "10"])
def test_a_release_against_itself_passes_and_is_judged_again_without_a_run(
    runs: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    refuse(monkeypatch)
    code, told = regress(runs.parent, "--runs", str(runs), "--budget-minutes", budget)
    found = judged(runs.parent)
    assert code == 0 and "unsloth 1.0 -> 1.0: passed" in told and "pair 4: kept in pair-4" in told
    assert {m.name: m.verdict for m in found.metrics} == {"speed/ran": "unchanged", "speed/tokens_per_s": "unchanged"}
    assert found.pairs == [(*ids(runs, "pair-1/baseline"), *ids(runs, "pair-1/candidate"))] * 4
    assert {item.record.environment.packages["unsloth"].version for item in store.load(runs)[0]} == {"1.0"}


def test_published_records_are_judged_as_the_runs_were(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    place = runs.parent / "published"
    for folder in [runs / f"pair-{n}" / side for n in range(1, 5) for side in pairs.SIDES]:
        for one in store.load(folder)[0]:
            store.publish(one, place / folder.relative_to(runs))
    found = []
    for kept in (runs, place):
        assert regress(runs.parent, "--runs", str(kept), "--budget-minutes", "0")[0] == 0
        found.append(judged(runs.parent).model_dump(exclude={"created"}))
    assert found[0] == found[1] and found[0]["pairs"] and not list(place.rglob(".lock"))


def test_what_other_records_were_made_on_is_said(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    edit(runs, lambda record: record["environment"].update(cpu="Elsewhere 9000"))
    assert regress(runs.parent, "--runs", str(runs), "--budget-minutes", "0")[0] == 0
    assert "; runs: Elsewhere 9000" in judged(runs.parent).machine


def test_a_half_pair_is_run_again_on_both_sides_and_whole_ones_are_not(runs: Path) -> None:
    shutil.rmtree(runs / "pair-3")
    shutil.rmtree(runs / "pair-4")
    shutil.rmtree(runs / "pair-2" / "baseline")  # what an interruption leaves: pair 2 begins with the candidate
    before = ids(runs, "pair-1")
    assert regress(runs.parent, "--runs", str(runs), "--budget-minutes", ONE_PAIR)[0] == 0
    base, cand = ids(runs, "pair-2/baseline"), ids(runs, "pair-2/candidate")
    assert ids(runs, "pair-1") == before and (len(base), len(cand)) == (1, 2) and before[-1] < cand[1] < base[0]
    assert judged(runs.parent).pairs[1:] == [(base[0], cand[1])]


@pytest.mark.parametrize("change", [
    {"started_at": "2026-01-01T00:00:00+00:00"}, {"wall_s": 3600.0},
])  # fmt: skip
def test_runs_that_did_not_follow_each_other_are_no_pair(runs: Path, change: dict[str, Any]) -> None:
    edit(runs / "pair-3" / "baseline", lambda record: record.update(change))
    assert regress(runs.parent, "--runs", str(runs), "--budget-minutes", "0")[0] == 0
    assert len(judged(runs.parent).pairs) == 2


def test_what_a_killed_command_started_ends_with_it(tmp_path: Path) -> None:
    """Else its run would go on beside those of the command that follows."""
    said = tmp_path / "pid"
    sleeper = f"import os, pathlib, time; pathlib.Path({str(said)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = f"import sys; from bench.regress.process import run; run([sys.executable, '-c', {sleeper!r}], [], 60)"
    command = subprocess.Popen([sys.executable, "-c", code])
    while not (said.is_file() and said.read_text()):
        assert command.poll() is None
        time.sleep(0.05)
    started = psutil.Process(int(said.read_text()))
    command.terminate()
    command.wait()
    psutil.wait_procs([started], timeout=10)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


def test_an_old_record_does_not_stand_for_a_side_that_left_none(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(runs / "pair-1" / "baseline", lambda record: record.update(status="contaminated", message="others"))
    monkeypatch.setattr(pairs, "run", lambda *arguments, **settings: Ended(code=1, log="disk full"))
    assert regress(runs.parent, "--runs", str(runs))[0] == 2
    assert "baseline: disk full; candidate: disk full" in judged(runs.parent).could_not[0]


@pytest.mark.parametrize(("change", "candidate", "where", "what"), [
    (None, "1.1", "record.json, environment.packages.unsloth", "is 1.0, and the release of this side has 1.1"),
    (lambda r: r["cell"].update(max_steps=5), "1.0", "record.json, cell.max_steps", "is 5, and the suite's is 4"),
    (lambda r: r["environment"].update(driver="1"), "1.0", "record.json, environment, driver", "is 1, and of the f"),
    (lambda r: r.pop("id"), "1.0", "record.json", "not a whole record"),
])  # fmt: skip
def test_runs_of_another_release_cell_or_machine_are_refused(
    runs: Path, change: Callable[[dict[str, Any]], None] | None, candidate: str, where: str, what: str
) -> None:
    if change:
        edit(runs / "pair-2", change)
    code, told = regress(runs.parent, "--runs", str(runs), "--budget-minutes", "0", candidate=candidate)
    assert code == 2 and where in told and what in told and "mend: " in told and "give --runs another folder" in told


def test_pairs_are_not_added_on_another_machine(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    shutil.rmtree(runs / "pair-4")
    here = environment.current()
    edit(runs, lambda record: record["environment"].update(cpu_cores=1000))
    code, told = regress(runs.parent, "--runs", str(runs))
    assert code == 2 and f"cpu_cores: is 1000, and of this machine {here.cpu_cores}" in told
    assert "--budget-minutes 0" in told


@pytest.mark.parametrize(("sides", "code", "verdict"), [
    (("candidate",), 1, "regressed"), (("baseline",), 2, "inconclusive"), (pairs.SIDES, 2, "inconclusive"),
])  # fmt: skip
def test_kept_failures_are_judged(runs: Path, sides: tuple[str, ...], code: int, verdict: str) -> None:
    for side in sides:
        edit(runs / "pair-1" / side, lambda record: record.update(status="crashed", message="boom"))
    assert regress(runs.parent, "--runs", str(runs), "--budget-minutes", "0")[0] == code
    found = {metric.name: metric for metric in judged(runs.parent).metrics}
    assert found["speed/ran"].verdict == verdict and f"crashed: boom (record {ids(runs, 'pair-1')[0][:8]}" in (
        found["speed/ran"].why
    )


def test_a_contaminated_run_is_no_regression_and_what_was_before_it_counts(runs: Path) -> None:
    def spoil(pair: str) -> None:
        edit(runs / pair / "candidate", lambda record: record.update(status="contaminated", message="others"))

    spoil("pair-3")
    code, told = regress(runs.parent, "--runs", str(runs), "--budget-minutes", "0")
    assert code == 0 and len(judged(runs.parent).pairs) == 2 and "ends after 2 pairs" in told
    spoil("pair-1")
    code, told = regress(runs.parent, "--runs", str(runs), "--budget-minutes", "0")
    assert code == 2 and "holds no whole pair" in told


def test_contaminated_pairs_are_run_again_while_the_budget_lasts(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(runs, lambda record: record.update(status="contaminated", message="others"))
    commands: list[Sequence[str]] = []

    def ran(command: Sequence[str], *rest: object, settings: dict[str, str]) -> Ended:
        commands.append(command)
        status, folder = "ok" if len(commands) > 2 else "contaminated", Path(command[command.index("--out") + 1])
        edit(folder, lambda record: record.update(status=status, id=f"{record['id']}-again"))
        return Ended(code=0, log="")

    monkeypatch.setattr(pairs, "run", ran)
    monkeypatch.setattr(pairs, "_affords", lambda runs, budget: len(commands) < 4)
    code, told = regress(runs.parent, "--runs", str(runs))
    assert code == 0 and len(commands) == 4 and len(judged(runs.parent).pairs) == 1
    assert "candidate: contaminated: others" in told


def test_measured_processes_are_told_to_touch_no_network_and_what_leaves_no_record_could_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []

    def ran(command: Sequence[str], *rest: object, settings: dict[str, str]) -> Ended:
        commands.append(command)
        assert Path(settings["UNSLOTH_COMPILE_LOCATION"]).name == "1.0"  # of its own release
        return Ended(code=1, log="no such model in the cache")

    monkeypatch.setattr(pairs, "run", ran)
    code, told = regress(tmp_path)
    assert code == 2 and "baseline: no such model in the cache" in told
    assert len(commands) == 2 and all("--offline" in command for command in commands)


@pytest.mark.parametrize(("options", "package", "told"), [
    (("--budget-minutes", "0"), "unsloth", "--budget-minutes 0: judges kept runs, and there are none"),
    (("--budget-minutes", "0", "--runs", "RUNS"), "unsloth", "holds no whole pair"),
    (("--runs", "RUNS"), PACKAGE, f"--runs: records do not note the version of {PACKAGE} 1.0"),
    (("--runs", "RUNS", "--suite", ""), "unsloth", "--runs: keeps the runs of a suite, and there is none"),
])  # fmt: skip
def test_what_cannot_be_kept_or_judged_is_said(
    tmp_path: Path, options: tuple[str, ...], package: str, told: str
) -> None:
    code, said = regress(tmp_path, *(o.replace("RUNS", str(tmp_path / "runs")) for o in options), package=package)
    assert code == 2 and told in said and "mend: " in said
