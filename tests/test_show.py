"""``peftmark show``: sparklines, headlines, failures and one record in full, at 80 columns too."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.compare import compare, compare_sets
from bench.record import AuditEntry, FileRef, Health, Record, Timeline
from bench.show import courses, overview, whole_record
from bench.sparkline import blocks, thinned
from bench.store import Loaded, Store
from tests import synthetic

SHAPES = "▁▂▃▄▅▆▇█"


def printed(parts: Any, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    return text


def loaded(*records: Record) -> list[Loaded]:
    return [Loaded(record, Path("nowhere") / record.id) for record in records]


def with_timeline(folder: Path, **series: list[int]) -> Loaded:
    folder.mkdir(parents=True)
    rows = len(next(iter(series.values())))
    pq.write_table(pa.table({"t_s": [float(n) for n in range(rows)], **series}), folder / "timeline.parquet")
    file = FileRef.of(folder / "timeline.parquet", folder)
    timeline = Timeline(file=file, rows=rows, requested_hz=1, other_gpu_processes=0)
    return Loaded(synthetic.record(timeline=timeline), folder)


# Sparklines


def test_blocks_rise_with_the_values_from_the_lowest_to_the_highest() -> None:
    assert blocks([float(n) for n in range(8)]) == SHAPES
    assert blocks([4.0, 4.0]) == "▁▁" and blocks([50, 100], floor=0) == "▅█"
    assert blocks([1, None, 2, float("nan")]) == "▁·█·" and blocks([None, None]) == "··"


def test_noise_on_a_logarithmic_axis_stays_flat_and_a_slow_step_stands_out() -> None:
    assert set(blocks([1.0, 1.01, 0.99, 1.0], log=True)) <= {"▄", "▅"}
    assert blocks([1.0, 1.0, 10.0], log=True) == "▁▁█"
    warm_up, steady = [100.0], [1.0, 2.0]
    assert blocks([*warm_up, *steady], log=True, spanned_by=steady) == "█▁█"


def test_thinning_keeps_the_highest_and_the_gaps() -> None:
    values: list[float | None] = [1.0] * 1000
    values[637] = 9.0
    short = thinned(values, 24)
    assert len(short) == 24 and short.count(9.0) == 1 and short.index(9.0) == 637 * 24 // 1000
    assert thinned([None, None, 1.0, 2.0], 2) == [None, 2.0]


# The overview


def test_a_pair_is_a_headline_with_its_interval() -> None:
    speeds = (1.0, 1.01, 0.99)
    base = [synthetic.record(step_s=(s,) * 4, serial=n) for n, s in enumerate(speeds)]
    cand = [synthetic.record("unsloth", step_s=(s / 2,) * 4, peak_gib=10, serial=n) for n, s in enumerate(speeds)]
    runs = loaded(*base, *cand)
    text = printed(overview(compare(runs), runs))
    flat = " ".join(text.split())
    assert "1 x Test GPU" in text and "llama-3.1-8b lora r16 bf16" in text
    assert "unsloth 2.00x the tokens/s of hf-peft (faster, 99% [1." in flat
    assert "45.5 % less memory (NVML process)" in flat  # 1 - 12 / 22
    assert "800 tok/s" in text and "1,600 tok/s" in text and "12.00 GiB" in text and "3 runs" in text


def test_failures_are_told_with_phase_id_and_message() -> None:
    failed = synthetic.unfinished("unsloth", "oom", "out of memory [bold]\nsecond line")
    runs = loaded(synthetic.record(), failed)
    text = printed(overview(compare(runs), runs))
    flat = " ".join(text.split())
    assert "1 of 2 runs did not end ok" in text and "oom in load" in text and failed.id in text
    assert "out of memory [bold] second line" in flat
    assert "failed: unsloth: oom in load" in flat


def test_one_process_a_side_has_no_interval_and_says_so() -> None:
    runs = loaded(synthetic.record(), synthetic.record("unsloth"))
    flat = " ".join(printed(overview(compare(runs), runs)).split())
    assert "no interval: 1 of at least 3 processes a side" in flat


def test_memory_over_time_is_drawn_from_zero_and_a_cpu_run_shows_its_host_memory(tmp_path: Path) -> None:
    gpu = with_timeline(tmp_path / "gpu", nvml_process_bytes=[0, 50, 100], host_rss_bytes=[9, 9, 9])
    assert "▁▅█" in printed(overview(compare([gpu]), [gpu]))
    cpu = with_timeline(tmp_path / "cpu", nvml_process_bytes=[0, 0, 0], host_rss_bytes=[25, 50, 100])
    assert "▃▅█" in printed(overview(compare([cpu]), [cpu]))


def test_a_broken_timeline_is_a_dash(tmp_path: Path) -> None:
    one = with_timeline(tmp_path / "x", nvml_process_bytes=[1, 2])
    (one.folder / "timeline.parquet").write_bytes(b"not parquet")
    assert "— " in printed(overview(compare([one]), [one]))


def test_both_sides_of_a_comparison_are_drawn_under_the_names_of_their_folders(tmp_path: Path) -> None:
    slow = synthetic.record(step_s=(1.0, 1.0, 8.0, 1.0), cell={"model": "[bold]x"}, serial=1)
    fast = with_timeline(tmp_path / "fast", nvml_process_bytes=[0, 50, 100])
    fast = Loaded(fast.record.model_copy(update={"cell": slow.cell, "cell_digest": slow.cell_digest}), fast.folder)
    alone = synthetic.record(cell={"r": 99}, serial=2)
    sides = loaded(slow, alone), [fast]
    text = printed(courses(compare_sets(*sides), [*sides[0], *sides[1]], ("runs/[old]", "runs/new")))
    assert "[bold]x lora r16 bf16" in text and "hf-peft, 1 run" in text and "r99" not in text
    old, new = (text[text.index(name) :] for name in ("runs/[old]", "runs/new"))
    assert "▁▁█▁" in old[: old.index("runs/new")] and "—" in old[: old.index("runs/new")]
    assert "▁▅█" in new and "a step" in new


# One record


def test_a_record_in_full() -> None:
    audit = [AuditEntry(name="attention", requested="eager", effective="sdpa", ok=False),
             AuditEntry(name="lora_rank", requested="16", effective="16", ok=True)]  # fmt: skip
    health = Health(reasons=["up to 2 other compute process(es)"], throttled_share=0.5)
    record = synthetic.record(audit=audit, health=health, eval_after=synthetic.evaluation(0.5), status="contaminated")
    text = printed(whole_record(loaded(record), record.id))
    flat = " ".join(text.split())
    assert "1 of 2 not as asked for" in text and "asked for eager, got sdpa" in text and "lora_rank" not in text
    assert "up to 2 other compute process(es)" in text and "50.0 % ± 5.0 % of 100 items" in text
    assert "6 steps, 1.00 s to 10.0 s" in flat and "2.00 first, 1.50 last" in text
    steady = next(line for line in text.splitlines() if line.lstrip().startswith("steady"))
    assert steady.split() == ["steady", "25.0", "4.0", "20.00", "21.00", "22.00", "23.00", "—"]
    assert "eval.json" in text and "gradient_checkpointing" in text and "Test CPU" in text


def test_the_message_of_a_failed_run_is_whole() -> None:
    message = "first line\n" + "word " * 100 + "the end"
    record = synthetic.unfinished("unsloth", "crashed", message)
    assert "the end" in printed(whole_record(loaded(record), record.id))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    record = synthetic.record("hf-peft-no-upcast+liger+compile", cell={"model": "a" * 90})
    runs = loaded(record, synthetic.unfinished("unsloth", "oom", "x" * 200))
    printed(overview(compare(runs), runs), width)
    printed(whole_record(runs, record.id), width)


# The command


def test_the_command_and_its_errors(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    records = [synthetic.record(), synthetic.record("unsloth", serial=1)]
    for record in records:
        store.add(record, store.workspace(record.id))

    def show(*args: str) -> tuple[int, str]:
        ran = CliRunner().invoke(app, ["show", *args])
        return ran.exit_code, " ".join((ran.stdout + ran.stderr).split())

    assert show(str(store.root)) == (0, show(str(store.root))[1]) and "tokens/s of hf-peft" in show(str(store.root))[1]
    code, text = show(str(store.root), "--record", records[1].id[:19])
    assert code == 0 and records[1].id in text and "Phases" in text
    code, text = show(str(store.root), "--record", "2026")
    assert code == 2 and "2 records begin so" in text and records[0].id in text
    code, text = show(str(store.root), "--record", "nope")
    assert code == 2 and "--record nope: no record has an id that begins so" in text
    code, text = show(str(tmp_path / "absent"))
    assert code == 2 and "no such folder" in text and "mend:" in text
