"""The probe cells: what each side gets, rows that are full, and a new field that leaves older digests alone."""

from pathlib import Path
from typing import Any

import pytest

from bench import vram_cap
from bench.backends import unsupported
from bench.cell import Cell
from bench.environment import read_gpus
from bench.errors import InputError, Unsupported
from bench.limit.family import TOKENS_PER_EXAMPLE, Family, What, family
from bench.store import load
from tests.synthetic import environment

GIB = 2**30
RESULTS = Path(__file__).resolve().parents[2] / "results"


def make(what: What = "max_length", backend: str = "unsloth", model: str = "llama-3.1-8b", **fields: Any) -> Family:
    return family(what, backend=backend, model=model, budget_bytes=24 * GIB, **{"precision": "nf4", **fields})


def test_every_published_record_loads_and_keeps_its_digest() -> None:
    good, bad = load(RESULTS)
    assert good and not bad
    assert {item.folder: item.record.cell.digest for item in good} == {i.folder: i.record.cell_digest for i in good}


def test_the_budget_is_in_the_digest_only_where_there_is_one() -> None:
    plain, capped = Cell(model="m"), Cell(model="m", vram_budget_bytes=8 * GIB)
    assert plain.digest == "d080b26c39308711", "the digest that this cell had before the field was there"
    assert capped.digest != plain.digest != Cell(model="m", vram_budget_bytes=9 * GIB).digest != capped.digest
    assert capped.twin_key("vram_budget_bytes") == plain.digest


def test_each_side_has_its_documented_long_context_settings() -> None:
    ours, theirs = make().base, make(backend="hf-peft").base
    assert (ours.gradient_checkpointing, ours.attention) == ("unsloth", "auto")
    assert (theirs.gradient_checkpointing, theirs.attention) == ("on", "sdpa")
    for cell in (ours, theirs):
        assert (cell.batch_size, cell.optimizer, cell.packing, cell.vram_budget_bytes) == (
            1, "adamw_8bit", "wrapped", 24 * GIB,
        )  # fmt: skip
    assert ours.twin_key("backend", "gradient_checkpointing", "attention") == theirs.twin_key(
        "backend", "gradient_checkpointing", "attention"
    )


@pytest.mark.parametrize("what", ["max_length", "batch_size", "r"])
def test_probes_differ_in_the_value_and_have_text_for_every_row(what: What) -> None:
    probes = make(what, max_length=None if what == "max_length" else 2048)
    cells = [probes.at(value) for value in (probes.grid[0], probes.grid[60], probes.grid[400])]
    assert len({cell.twin_key(what, "train_examples") for cell in cells}) == 1
    for cell in cells:
        tokens = cell.max_length * cell.batch_size * cell.max_steps
        assert tokens <= cell.train_examples * TOKENS_PER_EXAMPLE <= max(2 * tokens, 2000 * TOKENS_PER_EXAMPLE)
    assert len({cell.train_examples for cell in cells}) <= 3, "few training sets to make"


def test_long_rows_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path))
    from bench.models.tokenizer import small_tokenizer
    from bench.stream import tokenise
    from bench.tasks import materialise

    cell = make().at(65_536)
    rows = tokenise(materialise(cell, offline=True), small_tokenizer(128_256), cell)
    assert len(rows) == 2
    first, second = rows[0]["input_ids"], rows[1]["input_ids"]
    assert len(first) == len(second) == 65_536 and first != second


def test_ranks_go_to_the_hidden_size() -> None:
    grid = make("r", max_length=2048).grid
    assert list(grid[:6]) == [1, 2, 4, 8, 16, 24] and grid[-1] == 4096


def test_wrong_input_is_one_clear_error() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": "llama-3.1-8x"}, "did you mean 'llama-3.1-8b'"),
        ({"backend": "unslot"}, "did you mean 'unsloth'"),
        ({"precision": "nf5"}, "precision: Input should be 'fp32'"),
        ({"max_length": 4096}, "max_length is what is searched for"),
    ]
    for fields, message in wrong:
        with pytest.raises(InputError, match=message):
            make(**fields)


def test_a_budget_needs_a_gpu_that_has_it() -> None:
    cell = make(backend="hf-peft", precision="bf16").at(4096)
    assert unsupported(cell, environment(gpu=None)) == "a VRAM budget needs an NVIDIA GPU"
    assert unsupported(cell, environment()) is None
    larger = cell.model_copy(update={"vram_budget_bytes": 100 * GIB})
    assert unsupported(larger, environment()) == "vram_budget_bytes asks for 100.0 GiB; the card has 80.0 GiB"


@pytest.mark.skipif(bool(read_gpus()[0]), reason="says what happens without a GPU")
def test_the_cap_does_nothing_without_a_budget_and_refuses_without_a_gpu() -> None:
    assert vram_cap.apply(None, vram_cap.RESERVE_BYTES) == {}
    with pytest.raises(Unsupported, match="needs an NVIDIA GPU"):
        vram_cap.apply(8 * GIB, vram_cap.RESERVE_BYTES)
