"""The section of the memory model for made-up records: the shipped fit, its table and accuracies replaced."""

from collections.abc import Sequence

from bench.advise.fit import Fit, PredictedMeter, Row, load_fit
from bench.advise.rank import RankAccuracy, RankScore
from bench.advise.section import section
from bench.record import Record
from bench.report.sections import Section
from tests.report.beside import NASTY

GIB = 2**30


def memory_model(records: Sequence[Record]) -> Section:
    """Of the records that are ok."""
    made = section(records, fit_of(records))
    assert made is not None
    return made


def fit_of(records: Sequence[Record]) -> Fit:
    """Each predicted 5 % too high; accuracy by rank of both backends, and of a model with a hostile name."""
    known = [one for one in records if one.status == "ok" and one.cell.model == "llama-3.1-8b"]
    meters: tuple[PredictedMeter, ...] = ("torch_allocated", "torch_reserved", "nvml_process")
    rows = [
        Row(record_id=one.id, model=one.cell.model, backend=one.cell.backend, setting=f"r{one.cell.r} {NASTY}",
            measured={meter: 20 * GIB for meter in meters}, predicted={meter: 21 * GIB for meter in meters})
        for one in known
    ]  # fmt: skip
    accuracy = [_accuracy(backend, known) for backend in ("hf-peft", "unsloth")]
    return load_fit().model_copy(update={
        "rows": rows, "accuracy": [accuracy[0].model_copy(update={"model": NASTY}), *accuracy]
    })  # fmt: skip


def _accuracy(backend: str, records: Sequence[Record]) -> RankAccuracy:
    ids = {one.cell.r: one.id for one in records if one.cell.backend == backend}
    scores = [
        RankScore(r=r, accuracy=0.5 + r / 1000, difference=(r - 64) / 1000, low=(r - 64) / 1000 - 0.04,
                  high=(r - 64) / 1000 + 0.04, not_worse=r == 64, record_ids=[ids[r]])
        for r in (4, 16, 64)
    ]  # fmt: skip
    return RankAccuracy(model="llama-3.1-8b", model_type="llama", task="chain-sum", backend=backend, items=60, seeds=1,
                        margin=0.03, ranks=scores)  # fmt: skip
