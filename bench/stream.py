"""The token stream: what the trainer consumes, in what order, and the hash that proves it.

``tokenise`` turns a task's training items into exactly the rows the cell's steps need, in order; the trainer iterates
them without shuffling. ``StreamCollator`` keeps a digest and the token counts of each batch, so that two backends can
be shown to have seen equal streams.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.cell import Cell
from bench.errors import InputError
from bench.tasks import TaskFiles, read_items
from bench.tasks.item import Item
from bench.tasks.prompt import render, target

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

IGNORED = -100
"""Label of a position without loss; torch's cross entropy skips it."""


@dataclass(frozen=True)
class Encoded:
    """One example as tokens; ``input_ids`` and ``labels`` have equal length."""

    input_ids: list[int]
    labels: list[int]


def encode(item: Item, tokenizer: Any) -> Encoded:
    """Prompt without loss, then reply and end-of-sequence token with loss.

    Prompt and reply are tokenised apart, as they are when the model generates the reply after the prompt. The chat
    template writes the special tokens, so the tokenizer adds none.
    """
    prompt_ids = tokenizer(render(tokenizer, item), add_special_tokens=False)["input_ids"]
    reply_ids = tokenizer(target(item), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return Encoded([*prompt_ids, *reply_ids], [IGNORED] * len(prompt_ids) + reply_ids)


def tokenise(task_files: TaskFiles, tokenizer: Any, cell: Cell) -> "datasets.Dataset":
    """``max_steps * gradient_accumulation_steps * batch_size`` rows, in the order they are to be trained on.

    Columns: ``input_ids``, ``labels``; with packing ``bfd`` also ``seq_lengths``, which the collator turns into
    position ids. Items are shuffled by the cell's seed and tokenised once; rows repeat by index, in the same order,
    where the steps outlast them. An example longer than ``max_length`` is dropped and counted in a log line, except
    with packing ``wrapped``, which cuts. Raises InputError when no row is left.
    """
    items = read_items(task_files.train_jsonl)
    random.Random(cell.seed).shuffle(items)
    examples = [encode(item, tokenizer) for item in items]
    rows = _wrapped(examples, cell) if cell.packing == "wrapped" else _whole(examples, cell)
    count = cell.max_steps * cell.gradient_accumulation_steps * cell.batch_size
    return rows.select([i % len(rows) for i in range(count)])


def _whole(examples: list[Encoded], cell: Cell) -> "datasets.Dataset":
    """One example a row, or whole examples packed best-fit (TRL's ``pack_dataset``) and shuffled again by the seed.

    Best-fit decreasing sorts by length; without the second shuffle the first steps would see the longest examples.
    """
    short = [e for e in examples if len(e.input_ids) <= cell.max_length]
    if not short:
        shortest = min(len(e.input_ids) for e in examples)
        raise InputError(
            f"max_length {cell.max_length}",
            f"all {len(examples)} training examples of task {cell.task} are longer; the shortest has {shortest} tokens",
            f"set max_length to at least {shortest}",
        )
    if len(short) < len(examples):
        log.warning(
            "dropped %d of %d examples over %d tokens", len(examples) - len(short), len(examples), cell.max_length
        )
    rows = _dataset(short)
    if cell.packing == "off":
        return rows
    from trl import pack_dataset

    packed = pack_dataset(rows, cell.max_length, strategy="bfd", map_kwargs={"batch_size": len(short)})
    order = list(range(len(packed)))
    random.Random(cell.seed).shuffle(order)
    return packed.select(order)


def _wrapped(examples: list[Encoded], cell: Cell) -> "datasets.Dataset":
    """All examples as one stream, cut into rows of exactly ``max_length``; the tail that fills no row is left out."""
    ids = [token for e in examples for token in e.input_ids]
    labels = [label for e in examples for label in e.labels]
    size = cell.max_length
    starts = range(0, len(ids) - size + 1, size)
    if not starts:
        raise InputError(
            f"max_length {size}",
            f"the whole training set of task {cell.task} has {len(ids)} tokens, less than one row",
            "raise train_examples or lower max_length",
        )
    return _dataset([Encoded(ids[s : s + size], labels[s : s + size]) for s in starts])


def _dataset(rows: list[Encoded]) -> "datasets.Dataset":
    import datasets

    return datasets.Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


@dataclass(frozen=True)
class Batch:
    """What the collator saw of one batch."""

    sha256: str
    """Over the rows' input ids and labels, whatever layout the collator gives them."""
    rows: int
    padded_tokens: int
    """Positions computed: the size of the collated ``input_ids``."""
    real_tokens: int
    """Positions that are not padding."""
    trained_tokens: int
    """Positions whose next token has a label: what the loss is averaged over."""


class StreamCollator:
    """Stands around the collator that a trainer chose for itself, and records each batch in call order.

    The digest is over the rows as they come in, so that it is equal for two backends of which one pads a batch and
    the other flattens it; ``padded_tokens`` tells the two apart.

    A loader may ask for batches ahead of the trainer, so the hash is over the first n; a loader with workers would
    collate, and record, in another process: use ``dataloader_num_workers=0``.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], Any]) -> None:
        self.inner = inner
        self.batches: list[Batch] = []
        self.first_tokens: list[int] = []
        """Token ids of the first batch, row after row, without padding."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        plain = [(list(row["input_ids"]), list(row["labels"])) for row in rows]
        if not self.batches:
            self.first_tokens = [token for ids, _ in plain for token in ids]
        batch = self.inner(rows)
        self.batches.append(
            Batch(
                sha256=hashlib.sha256(repr(plain).encode()).hexdigest(),
                rows=len(rows),
                padded_tokens=batch["input_ids"].numel(),
                real_tokens=sum(len(ids) for ids, _ in plain),
                trained_tokens=sum(label != IGNORED for _, labels in plain for label in labels[1:]),
            )
        )
        return batch

    def stream_sha256(self, n_batches: int) -> str:
        """Hash over the digests of the first ``n_batches`` batches, in order."""
        assert n_batches <= len(self.batches), f"{n_batches} batches asked for, {len(self.batches)} collated"
        return hashlib.sha256("".join(b.sha256 for b in self.batches[:n_batches]).encode()).hexdigest()
