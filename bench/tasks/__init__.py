"""Tasks: training examples, and an lm-eval task that scores held-out ones; materialised to files with hashes.

    <cache>/tasks/<name>-<digest>/
        train.jsonl             {"question", "answer", "reasoning", "context", "instruction"} a line
        test.jsonl              the same, held out; empty when nothing is evaluated
        peftmark_<name>.yaml    the lm-eval task over test.jsonl

Nothing in the folder names a machine: it can be copied to a host without network. With lm-eval's own command, run it
from inside that folder: ``lm_eval --include_path . --tasks peftmark_chain_sum ...``.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.cache import cache_dir, publish_folder, sha256_file
from bench.cell import Cell, digest_of
from bench.errors import InputError, nearest
from bench.tasks import generated, loaded
from bench.tasks.item import Item, is_held_out

DATA_VERSION = 1
"""Raise when the same cell would give other files than before."""

EVAL_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: test.jsonl
test_split: test
output_type: generate_until
doc_to_text: !function bench.tasks.prompt.doc_to_text
doc_to_target: !function bench.tasks.answers.doc_to_target
process_results: !function bench.tasks.answers.process_results
num_fewshot: 0
generation_kwargs:
  until: []
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: {version}
"""


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """A materialised task."""

    name: str
    folder: Path
    train_jsonl: Path
    test_jsonl: Path
    eval_folder: Path
    """Where lm-eval finds the task's YAML file."""
    eval_task: str
    """lm-eval's name of the task."""
    train_items: int
    """May be fewer than asked for: a data set is used whole and seen again."""
    test_items: int
    train_sha256: str
    eval_sha256: str | None
    """None when nothing is evaluated."""


def names() -> list[str]:
    """Names a cell's ``task`` can have."""
    return [*generated.TASKS, "gsm8k", "custom"]


def materialise(cell: Cell, *, offline: bool = False, base: Path | None = None) -> TaskFiles:
    """The files of the cell's task, made unless they are there.

    ``base`` is the folder that a relative ``custom_task.path`` starts at. Raises InputError for an unknown task, a
    broken or unreachable data set, or too few items.
    """
    if cell.task not in names():
        raise InputError(f"task {cell.task!r}", "no such task", nearest(cell.task, names()))
    content = {
        "version": DATA_VERSION, "task": cell.task, "train": cell.train_examples, "test": cell.eval_examples,
        "source": _source_identity(cell, base),
    }  # fmt: skip
    eval_task = f"peftmark_{cell.task.replace('-', '_')}"

    def build(folder: Path) -> None:
        train, test = _split(cell, offline=offline, base=base)
        _write_jsonl(folder / "train.jsonl", train)
        _write_jsonl(folder / "test.jsonl", test)
        (folder / f"{eval_task}.yaml").write_text(EVAL_YAML.format(task=eval_task, version=DATA_VERSION))

    folder = publish_folder(build, cache_dir() / "tasks" / f"{cell.task}-{digest_of(content)}")
    train_jsonl, test_jsonl = folder / "train.jsonl", folder / "test.jsonl"
    return TaskFiles(
        name=cell.task,
        folder=folder,
        train_jsonl=train_jsonl,
        test_jsonl=test_jsonl,
        eval_folder=folder,
        eval_task=eval_task,
        train_items=_count_lines(train_jsonl),
        test_items=_count_lines(test_jsonl),
        train_sha256=sha256_file(train_jsonl),
        eval_sha256=sha256_file(test_jsonl) if cell.eval_examples else None,
    )


def read_items(path: Path) -> list[Item]:
    """The items of a ``train.jsonl`` or ``test.jsonl``."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [Item(**json.loads(line)) for line in file]


def _source_identity(cell: Cell, base: Path | None) -> object:
    """What the items depend on besides the task's name and the sizes."""
    if cell.task in generated.TASKS:
        return {"reasoning_gym": generated.REASONING_GYM}
    if cell.custom_task is None:
        return loaded.GSM8K
    definition = cell.custom_task.model_dump(mode="json", exclude={"path"})
    if cell.custom_task.path is not None:
        definition["file_sha256"] = sha256_file(loaded.custom_path(cell.custom_task, base))
    return definition


def _split(cell: Cell, *, offline: bool, base: Path | None) -> tuple[list[Item], list[Item]]:
    """Train and test items of the asked sizes, without repeats and without a common item.

    Both lists are prefix-stable: a smaller size gives the first items of a larger one.
    """
    sizes = cell.train_examples, cell.eval_examples
    if task := generated.TASKS.get(cell.task):
        fraction = generated.TEST_FRACTION
        train = _take(task.draw(generated.TRAIN_SEED), sizes[0], lambda key: not is_held_out(key, fraction))
        test = _take(task.draw(generated.TEST_SEED), sizes[1], lambda key: is_held_out(key, fraction))
        return train, _enough(test, cell, f"task {cell.task}")
    if cell.task == "gsm8k":
        test = _take(loaded.gsm8k("test", offline=offline), sizes[1])
        everything_held_out = {item.key for item in loaded.gsm8k("test", offline=offline)}
        train = _take(loaded.gsm8k("train", offline=offline), sizes[0], lambda key: key not in everything_held_out)
        return train, _enough(test, cell, "task gsm8k")
    return _split_custom(cell, offline=offline, base=base)


def _split_custom(cell: Cell, *, offline: bool, base: Path | None) -> tuple[list[Item], list[Item]]:
    """The user's items, in the order of their hashes: a file sorted by difficulty does not bias either side."""
    task = cell.custom_task
    assert task is not None
    where = str(task.path or task.dataset)
    items = {item.key: item for item in loaded.custom_items(task, base=base, offline=offline)}
    if not items:
        raise InputError(where, "it has no items", "write one JSON object a line, with a question and an answer")
    keys = sorted(items)
    train = [items[key] for key in keys if not is_held_out(key, task.test_fraction)]
    if not train:
        raise InputError(
            where,
            f"all {len(items)} distinct items are held out by test_fraction {task.test_fraction}"
            ", none is left to train on",
            "lower custom_task.test_fraction or give more items",
        )
    test = [items[key] for key in keys if is_held_out(key, task.test_fraction)]
    return train[: cell.train_examples], _enough(test[: cell.eval_examples], cell, where)


def _enough(test: list[Item], cell: Cell, where: str) -> list[Item]:
    """``test`` unless it is smaller than the asked evaluation."""
    if len(test) < cell.eval_examples:
        more = "give more items or a larger custom_task.test_fraction, or " if cell.custom_task else ""
        raise InputError(
            where,
            f"eval_examples asks for {cell.eval_examples} held-out items, and there are {len(test)}",
            f"{more}set eval_examples to {len(test)} or less",
        )
    return test


def _take(items: Iterable[Item], count: int, wanted: Callable[[str], bool] = lambda key: True) -> list[Item]:
    """The first ``count`` distinct items whose key is wanted, or as many as there are."""

    def distinct() -> Iterator[Item]:
        seen: set[str] = set()
        for item in items:
            if (key := item.key) not in seen and wanted(key):
                seen.add(key)
                yield item

    return list(islice(distinct(), count))


def _write_jsonl(path: Path, items: list[Item]) -> None:
    path.write_text("".join(json.dumps(i.as_line(), ensure_ascii=False) + "\n" for i in items), encoding="utf-8")


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
