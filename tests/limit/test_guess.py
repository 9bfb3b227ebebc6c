"""The guess: near what published runs took, growing with the value, and set right by a measured peak."""

from pathlib import Path

import pytest

from bench.cell import Cell
from bench.limit.family import GIB, What, family
from bench.limit.guess import Guess
from bench.limit.search import RELATIVE
from bench.store import load

RESULTS = Path(__file__).resolve().parents[2] / "results"
LLAMA = {"model": "llama-3.1-8b", "source": "random", "precision": "nf4"}


def made(cell: Cell) -> Guess:
    guess = Guess.of(cell)
    assert guess
    return guess


def test_for_nine_in_ten_published_runs_with_full_rows_the_guess_is_as_near_as_the_search_resolves() -> None:
    ratios = []
    for record in (item.record for item in load(RESULTS)[0]):
        peaks = [p.nvml_process_peak_bytes for p in record.phases if p.name in ("warmup", "steady")]
        full = record.cell.packing == "wrapped" and record.cell.attention != "eager" and record.status == "ok"
        guess = Guess.of(record.cell) if full and record.cell.gradient_checkpointing != "off" else None
        if guess and any(peaks):
            ratios.append(guess.need_bytes(record.cell) / max(peak for peak in peaks if peak))
    assert len(ratios) >= 20
    assert sum(abs(ratio - 1) < RELATIVE for ratio in ratios) >= 0.9 * len(ratios)


@pytest.mark.parametrize("backend", ["hf-peft", "unsloth"])
@pytest.mark.parametrize("what", ["max_length", "batch_size", "r"])
def test_the_guess_grows_with_the_value(what: What, backend: str) -> None:
    length = None if what == "max_length" else 2048
    probes = family(what, backend=backend, model="llama-3.1-8b", budget_bytes=24 * GIB, max_length=length)
    guess = made(probes.base)
    for scale in (None, 1.3):
        needs = [guess.need_bytes(probes.at(value), scale) for value in probes.grid[::50][:10]]
        assert needs == sorted(set(needs))


def test_a_scale_gives_back_the_peak_that_it_was_measured_from_and_leaves_the_weights_alone() -> None:
    short, long = (Cell(**LLAMA, backend="unsloth", max_length=tokens) for tokens in (4096, 8192))  # type: ignore[arg-type]
    guess, measured = made(short), 12 * GIB
    scale = guess.scale(short, measured)
    assert guess.need_bytes(short, scale) == pytest.approx(measured)
    more = guess.need_bytes(long, 1.0) - guess.need_bytes(short, 1.0)
    assert guess.need_bytes(long, scale) == pytest.approx(measured + scale * more)


@pytest.mark.parametrize("fields", [
    {"backend": "fake"}, {"backend": "hf-peft+liger"}, {"backend": "hf-peft", "method": "dora"},
    {"backend": "hf-peft", "source": "hub", "model": "nobody/has-this"},
])  # fmt: skip
def test_what_the_memory_model_does_not_know_has_no_guess(fields: dict[str, str]) -> None:
    assert Guess.of(Cell.model_validate(LLAMA | fields)) is None
