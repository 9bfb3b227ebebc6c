"""Level static: import, import time, kernels, the signatures that the harness calls, and what the release demands."""

import ast
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.regress.overlay import COMPANIONS, Overlay
from bench.regress.process import run
from bench.regress.reading import Reading

TIMEOUT_S = 240.0


def measure(overlay: Overlay, *, runs: int = 1, timeout_s: float = TIMEOUT_S) -> list[Reading]:
    """Import the package in ``runs`` fresh processes; read the rest from its files and metadata."""
    imports = [_imported(overlay, timeout_s) for _ in range(runs)]
    failed = next((said["error"] for said in imports if "error" in said), None)
    readings = [Reading(name="static/import", state="bad" if failed else "good", text=failed or "")]
    if not failed:
        times = [float(said["import_s"]) for said in imports]
        readings.append(Reading(name="static/import_s", values=times, unit="s"))
        readings += [Reading(**item) for item in imports[0]["signatures"]]
    for demand in overlay.demands():
        name = f"static/requirements/{demand.name}"
        readings.append(Reading(name=name, state="unknown" if demand.here is None else "bad", text=demand.text))
    for package in (overlay.package, *COMPANIONS.get(overlay.package, ())):
        readings += [Reading(name=f"static/kernels/{name}", state="good") for name in kernels(overlay.folder / package)]
    return readings


def _imported(overlay: Overlay, timeout_s: float) -> dict[str, Any]:
    """What the child says; ``error`` where the import failed or did not end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "import.json")
        command = [sys.executable, "-m", "bench.regress.levels.static_child", str(out), overlay.package]
        ended = run(command, [overlay.folder], timeout_s)
        if ended.code is None:
            return {"error": f"hangs: the import did not end in {timeout_s:.0f} s"}
        if not out.is_file():
            return {"error": f"the import ended its process: {ended.why}"}
        said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return said


def kernels(package: Path) -> list[str]:
    """Names of the functions that ``triton.jit`` compiles, from the source files: ``package.module.function``."""
    found = []
    for file in sorted(package.rglob("*.py")) if package.is_dir() else ():
        text = file.read_text(encoding="utf-8", errors="replace")
        if "triton" not in text:
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        module = ".".join([package.name, *file.relative_to(package).with_suffix("").parts])
        found += [f"{module}.{node.name}" for node in ast.walk(tree) if _is_kernel(node)]  # type: ignore[attr-defined]
    return sorted(set(found))


def _is_kernel(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    return any(isinstance(item, ast.Attribute) and item.attr == "jit" for item in decorators) and any(
        "triton" in ast.unparse(item) for item in decorators
    )
