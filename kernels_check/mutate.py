"""The mutation test: does the check see faults that are put into the kernels on purpose?

    mutants --one process each--> execute --first bad entry--> Outcome --> MutationRecord --cli--> table

One child imports the heavy libraries once (``python -m kernels_check.mutate FOLDER SEED FAMILY,MUTANT ...``) and forks
a process for each mutant and family. There the folder with the faulty file comes before Unsloth's own kernels, and the
family's cases run as ``check`` runs them, Unsloth's candidates alone, until the first bad entry. First of all every
family runs on the kernels as they are, and must pass.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench import environment
from bench.cell import Frozen
from bench.environment import Environment
from bench.errors import InputError, nearest
from kernels_check import interpreter, loading
from kernels_check.mutants import Mutant, all_mutants
from kernels_check.processes import child_environment, could_not_run, forked
from kernels_check.record import BAD, Entry, checks_sha256

SCHEMA_VERSION = 1
LOWEST_SCORE = 0.95


class Verdict(Frozen):
    """One mutant in one family."""

    mutant: str
    """Empty for the kernels as they are."""
    family: str
    bad: Entry | None
    """The first bad entry, after which no more cases ran; None if every case passed."""
    seconds: float


class Outcome(Frozen):
    """One mutant. ``killed``: each of its families saw it. ``flagged``: an equivalent mutant that one took for a
    fault."""

    mutant: str
    file: str
    status: Literal["killed", "survived", "equivalent", "flagged"]
    equivalent: str | None
    """Why it is equivalent."""
    verdicts: list[Verdict]


class MutationRecord(Frozen):
    """One run of ``peftmark kernels mutate``."""

    schema_version: int = SCHEMA_VERSION
    created: datetime
    seed: int
    unsloth: str | None
    environment: Environment
    checks_sha256: str | None = None
    """Null in the records of 2026-11-24 and before."""
    outcomes: list[Outcome]
    seconds: float

    def count(self, status: str) -> int:
        """How many mutants ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def score(self) -> float | None:
        """Share of the mutants that are no equivalent ones and were killed; None without such."""
        faults = self.count("killed") + self.count("survived")
        return self.count("killed") / faults if faults else None

    @property
    def ok(self) -> bool:
        """Whether the score is high enough and no equivalent mutant was flagged."""
        return not self.count("flagged") and (self.score is None or self.score >= LOWEST_SCORE)


def mutate(
    *, only: list[str] | None = None, names: list[str] | None = None, seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MutationRecord:  # fmt: skip
    """Run the mutants of the families ``only`` (default: all), or those called ``names``.

    ``progress`` is told how many of how many runs are done. Raises InputError for an unknown family or mutant, where
    the processes cannot start, and where the kernels fail the check as they are.
    """
    start, chosen = time.monotonic(), _chosen(only, names)
    pairs = [(mutant, family) for mutant in chosen for family in mutant.families if not only or family in only]
    jobs = [("", family) for family in dict.fromkeys(family for _, family in pairs)]
    jobs += [(mutant.name, family) for mutant, family in pairs]
    verdicts = []
    for verdict in _verdicts(jobs, seed):
        if not verdict.mutant and verdict.bad:
            bad = f"{verdict.family}/{verdict.bad.case} {verdict.bad.dtype}: {verdict.bad.reason}"
            raise InputError("kernels mutate", f"the kernels fail the check as they are: {bad}", "kernels check first")
        verdicts.append(verdict)
        progress(len(verdicts), len(jobs))
    return MutationRecord(
        created=datetime.now(UTC),
        seed=seed,
        unsloth=loading.version("unsloth"),
        environment=environment.current(),
        checks_sha256=checks_sha256(),
        outcomes=[_outcome(mutant, [v for v in verdicts if v.mutant == mutant.name]) for mutant in chosen],
        seconds=round(time.monotonic() - start, 2),
    )


def _chosen(only: list[str] | None, names: list[str] | None) -> list[Mutant]:
    known = all_mutants()
    for what, asked, there in (
        ("--only", only, {family for mutant in known for family in mutant.families}),
        ("--mutant", names, {mutant.name for mutant in known}),
    ):
        for name in asked or []:
            if name not in there:
                raise InputError(what, f"no mutant for {name!r}", nearest(name, sorted(there)))
    return [
        mutant
        for mutant in known
        if (not names or mutant.name in names) and (not only or set(only) & set(mutant.families))
    ]


def _outcome(mutant: Mutant, verdicts: list[Verdict]) -> Outcome:
    seen = [verdict.bad is not None for verdict in verdicts]
    status: Literal["killed", "survived", "equivalent", "flagged"]
    status = ("flagged" if any(seen) else "equivalent") if mutant.equivalent else "killed" if all(seen) else "survived"
    return Outcome(mutant=mutant.name, file=mutant.file, status=status, equivalent=mutant.equivalent, verdicts=verdicts)


def _verdicts(jobs: list[tuple[str, str]], seed: int) -> Iterator[Verdict]:
    """Start the child and read its lines."""
    arguments = [f"{family},{mutant}" for mutant, family in jobs]
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "kernels_check.mutate", folder, str(seed), *arguments],
            env=child_environment(), stdout=subprocess.PIPE, stderr=said, text=True,
        ) as child,
    ):  # fmt: skip
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield Verdict.model_validate_json(line)
        except BaseException:
            child.terminate()
            raise
        if child.wait():
            said.seek(0)
            raise could_not_run("kernels mutate", "process", said.read())


def main(arguments: list[str]) -> None:
    """The child: see the module's docstring. One verdict a line on standard output; the kernels' own prints go
    elsewhere."""
    from kernels_check import child

    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, seed, *given = arguments
    jobs = [(mutant, family) for family, _, mutant in (argument.partition(",") for argument in given)]
    child.prepare("cpu")
    kernels = loading.folder_of("unsloth")
    if kernels is None:
        raise ModuleNotFoundError("unsloth is not installed")
    for shared in ("unsloth_zoo.utils", "unsloth_zoo.loss_utils", "unsloth_zoo.patching_utils"):
        importlib.import_module(shared)  # what most kernel modules import: once
    mutants = {mutant.name: mutant for mutant in all_mutants()}
    for job, code, seconds in forked(partial(_run_family, mutants, Path(folder), kernels / "kernels", int(seed)), jobs):
        bad = _bad(_place(Path(folder), job), code, job[1], int(seed))
        verdict = Verdict(mutant=job[0], family=job[1], bad=bad, seconds=seconds)
        print(verdict.model_dump_json(), file=lines, flush=True)


def _place(folder: Path, job: tuple[str, str]) -> Path:
    """The folder of one job: its faulty file and its notes."""
    return folder / re.sub(r"\W+", "-", " ".join(job))


def _bad(place: Path, code: int, family: str, seed: int) -> Entry | None:
    """What the process of one job left: its first bad entry, or how it died."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (place / "entries").read_text("utf-8").splitlines()]
    if not code:
        return Entry(**lines[-1]) if lines[-1:] and lines[-1].get("status") in BAD else None
    return Entry(family=family, **lines[-1], seed=seed, status="crashed", reason=f"its process ended with {code}")


def _run_family(mutants: dict[str, Mutant], folder: Path, kernels: Path, seed: int, job: tuple[str, str]) -> None:
    """In the forked process: run the family's cases until one is bad, with the faulty file before Unsloth's."""
    from kernels_check import execute

    (name, family), place = job, _place(folder, job)
    place.mkdir()
    if name:
        file = mutants[name].file
        if (package := Path(file).parts[0]) != file:  # a package comes whole: Python does not join two folders of it
            shutil.copytree(kernels / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
        (place / file).write_text(mutants[name].applied((kernels / file).read_text("utf-8")), encoding="utf-8")
    sys.modules["unsloth.kernels"].__path__ = [str(place), str(kernels)]
    with (place / "entries").open("w", encoding="utf-8") as notes:
        for case in importlib.import_module(f"kernels_check.families.{family}").cases():
            for dtype in case.dtypes if "cpu" in case.devices else ():
                expected = execute.expect(case, dtype, seed)
                for candidate in (name for name in case.candidates if name.startswith("unsloth")):
                    running = {"case": case.name, "dtype": dtype, "candidate": candidate}
                    print(json.dumps(running), file=notes, flush=True)
                    entry = execute.run_one(case, dtype, candidate, "cpu", seed, expected)
                    if entry.status in BAD and not entry.known_fault:
                        print(entry.model_dump_json(), file=notes)
                        return


if __name__ == "__main__":
    interpreter.prepare_environment()
    main(sys.argv[1:])
