"""The memory model on the report page: its error, what it says by rank, and its word for cards that a cap emulated."""

from collections.abc import Iterable, Sequence

from bench.advise.charts import by_rank_chart, predicted_chart, trade_off_chart
from bench.advise.fit import Fit
from bench.advise.gpus import GpuSpec, table
from bench.advise.parts import MIB
from bench.advise.predict import predict
from bench.advise.question import Asked, Model, Verdict, verdict
from bench.advise.setup import not_modelled, setup_of
from bench.advise.shapes import shape_of
from bench.derived import known_config
from bench.health import computed_well
from bench.limit.probing import is_probe, training_peak
from bench.oom import own
from bench.record import Record
from bench.report.format import UNKNOWN, gib, percent
from bench.report.sections import Cell, Columns, Link, Row, Section, Table
from bench.report.view import anchor


def section(records: Iterable[Record], fit: Fit) -> Section | None:
    """Of the records on the page, those that the fit was made on, and those with the VRAM budget of a known card; None
    without any."""
    by_id = {record.id: record for record in records}
    predicted, capped = predicted_chart(fit, by_id), _capped(list(by_id.values()), fit)
    if predicted is None and not capped:
        return None
    made = [one for one in (predicted, by_rank_chart(fit), trade_off_chart(fit, by_id)) if one]
    data: dict[str, Columns] = {name: columns for _, tables in made for name, columns in tables.items()}
    score = fit.left_out["nvml_process"]
    return Section(
        id="memory-model", title="Memory model", charts=[chart for chart, _ in made], data=data,
        tables=[Table(COLUMNS, capped, title="Advice tried under a cap", note=NOTE)],
        text=f"What peftmark advise predicts, from a fit of {fit.made_on} on {score.records} records of "
             f"{len(fit.architectures)} architectures ({', '.join(fit.gpus)}). NVML process peak, each architecture "
             f"predicted by a fit on the others: median error {percent(score.median)}, 95th percentile "
             f"{percent(score.p95)}, at worst {percent(-score.lowest)} too low. The formulas were mended with these "
             "records at hand, which flatters the errors: docs/advise.md.",
    )  # fmt: skip


COLUMNS = ["Cell", "Card", ">The advisor says", "What happened", "Agreement", "Run"]
NOTE = (
    "A cap on torch's allocator stands for the smaller card: its memory, not its speed. Of GiB, the advisor's are the "
    "predicted NVML process peak with its interval at 95 %. tight: the budget lies inside the interval, and neither "
    "outcome speaks against it."
)


def _capped(records: Sequence[Record], fit: Fit) -> list[Row]:
    """A line a record whose budget is the memory of a card, and whose cell the memory model knows; largest card
    first. A limits search stops where the model can say least, and has a section of its own: left out."""
    known = [record for record in records if not is_probe(record) and not not_modelled(record.cell)]
    found = [(record, cards) for record in known if (cards := _cards(record))]
    found.sort(key=lambda one: (-one[1][0].memory_mib, one[0].cell.model, one[0].cell.backend, one[0].cell.batch_size))
    return [row for record, cards in found if (row := _row(record, cards, fit))]


def _cards(record: Record) -> list[GpuSpec]:
    return [gpu for gpu in table().values() if gpu.memory_mib * MIB == record.cell.vram_budget_bytes]


def _row(record: Record, cards: Sequence[GpuSpec], fit: Fit) -> Row | None:
    cell, config = record.cell, known_config(record)
    if config is None:
        return None
    shape = shape_of(config, cell.model)
    made = predict(fit, shape, setup_of(cell), cards[0].nvml_name)
    asked = Asked(model=Model(name=cell.model, source="random", config=config, shape=shape), gpu=cards[0])
    said, peak, trains = verdict(asked, made), made.peaks["nvml_process"], _trains(record)
    cells = [
        Cell(f"{cell.model} {cell.precision} r{cell.r}",
             sub=f"{cell.backend}, batch {cell.batch_size} of {cell.max_length} tokens"),
        Cell(f"{gib(asked.free_bytes)} GiB", sub=", ".join(gpu.name for gpu in cards)),
        Cell(said, sub=f"{gib(peak.value)} GiB ({gib(peak.low)} to {gib(peak.high)})"),
        Cell(*_happened(record, trains)),
        Cell(UNKNOWN if trains is None else "", tag=_agreement(said, trains)),
        Cell(links=[Link("run", f"#{anchor(record.id)}")]),
    ]  # fmt: skip
    return Row(cells, about={
        "model": cell.model, "precision": cell.precision, "rank": str(cell.r), "backend": cell.backend
    })  # fmt: skip


def _trains(record: Record) -> bool | None:
    """Whether the cell trains inside its budget; None where the record does not tell."""
    if record.status == "oom":
        return False if own(record) else None
    peak_bytes = training_peak(record, "nvml_process_peak_bytes")
    if not computed_well(record) or peak_bytes is None:
        return None
    return peak_bytes <= (record.cell.vram_budget_bytes or 0)


def _happened(record: Record, trains: bool | None) -> tuple[str, str]:
    """In words, and the peak."""
    peak_bytes = training_peak(record, "nvml_process_peak_bytes")
    peak = f"peak {gib(peak_bytes)} of {gib(record.cell.vram_budget_bytes)} GiB" if peak_bytes else ""
    if record.status == "oom":
        why = "" if trains is False else ", which says nothing of the budget"
        return f"out of memory in {record.failed_phase}{why}", peak
    if not computed_well(record):
        return record.status, ""
    return "trained, but above the budget" if trains is False else "trained", peak


def _agreement(said: Verdict, trains: bool | None) -> str:
    if trains is None:
        return ""
    if said == "tight":
        return "inconclusive"
    return "holds" if (said == "fits") == trains else "does not hold"
