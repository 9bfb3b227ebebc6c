"""``peftmark export``: the same numbers through pandas, polars and DuckDB; nulls, units, and no spreadsheet formula."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import export
from bench.cell import Cell
from bench.errors import InputError
from bench.record import AuditEntry, Record
from bench.store import Loaded, Store, load
from tests import synthetic
from tests.synthetic import GIB

DOCS = Path(__file__).parents[1] / "docs" / "export.md"
OOM = "=HYPERLINK(0) CUDA out of memory"


def put(folder: Path, *records: Record) -> None:
    store = Store(folder)
    for record in records:
        store.add(record, store.workspace(record.id))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run that was evaluated, and one that ran out of memory."""
    folder = tmp_path / "runs"
    audit = [AuditEntry(name="attention", requested="eager", effective="sdpa", ok=False)]
    done = synthetic.record(eval_before=synthetic.evaluation(0.25), eval_after=synthetic.evaluation(0.5), audit=audit,
                            cell={"target_modules": ("q_proj", "v_proj"), "lora_alpha": "2r"})  # fmt: skip
    put(folder, done, synthetic.unfinished("unsloth", "oom", OOM, serial=1))
    return folder


def written(runs: Path, suffix: str) -> Path:
    file = runs.parent / f"records{suffix}"
    assert export.write(load(runs)[0], file) == 2
    return file


def by_pandas(file: Path) -> list[dict[str, Any]]:
    read = pandas.read_csv if file.suffix == ".csv" else pandas.read_parquet
    frame = read(file, dtype_backend="numpy_nullable")
    return [{k: None if pandas.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]


def by_polars(file: Path) -> list[dict[str, Any]]:
    import polars

    return (polars.read_csv if file.suffix == ".csv" else polars.read_parquet)(file).to_dicts()


def by_duckdb(file: Path) -> list[dict[str, Any]]:
    import duckdb

    found = duckdb.sql(f"select * from '{file}'")
    assert found is not None
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize("suffix", export.SUFFIXES)
@pytest.mark.parametrize("reader", [by_pandas, by_polars, by_duckdb])
def test_every_reader_finds_the_known_numbers_and_nulls(runs: Path, reader: Any, suffix: str) -> None:
    done, failed = reader(written(runs, suffix))
    assert list(done) == [column.name for column in export.columns()]
    expected = {
        "status": "ok", "backend": "hf-peft", "r": 16, "lora_alpha": "2r", "lora_alpha_value": 32,
        "target_modules": "q_proj,v_proj", "tokens_per_s": synthetic.REAL_TOKENS, "step_s": 1.0, "timed_steps": 4,
        "padded_tokens_per_s": synthetic.PADDED_TOKENS, "samples_per_s": synthetic.ROWS,
        "startup_s": 5 + 7 + 1 + sum(synthetic.UNTIMED_S), "training_peak_torch_allocated_bytes": 20 * GIB,
        "training_peak_torch_reserved_bytes": 21 * GIB, "training_peak_nvml_process_bytes": 22 * GIB,
        "training_peak_nvml_device_bytes": 23 * GIB, "loss_first": 2.0, "loss_last": pytest.approx(1.5),
        "accuracy_before": 0.25, "accuracy_after": 0.5, "accuracy_after_stderr": 0.05, "accuracy_after_items": 100,
        "gpu": "Test GPU", "gpu_vram_bytes": 80 * GIB, "version_torch": "2.11.0",
        "git_dirty": False, "settled": None, "version_unsloth": None, "audit_mismatches": 1,
    }  # fmt: skip
    assert {name: done[name] for name in expected} == expected
    unknown = [
        "tokens_per_s", "step_s", "startup_s", "loss_first", "loss_last", "accuracy_before", "accuracy_after_stderr",
        "parameters_total", "audit_mismatches", "contaminated_by",
        *(name for name in failed if name.startswith("training_peak")),
    ]  # fmt: skip
    assert {name: failed[name] for name in unknown} == dict.fromkeys(unknown)
    assert (failed["status"], failed["failed_phase"]) == ("oom", "load")
    assert failed["message"] == (OOM if suffix == ".parquet" else f"'{OOM}")


def test_the_path_leads_to_the_record(runs: Path) -> None:
    for row in by_pandas(written(runs, ".parquet")):
        assert f'"{row["record_id"]}"' in Path(row["path"]).read_text()


def test_parquet_keeps_text_that_looks_like_a_number(runs: Path) -> None:
    assert by_pandas(written(runs, ".parquet"))[0]["git_revision"] == "0" * 40


def test_parquet_keeps_unit_and_meaning(runs: Path) -> None:
    schema = pq.read_schema(written(runs, ".parquet"))
    field = schema.field("training_peak_nvml_process_bytes")
    assert field.metadata[b"unit"] == b"bytes" and b"warm-up and steady" in field.metadata[b"meaning"]


def test_every_field_of_the_cell_is_a_column_and_every_column_is_explained() -> None:
    names = [column.name for column in export.columns()]
    assert set(Cell.model_fields) <= set(names) and len(set(names)) == len(names)
    assert all(column.meaning for column in export.columns())
    for column in export.columns():
        for suffix, unit in (("_bytes", "bytes"), ("_per_s", None), ("_s", "s")):
            if column.name.endswith(suffix):
                assert column.unit == unit or (unit is None and column.unit.endswith("/s")), column.name
                break


def test_the_documentation_has_the_table_that_the_command_prints() -> None:
    assert DOCS.read_text(encoding="utf-8").endswith("\n\n" + export.markdown()), (
        "write the output of `peftmark export --columns` at the end of docs/export.md"
    )


@given(st.text())
def test_no_text_begins_a_formula_and_each_can_be_had_back(text: str) -> None:
    shown = export.safe(text)
    assert shown is not None and not shown.startswith(tuple("=+-@\t\r\n＝＋－＠"))
    assert (shown[1:] if shown.startswith("'") else shown) == text


def test_no_text_cell_of_a_csv_begins_a_formula(tmp_path: Path) -> None:
    hostile = synthetic.record(cell={"model": "=cmd|' /C calc'!A0"}, suite="@SUM(1)", message='-2+3",=1')
    file = tmp_path / "records.csv"
    export.write([Loaded(hostile, tmp_path)], file)
    with file.open(newline="", encoding="utf-8") as opened:
        head, row = csv.reader(opened)
    assert not [value for value in row if value.startswith(("=", "+", "-", "@"))]
    assert row[head.index("model")] == "'=cmd|' /C calc'!A0" and row[head.index("message")] == "'-2+3\",=1"


def test_the_file_is_whole_or_as_it_was(runs: Path, tmp_path: Path) -> None:
    def breaks() -> Any:
        yield from load(runs)[0]
        raise RuntimeError("the disk went away")

    file = tmp_path / "records.csv"
    file.write_text("as it was")
    with pytest.raises(RuntimeError):
        export.write(breaks(), file)
    assert file.read_text() == "as it was" and not list(tmp_path.glob(".records*"))


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"records.xlsx.*neither CSV nor Parquet(.|\n)*mend: end it in .csv or .parquet"
    ):
        export.write([], tmp_path / "records.xlsx")


def test_the_command(runs: Path, tmp_path: Path) -> None:
    def peftmark(*args: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "bench", "export", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=None)

    made = peftmark(runs, "--out", "new/records.csv")
    assert made.returncode == 0 and "2 records in new/records.csv" in made.stdout
    assert len((tmp_path / "new/records.csv").read_text().splitlines()) == 3
    nothing = peftmark()
    assert nothing.returncode == 2 and "--out FILE or --charts DIR" in nothing.stderr and "--columns" in nothing.stderr
    (tmp_path / "empty").mkdir()
    empty = peftmark("empty", "--out", "x.csv")
    assert empty.returncode == 2 and "empty: holds no records" in empty.stderr and not (tmp_path / "x.csv").exists()


def test_charts_are_pictures(runs: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from bench.cli import app

    put(runs, synthetic.record("unsloth", serial=2))
    ran = CliRunner().invoke(app, ["export", str(runs), "--charts", str(tmp_path / "charts")])
    assert ran.exit_code == 0, ran.output
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "charts").iterdir()}
    assert f"{len(pictures)} pictures" in ran.output and pictures
    for name, content in pictures.items():
        assert content.startswith(b"\x89PNG" if name.endswith(".png") else b"<svg"), name
    assert {name[:-4] for name in pictures if name.endswith(".png")} == {n[:-4] for n in pictures if n.endswith(".svg")}
