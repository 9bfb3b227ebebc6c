"""Tasks whose items are read: gsm8k from the hub, and the user's own data (a JSONL file or a hub dataset)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.cell import CustomTask
from bench.errors import InputError
from bench.tasks.item import Item

GSM8K = "openai/gsm8k"


def gsm8k(split: str, *, offline: bool) -> Iterator[Item]:
    """Items of ``openai/gsm8k``; the answer follows ``####``, the steps stand before it."""
    for row in _hub_rows(GSM8K, "main", split, offline=offline):
        steps, _, answer = row["answer"].rpartition("####")
        yield Item(
            question=row["question"],
            answer=answer.strip(),
            reasoning=steps.strip() or None,
            instruction="Solve the word problem. The final answer is a number without units.",
        )


def custom_items(task: CustomTask, *, base: Path | None, offline: bool) -> Iterator[Item]:
    """Items of the user's own data, in its order."""
    if task.path is not None:
        path = custom_path(task, base)
        rows: Iterable[tuple[str, Mapping[str, Any]]] = _jsonl_rows(path)
    else:
        assert task.dataset is not None
        found = _hub_rows(task.dataset, task.dataset_config, task.split, offline=offline)
        rows = ((f"{task.dataset}, split {task.split}, row {i}", row) for i, row in enumerate(found))
    for where, row in rows:
        yield Item(
            question=_field(row, task.question, "question", where),
            answer=_field(row, task.answer, "answer", where),
            reasoning=_optional(row, task.reasoning, "reasoning", where),
            context=_optional(row, task.context, "context", where),
            instruction=task.instruction,
        )


def custom_path(task: CustomTask, base: Path | None) -> Path:
    """The JSONL file of a custom task; a relative path starts at ``base``, the suite file's folder."""
    assert task.path is not None
    path = Path(base or Path.cwd(), Path(task.path).expanduser())
    if not path.is_file():
        raise InputError(
            str(path), "no such task file", "correct custom_task.path; relative paths start at the suite file's folder"
        )
    return path


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, object) of every line that is not blank; lines are counted from 1."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise InputError(where, f"not UTF-8 text ({error.reason})", "save the file as UTF-8") from None
            except json.JSONDecodeError as error:
                raise InputError(
                    where, f"not valid JSON ({error.msg} at column {error.colno})", "write one JSON object a line"
                ) from None
            if not isinstance(row, dict):
                raise InputError(where, f"a JSON {type(row).__name__}, not an object", "write one JSON object a line")
            yield where, row


def _field(row: Mapping[str, Any], name: str, role: str, where: str) -> str:
    """Text of a field that must be there and hold a text or a number."""
    text = _optional(row, name, role, where)
    if text is None:
        raise InputError(where, f"field {name!r} is empty", f"give every item its {role}, or remove the line")
    return text


def _optional(row: Mapping[str, Any], name: str | None, role: str, where: str) -> str | None:
    """Text of a mapped field; None where it is not mapped, null or blank. A mapped field that is absent is an error."""
    if name is None:
        return None
    if name not in row:
        raise InputError(
            where,
            f"no field {name!r} (custom_task.{role}); its fields are: {', '.join(map(repr, row)) or 'none'}",
            f"set custom_task.{role} to the field that holds the {role}, or add it to the line",
        )
    value = row[name]
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(
            where, f"field {name!r} holds a {type(value).__name__}, not text or a number", "write it as text"
        )
    return str(value).strip() or None if value is not None else None


def _hub_rows(name: str, config: str | None, split: str, *, offline: bool) -> Iterable[Mapping[str, Any]]:
    """Rows of one split of a hub dataset; ``offline`` reads only what an earlier fetch has left on this machine."""
    import datasets

    try:
        return datasets.load_dataset(
            name, config, split=split, download_config=datasets.DownloadConfig(local_files_only=offline)
        )
    except Exception as error:  # the library raises many kinds here: no network, no such name, config or split
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"dataset {name}" + (f" ({config})" if config else ""),
            f"split {split!r} cannot be loaded{' offline' if offline else ''}: {first_line}",
            "run 'peftmark fetch SUITE' where there is network, or choose a generated task such as chain-sum",
        ) from None
