"""The mutants and the mutation test: a few mutants run for real; the whole list runs by ``peftmark kernels mutate``."""

import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.environment import current
from bench.errors import InputError
from kernels_check import cli
from kernels_check.families import FAMILIES
from kernels_check.loading import folder_of
from kernels_check.mutants import UNSLOTH, Mutant, all_mutants
from kernels_check.mutate import MutationRecord, Outcome, mutate

MISSING = [name for name in ("triton", "unsloth") if not importlib.util.find_spec(name)]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
TOY = Mutant(name="toy", file="x.py", old="a + b", new="a - b", families=("swiglu",))


def test_there_are_enough_mutants_and_each_has_a_name_and_known_families() -> None:
    mutants = all_mutants()
    assert sum(mutant.equivalent is None for mutant in mutants) >= 30
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert {family for mutant in mutants for family in mutant.families} <= set(FAMILIES)
    assert all(mutant.families for mutant in mutants)


@installed
def test_every_mutant_fits_the_installed_release_and_stays_python() -> None:
    folder = folder_of("unsloth")
    assert folder is not None
    for mutant in all_mutants():
        source = (folder / "kernels" / mutant.file).read_text("utf-8")
        faulty = mutant.applied(source)
        assert faulty != source
        compile(faulty, mutant.file, "exec")


@pytest.mark.parametrize(("source", "times"), [("a * b", 0), ("a + b; a + b", 2)])
def test_a_text_that_does_not_occur_once_is_told(source: str, times: int) -> None:
    with pytest.raises(InputError, match=rf"toy.*occurs {times} times in kernels/x.py.*\n?.*unsloth {UNSLOTH}"):
        TOY.applied(source)
    assert TOY.applied("x = a + b") == "x = a - b"


def outcome(status: str) -> Outcome:
    return Outcome.model_validate(dict(mutant="m", file="f", status=status, equivalent=None, verdicts=[]))


@pytest.mark.parametrize(
    ("killed", "survived", "flagged", "ok"), [(19, 1, 0, True), (18, 1, 0, False), (20, 0, 1, False), (0, 0, 0, True)]
)
def test_the_score_and_what_is_good_enough(killed: int, survived: int, flagged: int, ok: bool) -> None:
    counts = {"killed": killed, "survived": survived, "flagged": flagged, "equivalent": 3}
    outcomes = [outcome(status) for status, times in counts.items() for _ in range(times)]
    empty = {"created": datetime.now(UTC), "seed": 0, "unsloth": None, "environment": current(), "seconds": 0}
    record = MutationRecord.model_validate(empty | {"outcomes": outcomes})
    assert record.ok == ok
    assert record.score == (killed / (killed + survived) if killed + survived else None)


@installed
def test_faults_are_killed_and_an_equivalent_mutant_is_not(tmp_path: Path) -> None:
    """One fault each of arithmetic, of a mask (seen through the guards alone) and of precision; one equivalent."""
    names = [
        "swiglu backward: slope's last term",
        "swiglu forward: mask one past",
        "swiglu backward: sigmoid in the storage dtype",
        "swiglu: half the block",
    ]
    told: list[tuple[int, int]] = []
    record = mutate(names=names, progress=lambda done, total: told.append((done, total)))
    outcomes = {outcome.mutant: outcome for outcome in record.outcomes}
    assert [outcomes[name].status for name in names] == ["killed"] * 3 + ["equivalent"]
    first = [outcomes[name].verdicts[0].bad for name in names]
    assert first[0] is not None and "de: " in (first[0].reason or "")
    assert first[1] is not None and "1 element(s) written after" in (first[1].reason or "")
    assert first[2] is not None and first[2].dtype != "float32"
    assert first[3] is None
    assert record.ok and record.score == 1 and told[-1] == (5, 5)  # the kernels as they are run first
    cli.render_mutants(record)


def test_an_unknown_mutant_is_told_with_the_nearest_name() -> None:
    ran = CliRunner().invoke(cli.app, ["mutate", "--mutant", "swiglu: half the blok"])
    assert ran.exit_code == 2 and "no mutant for" in ran.stderr and "'swiglu: half the block'" in ran.stderr


def test_a_process_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('broken triton')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match="broken triton"):
        mutate(only=["swiglu"])
