"""Materialised tasks: sizes, disjointness over the items, determinism, and what bad input says."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.cell import Cell, CustomTask
from bench.errors import InputError
from bench.tasks import TaskFiles, generated, materialise, names, read_items
from bench.tasks.item import Item, is_held_out
from bench.tasks.prompt import messages, target

SHIPPED = ["chain-sum", "gsm-symbolic", "logic"]


def make_cell(task: str = "chain-sum", **fields: Any) -> Cell:
    return Cell(**{"model": "m", "task": task, "train_examples": 40, "eval_examples": 10, **fields})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("task", SHIPPED)
def test_train_and_test_have_no_item_in_common(task: str) -> None:
    files = materialise(make_cell(task, train_examples=2000, eval_examples=500))
    train, test = read_items(files.train_jsonl), read_items(files.test_jsonl)
    assert (len(train), len(test)) == (files.train_items, files.test_items) == (2000, 500)

    def questions(items: list[Item]) -> set[str]:
        return {" ".join(item.question.lower().split()) for item in items}

    assert len(questions(train)) == 2000 and len(questions(test)) == 500, "repeats within a side"
    assert not questions(train) & questions(test)


@pytest.mark.parametrize("task", SHIPPED)
def test_same_bytes_in_a_fresh_cache_and_under_another_training_seed(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashes(cache: str, seed: int) -> tuple[str, str | None]:
        monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / cache))
        files = materialise(make_cell(task, seed=seed))
        return files.train_sha256, files.eval_sha256

    assert hashes("one", 1) == hashes("two", 2)


def test_smaller_sizes_are_prefixes_of_larger_ones() -> None:
    small = materialise(make_cell(train_examples=10, eval_examples=5))
    large = materialise(make_cell(train_examples=60, eval_examples=20))
    assert read_items(large.test_jsonl)[:5] == read_items(small.test_jsonl)
    assert read_items(large.train_jsonl)[:10] == read_items(small.train_jsonl)


def test_chain_sum_answers_are_the_sums() -> None:
    for item in read_items(materialise(make_cell(train_examples=200)).train_jsonl):
        expression = item.question.removesuffix(" = ?")
        assert set(expression) <= set("0123456789 +-")
        assert eval(expression) == int(item.answer)
        assert 2 <= len(expression.replace("- ", "+ ").split(" + ")) <= 4


def test_gsm_symbolic_has_worked_steps_without_the_closing_answer() -> None:
    for item in read_items(materialise(make_cell("gsm-symbolic", train_examples=200)).train_jsonl):
        assert item.reasoning and "####" not in item.reasoning
        assert target(item).splitlines()[-1] == f"Answer: {item.answer}"
        assert target(item).startswith(item.reasoning)


def test_logic_answers_solve_the_puzzle_as_the_generator_does() -> None:
    task = generated.TASKS["logic"]
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task.generator, seed=7, size=20, **task.config)
    for entry in dataset:
        item = task.to_item(entry)
        told = dict(pair.split(": ") for pair in item.answer.split(", "))
        facts = entry["metadata"]
        knight = facts["knight_knave_terms"]["knight"]
        assert [told[name] == knight for name in facts["names"]] == list(facts["solution"])
        assert "Format your answer" not in item.question


def test_prompt_has_instruction_context_question_and_format() -> None:
    item = Item(question="Q?", answer="multi\nline", context="C.", instruction="Do it.")
    (turn,) = messages(item)
    assert turn["role"] == "user"
    assert turn["content"].startswith("Do it.\n\nContext:\nC.\n\nQuestion:\nQ?\n\n")
    assert 'of the form "Answer: <final answer>"' in turn["content"]
    assert target(item) == "Answer: multi line"
    assert "multi" not in turn["content"]


def test_no_evaluation_means_no_test_items() -> None:
    files = materialise(make_cell(eval_examples=0))
    assert files.eval_sha256 is None and files.test_items == 0 and files.test_jsonl.read_bytes() == b""


def test_folder_names_no_machine(tmp_path: Path) -> None:
    files = materialise(make_cell())
    for path in files.folder.iterdir():
        assert str(tmp_path) not in path.read_text() and str(Path.home()) not in path.read_text()


def test_second_call_reuses_the_folder() -> None:
    first = materialise(make_cell())
    stamp = first.train_jsonl.stat().st_mtime_ns
    assert materialise(make_cell(r=64)) == first
    assert first.train_jsonl.stat().st_mtime_ns == stamp


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="'chain-sun'.*\n.*did you mean 'chain-sum'"):
        materialise(make_cell("chain-sun"))
    assert {*SHIPPED, "gsm8k", "custom"} == set(names())


# --- the user's own data ---


def custom(base: Path, text: str | bytes, *, train: int = 1000, evals: int = 0, **mapping: Any) -> TaskFiles:
    (base / "mine.jsonl").write_bytes(text.encode() if isinstance(text, str) else text)
    task = CustomTask(path="mine.jsonl", **mapping)
    return materialise(make_cell("custom", custom_task=task, train_examples=train, eval_examples=evals), base=base)


def lines(count: int) -> str:
    return "".join(json.dumps({"q": f"What is {i}?", "a": i, "why": f"since {i}"}) + "\n" for i in range(count))


MAPPING: dict[str, Any] = {"question": "q", "answer": "a"}


def test_custom_splits_by_item_and_caps_the_training_size(tmp_path: Path) -> None:
    files = custom(tmp_path, lines(200) + "\n" + lines(200), evals=20, reasoning="why", **MAPPING)
    train, test = read_items(files.train_jsonl), read_items(files.test_jsonl)
    held_out = {f"What is {i}?" for i in range(200)} - {item.question for item in train}
    assert files.train_items == len(train) == 200 - len(held_out)
    assert 20 < len(held_out) < 70, "a fifth of 200, give or take"
    assert {item.question for item in test} <= held_out and len(test) == 20
    assert train[0].reasoning == f"since {train[0].answer}"


def test_custom_split_of_an_item_does_not_move_when_the_file_grows(tmp_path: Path) -> None:
    before = {i.question for i in read_items(custom(tmp_path, lines(100), **MAPPING).train_jsonl)}
    after = {i.question for i in read_items(custom(tmp_path, lines(150), **MAPPING).train_jsonl)}
    assert before == after & {f"What is {i}?" for i in range(100)}


def test_custom_changed_file_gives_another_folder(tmp_path: Path) -> None:
    assert custom(tmp_path, lines(20), **MAPPING).folder != custom(tmp_path, lines(21), **MAPPING).folder


def test_custom_keeps_unusual_line_separators_inside_a_text(tmp_path: Path) -> None:
    text = json.dumps({"q": "one\u2028two\x85three", "a": "x"}, ensure_ascii=False)
    (item,) = read_items(custom(tmp_path, text, test_fraction=0.0001, **MAPPING).train_jsonl)
    assert item.question == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (lines(2) + '{"q": "broken"\n' + lines(1), ["mine.jsonl, line 3", "not valid JSON", "one JSON object a line"]),
        (lines(1) + "[1, 2]\n", ["mine.jsonl, line 2", "a JSON list"]),
        ('{"q": "x", "answer": "1"}\n', ["mine.jsonl, line 1", "no field 'a'", "'q', 'answer'", "custom_task.answer"]),
        (lines(3) + '{"q": "x", "a": null}\n', ["mine.jsonl, line 4", "field 'a' is empty"]),
        ('{"q": "  ", "a": 1}\n', ["mine.jsonl, line 1", "field 'q' is empty"]),
        ('{"q": ["x"], "a": 1}\n', ["mine.jsonl, line 1", "field 'q' holds a list"]),
        (b'{"q": "\xff\xfe", "a": 1}\n', ["mine.jsonl, line 1", "not UTF-8"]),
        ("", ["mine.jsonl", "no items"]),
        ("\n\n", ["mine.jsonl", "no items"]),
    ],
)
def test_custom_bad_lines_are_named(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        custom(tmp_path, text, **MAPPING)
    for part in parts:
        assert part in str(caught.value)
    assert not [p for p in (tmp_path / "cache" / "tasks").glob("*")], "a failed build must leave nothing"


def test_custom_too_few_held_out_items(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval_examples asks for 50 .* and there are \d+\n.*set eval_examples to \d+"):
        custom(tmp_path, lines(20), evals=50, **MAPPING)


def test_custom_missing_mapped_reasoning_names_the_fields(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: no field 'steps' \(custom_task.reasoning\).*'q', 'a', 'why'"):
        custom(tmp_path, lines(2), reasoning="steps", **MAPPING)


def test_custom_file_that_does_not_exist(tmp_path: Path) -> None:
    cell = make_cell("custom", custom_task=CustomTask(path="nowhere.jsonl"))
    with pytest.raises(InputError, match="nowhere.jsonl: no such task file"):
        materialise(cell, base=tmp_path)


def test_everything_held_out_is_refused(tmp_path: Path) -> None:
    question = next(
        f"q{i}" for i in range(100) if is_held_out(Item(question=f"q{i}", answer="", instruction="").key, 0.5)
    )
    with pytest.raises(InputError, match="none is left to train on"):
        custom(tmp_path, json.dumps({"q": question, "a": 1}), test_fraction=0.5, **MAPPING)


def test_custom_dataset_goes_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for a hub id: ``load_dataset`` takes both."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(lines(30))
    task = CustomTask(dataset=str(tmp_path / "data"), **MAPPING)
    items = read_items(materialise(make_cell("custom", custom_task=task, eval_examples=0)).train_jsonl)
    assert items and all(item.question == f"What is {item.answer}?" for item in items)
    wrong = task.model_copy(update={"answer": "solution"})
    with pytest.raises(InputError, match=r"split train, row 0: no field 'solution'.*'q', 'a', 'why'"):
        materialise(make_cell("custom", custom_task=wrong, eval_examples=0))


def test_hub_data_that_cannot_be_had_offline_names_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"openai/gsm8k \(main\).*offline[\s\S]*peftmark fetch"):
        materialise(make_cell("gsm8k"), offline=True)
