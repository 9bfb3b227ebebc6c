"""YAML files that people write: plain values, the line of every key, and all problems told in one InputError."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from bench.errors import InputError

Place = tuple[str, ...]
"""Where in the file: keys and list positions, as text."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file."""

    path: Place
    what: str
    mend: str = ""


def read(path: Path) -> tuple[object, dict[Place, int], list[Problem]]:
    """The file's content, the line of each key and list element, and keys given twice."""
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "give the path of a suite file") from error
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise InputError(str(path), f"is not UTF-8 text: {error}", "save it as UTF-8") from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise InputError(str(path), "is empty", "copy a shipped file and change it")
        lines: dict[Place, int] = {}
        problems = list(_walk(node, (), lines, ()))
        return loader.construct_document(node), lines, problems  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise InputError(
            where, f"is not valid YAML: {error.problem}", "check indentation, colons and quotes"
        ) from error
    except (ValueError, RecursionError) as error:  # a date that is none, or nesting without end
        raise InputError(str(path), f"is not valid YAML: {error}", "quote text that looks like a date") from error
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _walk(node: yaml.Node, path: Place, lines: dict[Place, int], above: tuple[int, ...]) -> Iterator[Problem]:
    """Note the line of every key and list element in ``lines``; yield keys given twice."""
    if id(node) in above:
        raise yaml.MarkedYAMLError(None, None, "an alias contains itself", node.start_mark)
    above += (id(node),)
    pairs: list[tuple[str, int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(i), value.start_mark.line + 1, value) for i, value in enumerate(node.value)]
    for key, line, value in pairs:
        here = (*path, key)
        if here in lines and key != "<<":
            yield Problem(here, f"key given twice, first on line {lines[here]}", "keep one of the two")
        lines[here] = line
        yield from _walk(value, here, lines, above)


def refuse(path: Path, lines: Mapping[Place, int], problems: list[Problem]) -> NoReturn:
    """Raise one InputError that tells all problems, in the order of the file."""

    def line(problem: Problem) -> int:
        ends = range(len(problem.path), 0, -1)
        return next((lines[problem.path[:end]] for end in ends if problem.path[:end] in lines), 1)

    told = [
        (f"line {line(p)}{', ' if p.path else ''}{_dotted(p.path)}", p.what, p.mend)
        for p in sorted(dict.fromkeys(problems), key=line)
    ]
    if len(told) == 1:
        raise InputError(f"{path}, {told[0][0]}", told[0][1], told[0][2])
    body = "".join(f"\n  {where}: {what}" + (f"\n    mend: {mend}" if mend else "") for where, what, mend in told)
    raise InputError(str(path), f"{len(told)} problems{body}")


def _dotted(path: Place) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))


def without(raw: object, paths: list[Place], here: Place = ()) -> object:
    """A copy of ``raw`` that lacks what lies at ``paths``, and lists that this empties."""
    if isinstance(raw, dict):
        kept = {k: without(v, paths, (*here, str(k))) for k, v in raw.items() if (*here, str(k)) not in paths}
        return {k: v for k, v in kept.items() if v != [] or raw[k] == []}
    if isinstance(raw, list):
        return [without(v, paths, (*here, str(i))) for i, v in enumerate(raw) if (*here, str(i)) not in paths]
    return raw
