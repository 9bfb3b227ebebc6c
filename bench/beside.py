"""What lies beside the records of a results folder, as sections of the report: limits, kernels and releases.

It is found where the commands put it: every ``limit.json`` (``peftmark limit``), the JSON files of ``FOLDER/kernels``
(``peftmark kernels``, with --out), and ``FOLDER/releases/*.jsonl`` (``peftmark watch``, with --history).
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from bench.errors import InputError
from bench.report.sections import Section

T = TypeVar("T")


def sections(folders: Sequence[Path], out: Path, on_page: Collection[str]) -> tuple[list[Section], list[str]]:
    """The sections of a page in ``out``, those without data left out, and the files that could not be read, each with
    the reason. ``on_page``: ids of the records that the page shows."""
    from bench.limit import result
    from bench.limit import section as limits
    from bench.regress import history
    from bench.regress import section as releases
    from kernels_check.page import reading
    from kernels_check.page import section as kernels

    unread: list[str] = []

    def files(pattern: str) -> Iterable[Path]:
        return sorted(path for folder in folders for path in folder.glob(pattern))

    made = [
        limits.section(_read(files(f"**/{result.FILE}"), result.read, unread), out, on_page),
        kernels.section(_read(files("kernels/*.json"), reading.read, unread), out),
        releases.section(_read(files("releases/*.jsonl"), history.read, unread), out),
    ]
    return [section for section in made if section], unread


def _read(paths: Iterable[Path], read: Callable[[Path], T], unread: list[str]) -> dict[Path, T]:
    """Each file once, although a folder may be below another."""
    found = {}
    for path in {path.resolve(): path for path in paths}.values():
        try:
            found[path] = read(path)
        except (InputError, OSError, UnicodeDecodeError) as error:
            unread.append(str(error) if isinstance(error, InputError) else f"{path}: cannot be read: {error}")
    return found
