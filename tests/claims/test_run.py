"""What is planned on which machine, and the commands."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.claims import run as running
from bench.claims.claim import chosen
from bench.claims.experiment import KINDS, ExperimentRecord, Found
from bench.cli import app
from tests.synthetic import environment, record

CPU, GPU = environment(gpu=None), environment()
cli = CliRunner()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def names(made: running.ClaimsPlan) -> list[str]:
    return [one.made.name for one in made.suites]


def test_a_machine_without_gpu_runs_the_small_suites_and_all_experiments() -> None:
    made = running.plan(chosen(None), CPU, [], [])
    assert set(names(made)) == {"cpu-accumulation", "cpu-ranks", "cpu-precision"}
    assert {kind.name for kind, _ in made.experiments} == set(KINDS)
    assert any("h100-docs-8b needs an NVIDIA GPU" in line for line in made.left_out)
    assert any("limits searches" in line for line in made.left_out) and not made.elsewhere


def test_a_machine_with_gpu_runs_the_others_and_names_the_searches() -> None:
    made = running.plan(chosen(None), GPU, [], [])
    assert all(running.needs_gpu(name) for name in names(made)) and "h100-docs-8b" in names(made)
    assert any("--vram 24" in line and "--backend unsloth" in line for line in made.elsewhere)


def test_a_cell_of_two_suites_runs_once_and_the_yardstick_runs_too() -> None:
    made = running.plan(chosen(["grad-accum", "mixed-precision"]), CPU, [], [])
    jobs = [(job.cell, job.repeat) for one in made.suites for job in one.jobs]
    assert len(jobs) == len(set(jobs)) == 5  # four of cpu-accumulation, and bf16: fp32 is among them
    assert any(cell.seed == 1 for cell, _ in jobs)


def test_what_is_done_in_this_environment_is_not_run_again() -> None:
    claims = chosen(["mixed-precision", "lora-modular"])
    cell = running.plan(claims, CPU, [], []).suites[0].jobs[0].cell
    done = record("hf-peft", cell=cell.model_dump(), env=CPU)
    switch = Found(
        ExperimentRecord(
            id="1", experiment="switch", settings=KINDS["switch"].settings, environment=CPU, device="cpu",
            started_at="", processes=[],
        ), Path(),
    )  # fmt: skip
    made = running.plan(claims, CPU, [done], [switch])
    assert len(made.suites[0].jobs) == 1 and made.suites[0].done == 1 and not made.experiments
    assert len(running.plan(claims, CPU, [done], [switch], fresh=True).suites[0].jobs) == 2


def test_gpu_minutes_bound_what_is_taken() -> None:
    made = running.plan(chosen(["mixed-precision"]), GPU, [], [], gpu_minutes=4)
    assert 0 < sum(one.minutes for one in made.suites) <= 4
    assert any("past --gpu-minutes" in line for line in made.left_out)


def test_the_list_and_its_json() -> None:
    assert "speed-2-5x" in cli.invoke(app, ["claims"]).output
    listed = json.loads(cli.invoke(app, ["claims", "--json"]).output)
    assert {"id", "statement", "source", "date", "parts"} <= listed[0].keys()


@pytest.mark.parametrize("command", [["plan", "speed-2-5"], ["run", "speed-2-5"], ["verdict", "--claim", "speed-2-5"]])
def test_an_unknown_id_names_the_nearest(command: list[str]) -> None:
    result = cli.invoke(app, ["claims", *command])
    assert result.exit_code == 2 and "did you mean 'speed-2-5x'" in result.output


def test_a_folder_that_is_not_there() -> None:
    result = cli.invoke(app, ["claims", "verdict", "nowhere"])
    assert result.exit_code == 2 and "no such folder" in result.output


def test_verdicts_without_records_say_what_to_run(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.md"
    result = cli.invoke(app, ["claims", "verdict", "--claim", "lora-small", "--markdown", str(out), "--json"])
    (found,) = json.loads(result.output)
    assert found["verdict"] == "not run yet" and "peftmark claims run lora-small" in found["note"]
    assert "| lora-small |" in out.read_text()


def test_plan_as_json() -> None:
    made = json.loads(cli.invoke(app, ["claims", "plan", "lora-small", "--json"]).output)
    assert made["experiments"] == [{"name": "adapter-size", "claims": ["lora-small"]}]
