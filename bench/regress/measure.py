"""Measures one release at some levels: the Release that verdicts and the history are made of."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import environment
from bench.cell import digest_of
from bench.errors import PeftmarkError
from bench.groups import machine_name
from bench.regress.levels import kernels, model, static
from bench.regress.overlay import Overlay
from bench.regress.reading import CPU_LEVELS, Level, LevelRun, Reading, Release


@dataclass(frozen=True)
class Options:
    """What is measured."""

    levels: tuple[Level, ...] = CPU_LEVELS
    kernels: str = "quick"
    """quick, all, or families with commas between them."""
    import_runs: int = 1
    """Fresh processes that time the import; from three on it has an interval."""
    import_timeout_s: float = static.TIMEOUT_S


def measure(overlay: Overlay, options: Options, said: Callable[[str], None] = lambda text: None) -> Release:
    """Measure the CPU levels of ``options``. A level that could not run says why; nothing a release does raises."""
    ways: dict[Level, tuple[dict[str, str], Callable[[], list[Reading]]]] = {
        "static": ({}, lambda: static.measure(
            overlay, runs=options.import_runs, timeout_s=options.import_timeout_s)),
        "kernels": ({"families": options.kernels}, lambda: kernels.measure(overlay, chosen=options.kernels)),
        "model": ({"models": " ".join(model.JOBS)}, lambda: model.measure(overlay)),
    }  # fmt: skip
    readings: list[Reading] = []
    levels: dict[Level, LevelRun] = {}
    for level in (level for level in options.levels if level in ways):
        said(f"{overlay.package} {overlay.version}: {level}")
        start, could_not = time.monotonic(), None
        broken = next((r.text for r in readings if r.name == "static/import" and r.state == "bad"), None)
        try:
            if broken and level == "model":
                raise PeftmarkError(f"the package does not import: {broken}")
            readings += ways[level][1]()
        except PeftmarkError as error:
            could_not = str(error)
        seconds = round(time.monotonic() - start, 2)
        levels[level] = LevelRun(seconds=seconds, options=ways[level][0], could_not=could_not)
    machine = environment.current()
    locked = {f"package.{item.name.replace('-', '_')}" for item in overlay.lock} | {f"package.{overlay.package}"}
    facts = {key: value for key, value in machine.comparable().items() if key.replace("-", "_") not in locked}
    return Release(
        created=datetime.now(UTC), package=overlay.package, version=overlay.version, lock=overlay.lock,
        machine=machine_name(machine), environment=facts, checks_sha256=checks_sha256(),
        git_revision=machine.git_revision, git_dirty=machine.git_dirty, levels=levels, readings=readings,
    )  # fmt: skip


def checks_sha256() -> str:
    """Hash over the source files of the checks: releases measured by other checks are not compared."""
    root = Path(__file__).parents[2]
    folders = (root / "kernels_check", root / "bench" / "regress" / "levels")
    return digest_of([environment.harness_sha256(folder) for folder in folders])
