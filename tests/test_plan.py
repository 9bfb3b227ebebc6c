"""Plans: order, what cannot run, costs from history, and models and ranks that cannot be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import suite
from bench.cell import Cell
from bench.environment import Environment
from bench.errors import InputError
from bench.plan import GIB, Plan, as_json, plan, table
from bench.record import Phase, Record
from tests.synthetic import environment, record

SPEED = """\
name: speed
repeats: 3
recipe: {source: random, model: llama-3.2-1b}
axes:
  precision: [bf16, nf4]
  model: [llama-3.2-1b, llama-3.1-8b]
  backend: [hf-peft, unsloth]
"""


@pytest.fixture(autouse=True)
def every_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.backends.unsupported", lambda cell, machine: None)


def planned(folder: Path, text: str, machine: Environment | None = None, history: list[Record] | None = None) -> Plan:
    path = folder / "s.yaml"
    path.write_text(text)
    return plan(suite.load(path), machine=machine or environment(), history=history or [])


def with_vram(size_bytes: int) -> Environment:
    machine = environment()
    return machine.model_copy(update={"gpus": [machine.gpus[0].model_copy(update={"vram_bytes": size_bytes})]})


def test_repeats_of_twins_are_interleaved_and_models_stay_together(tmp_path: Path) -> None:
    jobs = planned(tmp_path, SPEED).jobs
    assert len(jobs) == 2 * 2 * 2 * 3
    group = [("hf-peft", 0), ("unsloth", 0), ("unsloth", 1), ("hf-peft", 1), ("hf-peft", 2), ("unsloth", 2)]
    assert [(job.cell.backend, job.repeat) for job in jobs] == group * 4
    assert [job.cell.model for job in jobs] == ["llama-3.2-1b"] * 12 + ["llama-3.1-8b"] * 12
    assert [job.cell.precision for job in jobs] == (["bf16"] * 6 + ["nf4"] * 6) * 2


def test_a_group_is_what_twin_key_says(tmp_path: Path) -> None:
    text = SPEED.replace("repeats: 3", "repeats: 2") + "  r: [4, 8]\n  seed: [1, 2]\n"
    jobs = planned(tmp_path, text).jobs
    for start in range(0, len(jobs), 4):
        four = jobs[start : start + 4]
        assert len({job.cell.twin_key("backend") for job in four}) == 1
        assert [job.cell.backend for job in four] == ["hf-peft", "unsloth", "unsloth", "hf-peft"]


def test_random_weights_of_one_seed_stay_together(tmp_path: Path) -> None:
    jobs = planned(tmp_path, SPEED + "  seed: [1, 2]\n").jobs
    checkpoints = [(job.cell.model, job.cell.seed) for job in jobs]
    changes = sum(a != b for a, b in zip(checkpoints, checkpoints[1:], strict=False))
    assert changes == len(set(checkpoints)) - 1


def test_what_a_backend_refuses_is_on_each_of_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.backends.unsupported", lambda cell, _: "no" if cell.backend == "unsloth" else None)
    made = planned(tmp_path, SPEED)
    assert {(job.cell.backend, job.unsupported) for job in made.jobs} == {("hf-peft", None), ("unsloth", "no")}


def test_without_a_gpu_unsloth_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = planned(tmp_path, "name: s\nrecipe: {model: m/n}\naxes: {backend: [unsloth]}", environment(gpu=None))
    assert "NVIDIA GPU" in str(made.jobs[0].unsupported)


@pytest.mark.parametrize(("precision", "need_gib"), [("nf4", 3.7), ("int8", 7.5), ("bf16", 15.0), ("fp32", 29.9)])
def test_a_gpu_too_small_for_the_weights(tmp_path: Path, precision: str, need_gib: float) -> None:
    text = f"name: s\nrecipe: {{source: random, model: llama-3.1-8b, precision: {precision}}}"
    small, large = int((need_gib - 0.2) * GIB), int((need_gib + 0.2) * GIB)
    told = planned(tmp_path, text, with_vram(small)).jobs[0].unsupported
    expected = f"the weights alone need {need_gib} GiB in {precision}; Test GPU has {need_gib - 0.2:.1f} GiB"
    assert told == expected
    assert planned(tmp_path, text, with_vram(large)).jobs[0].unsupported is None


def test_no_size_check_without_gpu_or_for_models_outside_the_catalogue(tmp_path: Path) -> None:
    text = "name: s\nrecipe: {model: llama-3.1-8b}"
    assert planned(tmp_path, text, environment(gpu=None)).jobs[0].unsupported is None
    assert planned(tmp_path, "name: s\nrecipe: {model: some/thing}", with_vram(1)).jobs[0].unsupported is None


def ran(cell: Cell, wall_s: float, peaks: list[int | None], **fields: Any) -> Record:
    phases = [Phase(name="steady", start_s=0, wall_s=1, nvml_process_peak_bytes=peak) for peak in peaks]
    return record(cell=cell.model_dump(), wall_s=wall_s, phases=phases, **fields).model_copy(update={"cell": cell})


def test_costs_are_of_the_same_cell_on_the_same_gpu(tmp_path: Path) -> None:
    text = "name: s\nrecipe: {source: random, model: llama-3.2-1b}\naxes: {r: [4, 8]}"
    cell = Cell(source="random", model="llama-3.2-1b", r=4)
    history = [
        ran(cell, 60.0, [3 * GIB, None]),
        ran(cell, 120.0, [5 * GIB, 4 * GIB], serial=1),
        ran(cell, 600.0, [4 * GIB], serial=2),
        ran(cell, 6000.0, [70 * GIB], serial=3, status="oom"),
        ran(cell, 6000.0, [70 * GIB], env=environment(gpu="Other GPU")),
        ran(cell.model_copy(update={"max_steps": 31}), 6000.0, [70 * GIB]),
    ]
    r4, r8 = planned(tmp_path, text, history=history).jobs
    assert (r4.gpu_minutes, r4.vram_bytes) == (2.0, 5 * GIB)
    assert (r8.gpu_minutes, r8.vram_bytes) == (None, None)
    on_cpu = planned(tmp_path, text, environment(gpu=None), history).jobs[0]
    assert (on_cpu.gpu_minutes, on_cpu.vram_bytes) == (None, None)


def test_unread_meters_are_unknown(tmp_path: Path) -> None:
    cell = Cell(source="random", model="llama-3.2-1b")
    history = [ran(cell, 60.0, [None]).model_copy(update={"wall_s": None})]
    job = planned(tmp_path, "name: s\nrecipe: {source: random, model: llama-3.2-1b}", history=history).jobs[0]
    assert (job.gpu_minutes, job.vram_bytes) == (None, None)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        planned(folder, text)
    return str(caught.value)


def test_a_rank_above_the_hidden_size_is_bad_input(tmp_path: Path) -> None:
    recipe = "name: s\nrecipe: {source: random, model: smollm2-135m-instruct}\n"
    told = refusal(tmp_path, recipe + "axes: {r: [576, 577], backend: [hf-peft, unsloth]}")
    assert told.startswith(str(tmp_path / "s.yaml"))
    assert "r: 577 is above the hidden size of smollm2-135m-instruct, 576" in told
    assert "mend: give a rank from 1 to 576" in told
    assert planned(tmp_path, recipe + "axes: {r: [576]}").jobs
    assert planned(tmp_path, recipe + "axes: {method: [full]}").jobs


def test_a_nested_hidden_size_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "x", "text_config": {"hidden_size": 64}}
    monkeypatch.setattr("bench.models.sources.config_for", lambda cell: config)
    assert "hidden size of a/b, 64" in refusal(tmp_path, "name: s\nrecipe: {model: a/b, r: 65}")
    monkeypatch.setattr("bench.models.sources.config_for", lambda cell: None)
    assert planned(tmp_path, "name: s\nrecipe: {model: a/b, r: 65}").jobs


@pytest.mark.parametrize("source", ["random", "packaged", "hub"])
def test_a_misspelt_model_is_bad_input(tmp_path: Path, source: str) -> None:
    told = refusal(tmp_path, f"name: s\nrecipe: {{source: {source}, model: smollm2-135m-instrukt}}")
    assert "s.yaml" in told and "smollm2-135m-instrukt" in told and "smollm2-135m-instruct" in told


def test_all_bad_models_and_ranks_are_told_at_once(tmp_path: Path) -> None:
    text = "name: s\nrecipe: {source: random}\naxes: {model: [llama-3.2-1c, llama-3.2-1b], r: [4, 5000]}"
    told = refusal(tmp_path, text)
    assert "did you mean 'llama-3.2-1b'" in told and "r: 5000" in told
    assert told.count("llama-3.2-1c") == 1


def test_the_table_says_what_runs_what_does_not_and_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "needs an [NVIDIA] GPU"
    monkeypatch.setattr("bench.backends.unsupported", lambda cell, _: why if cell.backend == "unsloth" else None)
    cell = Cell(source="random", model="llama-3.2-1b", batch_size=1)
    text = """\
name: s
repeats: 2
recipe: {source: random, model: llama-3.2-1b}
axes: {batch_size: [1, 4], backend: [hf-peft, unsloth]}
exclude: [{r: 99}]
"""
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(planned(tmp_path, text, history=[ran(cell, 90.0, [3 * GIB])])))
    shown = console.export_text()
    assert "all with model llama-3.2-1b, method lora, r 16, precision bf16" in " ".join(shown.split())
    header = next(line for line in shown.splitlines() if "GPU min" in line)
    assert "backend" in header and "batch_size" in header
    assert "model" not in header and "precision" not in header
    rows = [line for line in shown.splitlines() if "│ hf-peft" in line or "│ unsloth" in line]
    assert [("unsloth" in row, "│ 4 " in row) for row in rows] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert "1.5" in rows[0] and "3.0" in rows[0] and "runs" in rows[0]
    assert why in rows[1]
    assert rows[2].count("?") == 2
    assert "4 of 8 runs can run here; 3 GPU minutes for the 2 of them seen before" in shown
    assert "warning: exclude[0] matches no combination" in shown


def test_json_holds_every_job_in_order(tmp_path: Path) -> None:
    made = planned(tmp_path, SPEED)
    content = json.loads(as_json(made))
    assert content["suite"] == "speed"
    assert [(j["cell_digest"], j["repeat"]) for j in content["jobs"]] == [(j.cell.digest, j.repeat) for j in made.jobs]
    assert [Cell.model_validate(j["cell"]) for j in content["jobs"]] == [j.cell for j in made.jobs]
    assert content["jobs"][0]["gpu_minutes"] is None


def test_planning_loads_no_torch() -> None:
    code = """
import sys
from bench import environment, plan, suite
plan.plan(suite.load(suite.find("demo")), machine=environment.current(), history=[])
heavy = {"torch", "transformers", "trl", "datasets", "lm_eval", "reasoning_gym"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
