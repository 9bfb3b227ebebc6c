"""Makes models and data ready for a run, in a process of its own: ``python -m bench.prepare``, cells on stdin.

Answers with one JSON line: ``{"ready": [...]}`` or ``{"error": "..."}``.
"""

import json
import sys
import traceback
from pathlib import Path

from bench.cell import Cell
from bench.errors import PeftmarkError


def prepare(cells: list[Cell], base: Path, offline: bool) -> list[dict[str, str]]:
    """Materialise each distinct model and task of the cells; what is there, with its hash."""
    from bench.models.sources import resolve
    from bench.tasks import materialise

    ready: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        if cell.backend == "fake":
            continue
        model = resolve(cell, offline=offline)
        files = materialise(cell, offline=offline, base=base)
        ready[("model", model.source_detail)] = {
            "what": "model", "name": cell.model, "detail": model.source_detail,
            "sha256": model.weights_sha256 or model.config_sha256,
        }  # fmt: skip
        ready[("task", files.train_sha256)] = {
            "what": "task", "name": cell.task, "sha256": files.train_sha256,
            "detail": f"{cell.train_examples} training, {cell.eval_examples} held out",
        }  # fmt: skip
    return list(ready.values())


def main() -> int:
    """Command line; see the module's docstring."""
    request = json.loads(sys.stdin.read())
    answer_to, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    try:
        cells = [Cell.model_validate(c) for c in request["cells"]]
        answer: dict[str, object] = {"ready": prepare(cells, Path(request["base"]), request["offline"])}
    except PeftmarkError as error:
        answer = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"preparation failed: {type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answer_to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
