"""The fresh process of one cell: ``python -m bench.worker JOB.json``. Writes a journal; the parent makes the record."""

import json
import logging
import os
import sys
import traceback
from pathlib import Path

from bench import backends
from bench.backends.base import WorkerJob
from bench.cell import Cell
from bench.errors import AuditError, Diverged, PeftmarkError, Unsupported
from bench.events import Journal
from bench.record import Status


def classify(error: BaseException) -> Status:
    """The status that an exception means."""
    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, Diverged):
        return "diverged"
    chain: BaseException | None = error
    while chain is not None:
        if "OutOfMemoryError" in type(chain).__name__ or "CUDA out of memory" in str(chain):
            return "oom"
        if isinstance(chain, MemoryError):
            return "oom"
        chain = chain.__cause__ or chain.__context__
    return "crashed"


def main() -> int:
    """Run the job that the file describes; 0 when it ended well, 1 when the journal says how it failed."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    journal = Journal(folder / "journal.jsonl", started=job["started"])
    worker_job = WorkerJob(cell=Cell.model_validate(job["cell"]), folder=folder, base=Path(job["base"]))
    try:
        backends.get(worker_job.cell.backend).run(worker_job, journal)
    except BaseException as error:
        traceback.print_exc()
        own = isinstance(error, AuditError | PeftmarkError)
        text = str(error) if own else f"{type(error).__name__}: {error}"
        journal.write("failed", status=classify(error), message=text.strip()[:2000])
        return 1
    journal.write("done")
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is written; taking torch and a CUDA context down in order costs seconds a cell
