"""Which releases there are, and fetching one: through pip, from the index or a folder of wheels (wheelhouse)."""

import json
import re
import sys
import zipfile
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from bench.errors import InputError
from bench.regress.process import run

TIMEOUT_S = 900.0
UPLOAD_TIMES = (26, 0)
"""The pip that can leave out what was uploaded after a day."""


@dataclass(frozen=True)
class Index:
    """Where releases come from: the index that pip is configured for, or a folder of wheels alone."""

    wheelhouse: Path | None = None

    def __post_init__(self) -> None:
        if self.wheelhouse is not None and not self.wheelhouse.is_dir():
            raise InputError(
                f"--wheelhouse {self.wheelhouse}", "no such folder", "fill one: pip download --dest DIR ..."
            )

    @property
    def kind(self) -> str:
        """What a lock calls it."""
        return "wheelhouse" if self.wheelhouse else "index"

    def versions(self, package: str) -> list[str]:
        """Every release, oldest first, pre-releases left out. InputError where there is none."""
        if self.wheelhouse:
            wheels = [parse_wheel_filename(file.name) for file in self.wheelhouse.glob("*.whl")]
            found = [str(version) for name, version, *_ in wheels if name == canonicalize_name(package)]
        else:
            found = _listed(_pip("index", "versions", package))
        kept = sorted({v for text in found if (v := _version(text)) and not v.is_prerelease})
        if not kept:
            raise InputError(
                package, f"the {self.kind} has no release of it", "check the name, or give --wheelhouse DIR"
            )
        return [str(version) for version in kept]

    def fetch(self, requirement: str, folder: Path, *, until: date | None = None) -> Path:
        """Download the newest wheel that satisfies ``requirement`` into ``folder``.

        ``until``: nothing that was uploaded after that day, where pip and the index can tell.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.glob("*.whl"))
        where = ["--no-index", "--find-links", str(self.wheelhouse.resolve())] if self.wheelhouse else []
        if until and not self.wheelhouse and pip_version() >= UPLOAD_TIMES:
            where = ["--uploaded-prior-to", (until + timedelta(days=1)).isoformat()]
        _pip("wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder.resolve()), *where, requirement)
        new = set(folder.glob("*.whl")) - before
        if len(new) != 1:
            raise InputError(requirement, f"pip gave {len(new)} wheels", "name one release")
        return new.pop()


def install(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into ``folder`` and nowhere else."""
    _pip("install", "--no-deps", "--no-index", "--quiet", "--upgrade", "--target", str(folder.resolve()), str(wheel))


def built_on(wheel: Path) -> date | None:
    """The newest date of a wheel's files: the day on which it was built. None where the wheel keeps no dates."""
    with zipfile.ZipFile(wheel) as archive:
        newest = max((info.date_time for info in archive.infolist()), default=(1980, 1, 1, 0, 0, 0))
    return date(*newest[:3]) if newest[0] > 1980 else None


def requirement(package: str, version: str) -> str:
    """``package==version``. InputError where the version is none."""
    if _version(version) is None:
        raise InputError(version, "is neither a version nor an existing wheel, folder or checkout", "e.g. 2026.10.9")
    return str(Requirement(f"{package}=={version}"))


def pip_version() -> tuple[int, ...]:
    """Of the pip that this module calls."""
    return Version(metadata.version("pip")).release


def _pip(*arguments: str) -> str:
    ended = run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], [], TIMEOUT_S)
    if ended.code:
        error = next((line for line in reversed(ended.log.splitlines()) if "ERROR" in line), ended.why)
        raise InputError(f"pip {arguments[0]} {arguments[-1]}", error.removeprefix("ERROR: "), "see pip's own message")
    if ended.code is None:
        raise InputError(f"pip {arguments[0]} {arguments[-1]}", f"no answer in {TIMEOUT_S:.0f} s", "check the network")
    return ended.log


def _listed(answer: str) -> list[str]:
    """The versions in ``pip index versions``'s answer."""
    if answer.lstrip().startswith("{"):
        return list(json.loads(answer)["versions"])
    found = re.search(r"^Available versions: (.+)$", answer, re.M)
    return found.group(1).split(", ") if found else []


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None
