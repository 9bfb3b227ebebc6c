"""Single-place faults put into Unsloth's kernels on purpose: what the check must see, to show that it works.

A mutant replaces one text, which must occur exactly once in its file, by another: a wrong sign, a mask that is one
short, an eps that is missing, a term that is missing, a row, block or stride that is another's, a sum in 16 bits.
Written for Unsloth 2026.10.9. An *equivalent* mutant computes the same within the rounding errors that the kernel may
make; flagging one would mean that the tolerance is too tight, so they are run too.

Not among them: faults that show past 2^31 elements alone (64-bit offsets), in code generation, or in a race. No input
of the check reaches the first, and the interpreter none of the others.
"""

from dataclasses import dataclass

from bench.errors import InputError

UNSLOTH = "2026.10.9"
"""The release whose sources the texts were taken from."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault."""

    name: str
    file: str
    """Within unsloth/kernels."""
    old: str
    new: str
    families: tuple[str, ...]
    """Each of them must kill it."""
    equivalent: str | None = None
    """Why it computes the same as the original; None for a fault."""

    def applied(self, source: str) -> str:
        """``source`` with the fault. Raises InputError unless the text occurs exactly once."""
        if (times := source.count(self.old)) != 1:
            raise InputError(
                f"mutant {self.name!r}",
                f"its text occurs {times} times in kernels/{self.file}: {self.old.strip().splitlines()[0]!r} ...",
                f"the mutants are written for unsloth {UNSLOTH}: install it, or adapt the mutant",
            )
        return source.replace(self.old, self.new)


def all_mutants() -> tuple[Mutant, ...]:
    """Every mutant, faults and equivalent ones."""
    from kernels_check.mutants import activation, lora, loss, norm, products, rope

    files = (norm, activation, loss, rope, lora, products)
    return tuple(mutant for file in files for mutant in file.MUTANTS)


def mutants(file: str, families: tuple[str, ...], listed: list[tuple[str, ...]]) -> tuple[Mutant, ...]:
    """Mutants of one file from (name, old, new) or (name, old, new, why equivalent)."""
    return tuple(
        Mutant(name=name, file=file, old=old, new=new, families=families, equivalent=why[0] if why else None)
        for name, old, new, *why in listed
    )
