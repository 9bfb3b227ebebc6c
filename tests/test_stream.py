"""The token stream: loss mask, order, length, packing; and the collator's digest and counts."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell import Cell
from bench.errors import InputError
from bench.stream import IGNORED, StreamCollator, encode, tokenise
from bench.tasks import TaskFiles, materialise, read_items
from bench.tasks.item import Item
from bench.tasks.prompt import render, target
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def make_cell(**fields: Any) -> Cell:
    defaults = {
        "model": "m", "train_examples": 12, "max_length": 512, "batch_size": 2, "gradient_accumulation_steps": 2,
        "max_steps": 4, "untimed_steps": 1,
    }  # fmt: skip
    return Cell(**{**defaults, **fields})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskFiles:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path))
    return materialise(make_cell())


def shuffled_items(files: TaskFiles, seed: int) -> list[Item]:
    items = read_items(files.train_jsonl)
    random.Random(seed).shuffle(items)
    return items


def test_loss_covers_exactly_the_reply_and_its_end(files: TaskFiles) -> None:
    item = Item(question="2 + 2?", answer="4", reasoning="Two and two.", instruction="Add.")
    encoded = encode(item, TOKENIZER)
    trained = [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != IGNORED]
    assert trained == [label for label in encoded.labels if label != IGNORED]
    assert TOKENIZER.decode(trained) == "Two and two.\nAnswer: 4<|im_end|>"
    assert encoded.labels[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(encoded.input_ids) == render(TOKENIZER, item) + target(item) + "<|im_end|>"


def test_rows_fill_the_steps_and_repeat_in_the_same_order(files: TaskFiles) -> None:
    rows = tokenise(files, TOKENIZER, make_cell(max_steps=7))
    assert len(rows) == 7 * 2 * 2
    expected = [encode(item, TOKENIZER).input_ids for item in shuffled_items(files, make_cell().seed)]
    assert rows["input_ids"][:12] == expected
    assert rows["input_ids"][12:24] == expected
    assert rows["input_ids"][24:] == expected[:4]


def test_order_follows_the_seed_and_nothing_else(files: TaskFiles) -> None:
    same = tokenise(files, TOKENIZER, make_cell(backend="unsloth", r=64))["input_ids"][:]
    assert tokenise(files, TOKENIZER, make_cell())["input_ids"][:] == same
    other = tokenise(files, TOKENIZER, make_cell(seed=1))["input_ids"][:]
    assert other != same and sorted(other[:12]) == sorted(same[:12])


def test_too_long_examples_are_dropped_and_counted(files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
    lengths = sorted(len(encode(item, TOKENIZER).input_ids) for item in read_items(files.train_jsonl))
    limit = lengths[5]
    kept = sum(length <= limit for length in lengths)
    rows = tokenise(files, TOKENIZER, make_cell(max_length=limit))
    assert max(map(len, rows["input_ids"])) == limit
    assert f"dropped {12 - kept} of 12 examples" in caplog.text


def test_all_too_long_is_an_error_that_says_how_long(files: TaskFiles) -> None:
    shortest = min(len(encode(item, TOKENIZER).input_ids) for item in read_items(files.train_jsonl))
    for packing in ("off", "bfd"):
        with pytest.raises(InputError, match=f"all 12 training examples.*\n.*max_length to at least {shortest}"):
            tokenise(files, TOKENIZER, make_cell(max_length=8, packing=packing))


def test_wrapped_rows_are_full_and_lose_only_the_tail(files: TaskFiles) -> None:
    cell = make_cell(packing="wrapped", max_length=64, max_steps=5)
    examples = [encode(item, TOKENIZER) for item in shuffled_items(files, cell.seed)]
    ids = [token for e in examples for token in e.input_ids]
    labels = [label for e in examples for label in e.labels]
    full = len(ids) // 64
    assert full > 20, "the test needs more rows than the steps take"
    rows = tokenise(files, TOKENIZER, make_cell(packing="wrapped", max_length=64, max_steps=full))[:]
    assert {len(row) for row in rows["input_ids"]} == {len(row) for row in rows["labels"]} == {64}
    assert [token for row in rows["input_ids"][:full] for token in row] == ids[: full * 64]
    assert [label for row in rows["labels"][:full] for label in row] == labels[: full * 64]
    assert rows["input_ids"][full] == rows["input_ids"][0]


def test_wrapped_with_too_little_text_is_an_error(files: TaskFiles) -> None:
    with pytest.raises(InputError, match=r"has \d+ tokens, less than one row"):
        tokenise(files, TOKENIZER, make_cell(packing="wrapped", max_length=8192))


def test_bfd_packs_whole_examples(files: TaskFiles) -> None:
    cell = make_cell(packing="bfd", max_length=400, max_steps=3)
    rows = tokenise(files, TOKENIZER, cell)
    assert len(rows) == 12
    examples = {tuple(encode(item, TOKENIZER).input_ids) for item in read_items(files.train_jsonl)}
    found: set[tuple[int, ...]] = set()
    for row in rows:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) <= 400
        start = 0
        for length in row["seq_lengths"]:
            found.add(tuple(row["input_ids"][start : start + length]))
            start += length
    assert found == examples
    assert max(len(row["seq_lengths"]) for row in rows) > 1


def trl_collator(padding_free: bool = False) -> Any:
    """The collator that TRL's SFTTrainer makes for itself, padding on the right or flat."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)


def test_bfd_batch_gives_each_example_the_loss_it_has_alone(files: TaskFiles) -> None:
    """Rows of bfd in TRL's flat form keep examples apart: the summed loss equals that of the examples one by one."""
    rows = tokenise(files, TOKENIZER, make_cell(packing="bfd", max_length=400))
    row = next(row for row in rows if len(row["seq_lengths"]) > 1)
    model = tiny_model().eval()

    def summed_loss(row: dict[str, Any], padding_free: bool) -> float:
        collator = StreamCollator(trl_collator(padding_free))
        with torch.no_grad():
            loss = model(**collator([row]), use_cache=False).loss
        return float(loss) * collator.batches[0].trained_tokens

    apart, start = 0.0, 0
    for length in row["seq_lengths"]:
        part = slice(start, start + length)
        alone = {"input_ids": row["input_ids"][part], "labels": row["labels"][part]}
        apart += summed_loss(alone, padding_free=False)
        start += length
    assert summed_loss(row, padding_free=True) == pytest.approx(apart, rel=1e-4)


# --- the collator ---

ROWS = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
    {"input_ids": [5, 9], "labels": [IGNORED, 9]},
    {"input_ids": [4, 4, 4], "labels": [4, IGNORED, 4]},
]


def stream_of(rows: list[dict[str, Any]], batch: int = 2, padding_free: bool = False) -> str:
    collator = StreamCollator(trl_collator(padding_free))
    for start in range(0, len(rows), batch):
        collator(rows[start : start + batch])
    return collator.stream_sha256(len(collator.batches))


def test_collator_hands_through_the_inner_batch_and_counts() -> None:
    collator = StreamCollator(trl_collator())
    batch = collator(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0], [4, 4, 4, 0]]
    assert batch["labels"].tolist()[1] == [IGNORED, 9, IGNORED, IGNORED]
    (seen,) = collator.batches
    assert (seen.rows, seen.padded_tokens, seen.real_tokens) == (3, batch["input_ids"].numel(), 9)
    assert seen.real_tokens == int(batch["attention_mask"].sum())
    # A label in the first column has no position that predicts it: the rows train on 2, 1 and 1 tokens.
    assert seen.trained_tokens == int((batch["labels"][:, 1:] != IGNORED).sum()) == 4
    collator(ROWS[:1])
    assert collator.first_tokens == [5, 6, 7, 8, 5, 9, 4, 4, 4]


def test_counts_of_a_flat_batch() -> None:
    collator = StreamCollator(trl_collator(padding_free=True))
    batch = collator(ROWS)
    (seen,) = collator.batches
    assert (seen.rows, seen.padded_tokens, seen.real_tokens) == (3, 9, 9)
    assert seen.trained_tokens == int((batch["labels"][:, 1:] != IGNORED).sum()) == 4


def test_equal_rows_give_an_equal_hash_and_any_change_another() -> None:
    same = stream_of(ROWS)
    assert stream_of([dict(row) for row in ROWS]) == same
    assert stream_of(ROWS, padding_free=True) == same, "the layout is the backend's; the stream is the same"
    relabelled = [dict(ROWS[0], labels=[IGNORED, IGNORED, IGNORED, 8]), *ROWS[1:]]
    retokened = [dict(ROWS[0], input_ids=[5, 6, 7, 9]), *ROWS[1:]]
    split_elsewhere = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, IGNORED, 7]},
        {"input_ids": [8, 5, 9], "labels": [8, IGNORED, 9]},
        ROWS[2],
    ]
    changed = [
        stream_of(relabelled), stream_of(retokened), stream_of(split_elsewhere), stream_of(ROWS[::-1]),
        stream_of(ROWS, batch=3), stream_of(ROWS[:2]),
    ]  # fmt: skip
    assert len({same, *changed}) == 1 + len(changed)


def test_hash_of_the_first_batches_ignores_those_read_ahead() -> None:
    collator = StreamCollator(trl_collator())
    collator(ROWS[:2])
    first = collator.stream_sha256(1)
    collator(ROWS[2:])
    assert collator.stream_sha256(1) == first != collator.stream_sha256(2)


def test_tokenizer_without_chat_template_is_refused() -> None:
    plain = tiny_tokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match="no chat template[\\s\\S]*instruction-tuned"):
        encode(Item(question="q", answer="a", instruction="i"), plain)


def test_todays_date_stays_out_of_the_prompt() -> None:
    """Llama 3.2's template prints the date unless it is given one."""
    dated = tiny_tokenizer()
    dated.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    )
    assert render(dated, Item(question="q", answer="a", instruction="i")).startswith("26 Jul 2024 ")
