"""Planning 10,000 cells, as a ratio to the bare cost of making 10,000 cells in the same run: no clock is asserted.

Making a cell takes about 10 microseconds, so that the bound below keeps a plan well under a second.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import suite
from bench.cell import Cell
from bench.plan import Plan, plan
from tests.synthetic import environment

CELLS = 10_000
WORST_RATIO = 10.0
TEXT = f"""\
name: big
recipe: {{source: random}}
axes:
  model: [llama-3.2-1b, llama-3.1-8b]
  precision: [bf16, nf4]
  batch_size: [1, 2, 4, 8, 16]
  seed: [1, 2, 3, 4, 5]
  backend: [hf-peft, unsloth]
  r: {list(range(1, 51))}
exclude: [{{r: 4096}}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "big.yaml"
    path.write_text(TEXT)
    return path


def load_and_plan(path: Path) -> Plan:
    return plan(suite.load(path), machine=environment(), history=[])


def best_s(work: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def test_planning_costs_a_small_multiple_of_making_the_cells(path: Path) -> None:
    made = load_and_plan(path)
    assert len(made.jobs) == CELLS
    content = made.jobs[0].cell.model_dump()
    bare_s = best_s(lambda: [Cell(**content) for _ in range(CELLS)])
    assert best_s(lambda: load_and_plan(path)) < WORST_RATIO * bare_s


def test_each_model_is_looked_up_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("bench.models.sources.config_for", lambda cell: asked.append(cell.model))
    load_and_plan(path)
    assert sorted(asked) == ["llama-3.1-8b", "llama-3.2-1b"]


def test_plan_benchmark(path: Path, benchmark: Callable[..., Plan]) -> None:
    assert len(benchmark(load_and_plan, path).jobs) == CELLS
