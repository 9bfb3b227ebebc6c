"""Errors that a user can mend, and the one sentence each of them owes.

    PeftmarkError
    ├── InputError        a suite, task file, folder or option is wrong: says where, what, and the mend
    ├── StoreError        a run folder cannot be used (locked by another run, disk full, newer schema)
    ├── Unsupported       this cell cannot run here; becomes a record's status, not a traceback
    ├── AuditError        what ran is not what was asked for
    └── Diverged          the loss became NaN or infinite

Anything else that escapes is a bug in peftmark and keeps its traceback.
"""

from difflib import get_close_matches


class PeftmarkError(Exception):
    """Base of every error that peftmark raises on purpose."""


class InputError(PeftmarkError):
    """Something the user wrote is wrong.

    ``where`` names the file (and line or field), ``what`` the fault, ``mend`` what to do about it.
    """

    def __init__(self, where: str, what: str, mend: str = "") -> None:
        self.where, self.what, self.mend = where, what, mend
        super().__init__(f"{where}: {what}" + (f"\n  mend: {mend}" if mend else ""))


class StoreError(PeftmarkError):
    """A run folder cannot be read or written."""


class Unsupported(PeftmarkError):
    """The cell cannot run on this machine or with this backend; the message is the reason."""


class AuditError(PeftmarkError):
    """The request silently became something else: both values are in the message."""


class Diverged(PeftmarkError):
    """Training produced a NaN or infinite loss."""


def nearest(name: str, known: list[str]) -> str:
    """``did you mean 'x'?``, or the known names when none is near."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
