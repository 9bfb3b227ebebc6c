"""An isolated copy of one release: a folder that fresh processes see before everything else.

``build`` takes a version, a wheel, a folder with the package in it, or a source checkout. What was put into the folder
is locked: names, versions, SHA-256 of wheels. Nothing is installed into the environment that runs the check.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from bench.cache import cache_dir, publish_folder, sha256_file
from bench.errors import InputError
from bench.regress import index as indexing
from bench.regress.index import Index
from bench.regress.reading import Locked

LOCK = "lock.json"
COMPANIONS = {"unsloth": ("unsloth_zoo",)}
"""Packages released together with one, which go into its overlay."""
BINARY = ("torch", "triton", "torchvision", "xformers", "bitsandbytes", "torchao")
"""Never exchanged because a release asks for another: they must fit the driver and each other."""


@dataclass(frozen=True)
class Demand:
    """A package that a release asks for and this environment does not have."""

    name: str
    wants: str
    here: str | None
    """Version that is here; None where the package is absent."""

    @property
    def text(self) -> str:
        """``wants torch<2.11; here is 2.13.0``."""
        return f"wants {self.requirement}; here is {self.here or 'none'}"

    @property
    def requirement(self) -> str:
        """``torch<2.11``."""
        return f"{self.name}{self.wants}"

    @property
    def can_follow(self) -> bool:
        """Whether another version may be put into the overlay; what is absent on both sides stays so."""
        return self.here is not None and self.name not in BINARY


@dataclass(frozen=True)
class Overlay:
    """One release, ready to be seen by a process."""

    package: str
    version: str
    folder: Path
    lock: list[Locked] = field(default_factory=list)

    def demands(self) -> list[Demand]:
        """What its packages require and a process that sees it would not find, by name."""
        paths, found = [str(self.folder), *sys.path], {}
        for asked in self._required():
            here = next((d.version for d in metadata.distributions(name=asked.name, path=paths)), None)
            if here is None or not asked.specifier.contains(here, prereleases=True):
                name = canonicalize_name(asked.name)
                found[name] = Demand(name=name, wants=str(asked.specifier), here=here)
        return [found[name] for name in sorted(found)]

    def companions(self) -> list[str]:
        """What it requires of the packages that are released together with it."""
        names = {canonicalize_name(name) for name in COMPANIONS.get(self.package, ())}
        asked = [required for required in self._required() if canonicalize_name(required.name) in names]
        return [f"{required.name}{required.specifier}" for required in asked]

    def _required(self) -> list[Requirement]:
        """What the packages in the folder require on this machine, without extras."""
        texts = [text for one in metadata.distributions(path=[str(self.folder)]) for text in one.requires or []]
        return [one for one in map(Requirement, texts) if not one.marker or one.marker.evaluate({"extra": ""})]


def build(source: str, package: str, index: Index, *, follow: bool = False) -> Overlay:
    """Make the overlay that ``source`` names (kept in the cache, so that a second check does not download again).

    ``follow``: packages that are here in a version which the release does not allow are put into the overlay in one
    that it does, but for BINARY ones. InputError where ``source`` is nothing that can be had.
    """
    path = Path(source)
    if path.suffix == ".whl":
        return _from_wheel(_existing(path), "wheel", package, index, follow)
    if path.is_dir() and not _is_checkout(path):
        return _in_place(path, package)
    if path.is_dir() or source.startswith("git+"):
        draft = cache_dir() / "wheels" / hashlib.sha256(source.encode()).hexdigest()[:12]
        shutil.rmtree(draft, ignore_errors=True)  # a checkout may have changed since
        wheel = index.fetch(str(path.resolve()) if path.is_dir() else source, draft)
        return _from_wheel(wheel, "checkout", package, index, follow)
    asked = indexing.requirement(package, source)
    wheels = cache_dir() / "wheels" / index.kind / f"{package}-{source}"
    known = sorted(wheels.glob("*.whl")) if not index.wheelhouse else []
    if index.wheelhouse:
        shutil.rmtree(wheels, ignore_errors=True)  # another folder of wheels may hold another file of that name
    return _from_wheel(known[0] if known else index.fetch(asked, wheels), index.kind, package, index, follow)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(str(path), "no such wheel", "give a version, a wheel, a folder or a checkout")
    return path.resolve()


def _is_checkout(path: Path) -> bool:
    return any((path / name).is_file() for name in ("pyproject.toml", "setup.py"))


def _in_place(folder: Path, package: str) -> Overlay:
    """A folder with the package in it, used as it is."""
    found = {d.name: d.version for d in metadata.distributions(path=[str(folder)])}
    names = {canonicalize_name(name): version for name, version in found.items()}
    if not (folder / package).is_dir() and canonicalize_name(package) not in names:
        raise InputError(str(folder), f"holds no {package}", f"fill it: pip install --no-deps --target DIR {package}")
    version = names.get(canonicalize_name(package), "unknown")
    lock = [Locked(name=name, version=found[name], source="folder", sha256=None) for name in sorted(found)]
    return Overlay(package=package, version=version, folder=folder.resolve(), lock=lock)


def _from_wheel(wheel: Path, source: str, package: str, index: Index, follow: bool) -> Overlay:
    name, version, *_ = parse_wheel_filename(wheel.name)
    if name != canonicalize_name(package):
        raise InputError(wheel.name, f"is a wheel of {name}, not of {package}", f"give one of {package}, or --package")
    options = f"{sha256_file(wheel)} {index.wheelhouse} {follow} {indexing.pip_version() >= indexing.UPLOAD_TIMES}"
    target = cache_dir() / "overlays" / f"{name}-{version}-{hashlib.sha256(options.encode()).hexdigest()[:12]}"

    def fill(draft: Path) -> None:
        lock, site = [_put(wheel, draft / "site", source)], draft / "site"
        until, overlay = indexing.built_on(wheel), Overlay(package=package, version=str(version), folder=site)
        for asked in overlay.companions() + (
            [d.requirement for d in overlay.demands() if d.can_follow] if follow else []
        ):
            fetched = index.fetch(asked, draft / "wheels", until=until)
            lock.append(_put(fetched, site, index.kind))
        shutil.rmtree(draft / "wheels", ignore_errors=True)
        (draft / LOCK).write_text(json.dumps([item.model_dump() for item in lock], indent=1) + "\n", encoding="utf-8")

    publish_folder(fill, target)
    locked = [Locked(**item) for item in json.loads((target / LOCK).read_text(encoding="utf-8"))]
    return Overlay(package=package, version=str(version), folder=target / "site", lock=locked)


def _put(wheel: Path, folder: Path, source: str) -> Locked:
    indexing.install(wheel, folder)
    name, version, *_ = parse_wheel_filename(wheel.name)
    built = indexing.built_on(wheel)
    return Locked(
        name=name, version=str(version), source=source, sha256=sha256_file(wheel),
        built=built.isoformat() if built else None,
    )  # fmt: skip
