"""One process of one experiment: ``python -m bench.claims.worker``, request on stdin, one JSON line back."""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from bench.errors import PeftmarkError


def main() -> int:
    """Command line; see the module's docstring."""
    request = json.loads(sys.stdin.read())
    answer_to, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    try:
        module = importlib.import_module(f"bench.claims.experiments.{request['experiment'].replace('-', '_')}")
        answer: dict[str, Any] = module.measure(request["settings"], Path(request["folder"]))
    except PeftmarkError as error:
        answer = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answer_to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
