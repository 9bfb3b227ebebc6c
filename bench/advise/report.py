"""Error tables in Markdown, put between two marks of a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.advise import others
from bench.advise.fit import METERS, Fit, Observation, Score, observe, score
from bench.advise.parts import Coefficients
from bench.derived import known_config
from bench.errors import InputError
from bench.record import Record
from bench.report.rows import METER_NAMES

BEGIN, END = "<!-- made by peftmark calibrate --report: begin -->", "<!-- end -->"


def write(path: Path, fit: Fit, records: Sequence[Record]) -> None:
    """Put the tables into the page between its marks; a new page holds them alone."""
    body = f"{BEGIN}\n\n{tables(fit, records)}\n{END}"
    old = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}{END}\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(str(path), "has no place for the tables", f"add the lines {BEGIN} and {END}")
    path.write_text(f"{before}{body}{after}", encoding="utf-8")


def tables(fit: Fit, records: Sequence[Record]) -> str:
    """All tables of a fit: errors by meter, other estimators on the same cells, every cell, coefficients."""
    observations, _ = observe(records)
    configs = {r.cell.model: config for r in records if (config := known_config(r))}
    return "\n".join([
        f"Fitted on {fit.made_on} on {len(fit.record_ids)} records of {len(fit.architectures)} architectures "
        f"({', '.join(fit.architectures)}), {', '.join(fit.gpus)}.", "",
        "Errors of the model on architectures that the fit had not seen (leave one architecture out):", "",
        _table(["meter", "records", "median", "95th percentile", "most too low", "most too high"],
               [[METER_NAMES[meter], *_score_cells(fit.left_out[meter])] for meter in METERS]), "",
        "NVML process peak, the same cells, beside other estimators (each where it says anything):", "",
        _table(["estimator", "records", "median", "95th percentile", "most too low", "most too high"],
               _beside(fit, observations, configs)), "",
        "Every cell, predicted without its architecture and measured, NVML process, MiB:", "",
        _table(["model", "backend", "setting", "measured", "predicted", "error"],
               [[row.model, row.backend, row.setting, f"{row.measured['nvml_process'] / 2**20:.0f}",
                 f"{row.predicted['nvml_process'] / 2**20:.0f}", f"{row.error('nvml_process'):+.1%}"]
                for row in sorted(fit.rows, key=lambda r: (r.model, r.backend, r.setting, r.record_id))]), "",
        "Coefficients, their counted or expected values, and what they stand for:", "",
        _table(["coefficient", "fitted", "start", "meaning"],
               [[f"`{name}`", f"{getattr(fit.coefficients, name):.3g}", f"{info.default:g}",
                 " ".join((info.description or f"as hf_{name.removeprefix('unsloth_')}, for Unsloth").split())]
                for name, info in Coefficients.model_fields.items()]), "",
    ])  # fmt: skip


def _beside(fit: Fit, observations: Sequence[Observation], configs: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = [["peftmark (left out)", *_score_cells(fit.left_out["nvml_process"])]]
    for name, ask in others.estimators().items():
        said = [(ask(o, configs[o.model]), o.peaks["nvml_process"] / others.GIB) for o in observations]
        errors = [value / measured - 1 for value, measured in said if value is not None]
        rows.append([name, *(_score_cells(score(errors)) if errors else ["0", "", "", "", ""])])
    return rows


def _score_cells(one: Score) -> list[str]:
    return [str(one.records), f"{one.median:.1%}", f"{one.p95:.1%}", f"{one.lowest:+.1%}", f"{one.highest:+.1%}"]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
