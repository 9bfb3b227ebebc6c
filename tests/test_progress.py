"""Progress: exact lines where programs read them, and a live view that fits its terminal."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from bench import progress
from bench.cell import Cell
from bench.plan import GIB, Job
from bench.progress import JsonProgress, PlainProgress, Progress, QuietProgress, span
from bench.progress_live import LiveProgress

WHY = "needs an [NVIDIA] GPU"


class Clock:
    """Time that passes when told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def jobs(count: int = 4) -> list[Job]:
    return [
        Job(Cell(model="m", r=i // 2 + 1, backend=("hf-peft", "unsloth")[i % 2]), 0, WHY if i % 2 else None)
        for i in range(count)
    ]


def play(view: Progress, clock: Clock, todo: list[Job]) -> None:
    """Job 0 ok after 20 s, job 1 unsupported, job 2 out of memory after 40 s, job 3 does not come."""
    view.start(todo, done_already=3)
    view.job_started(todo[0], 0)
    view.event(phase="import", step=0, max_steps=30)
    clock.now_s += 5
    view.event(phase="warmup", step=0, max_steps=30)
    clock.now_s += 5
    view.event(phase="warmup", step=4, max_steps=30, tokens_per_s=1234.4, vram_bytes=3 * GIB)
    clock.now_s += 10
    view.event(phase="warmup", step=5, max_steps=30, tokens_per_s=2345.6, vram_bytes=None)
    view.job_finished(todo[0], "ok", None, 20.0)
    view.job_started(todo[1], 1)
    view.job_finished(todo[1], "unsupported", todo[1].unsupported, None)
    view.job_started(todo[2], 2)
    clock.now_s += 40
    view.job_finished(todo[2], "oom", "CUDA out of memory.\n  Tried 2 GiB", 40.0)
    view.stop()
    view.stop()


def test_plain_lines() -> None:
    out, clock = io.StringIO(), Clock()
    play(PlainProgress(out, clock=clock), clock, jobs())
    assert out.getvalue().splitlines() == [
        "4 runs to make, 3 done before",
        "[1/4] hf-peft lora r1 bf16 #0 m: started",
        "[1/4] import",
        "[1/4] warmup, step 0/30",
        "[1/4] warmup, step 5/30, 2,346 tokens/s, 3.00 GiB VRAM",
        "[1/4] hf-peft lora r1 bf16 #0 m: ok after 20 s; about 20 s to go",
        "[2/4] unsloth lora r1 bf16 #0 m: started",
        "[2/4] unsloth lora r1 bf16 #0 m: unsupported: needs an [NVIDIA] GPU; about 20 s to go",
        "[3/4] hf-peft lora r2 bf16 #0 m: started",
        "[3/4] hf-peft lora r2 bf16 #0 m: oom after 40 s: CUDA out of memory. Tried 2 GiB; about 0 s to go",
        "1 ok, 1 unsupported, 1 oom, 3 done before, 1 not run; 1 min 00 s",
    ]


def test_json_lines() -> None:
    out, clock, todo = io.StringIO(), Clock(), jobs()
    play(JsonProgress(out, clock=clock), clock, todo)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0] == {"event": "start", "elapsed_s": 0.0, "jobs": 4, "done_already": 3}
    assert lines[1] == {
        "event": "job_started", "elapsed_s": 0.0, "index": 0, "cell_digest": todo[0].cell.digest, "repeat": 0,
        "label": todo[0].label,
    }  # fmt: skip
    assert lines[4] == {
        "event": "event", "elapsed_s": 10.0, "phase": "warmup", "step": 4, "max_steps": 30, "tokens_per_s": 1234.4,
        "vram_bytes": 3 * GIB,
    }  # fmt: skip
    assert lines[-2] == {
        "event": "job_finished", "elapsed_s": 60.0, "index": 2, "cell_digest": todo[2].cell.digest, "repeat": 0,
        "status": "oom", "message": "CUDA out of memory.\n  Tried 2 GiB", "wall_s": 40.0, "eta_s": 0.0,
    }  # fmt: skip
    assert lines[-1] == {
        "event": "end", "elapsed_s": 60.0, "counts": {"ok": 1, "unsupported": 1, "oom": 1}, "done_already": 3,
        "not_run": 1,
    }  # fmt: skip
    assert [line["event"] for line in lines].count("end") == 1


def test_quiet_is_the_summary_alone() -> None:
    out, clock = io.StringIO(), Clock()
    play(QuietProgress(out, clock=clock), clock, jobs())
    assert out.getvalue() == "1 ok, 1 unsupported, 1 oom, 3 done before, 1 not run; 1 min 00 s\n"


def test_nothing_to_run() -> None:
    out, clock = io.StringIO(), Clock()
    view = PlainProgress(out, clock=clock)
    view.start([], done_already=8)
    view.stop()
    assert out.getvalue().splitlines() == ["0 runs to make, 8 done before", "nothing ran, 8 done before; 0 s"]


def live(height: int, width: int = 100) -> tuple[LiveProgress, Console, Clock]:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, record=True)
    return LiveProgress(console, clock=clock), console, clock


def drawn(view: LiveProgress, console: Console) -> list[str]:
    console.print(view.view())
    return console.export_text(clear=True).rstrip("\n").splitlines()


def test_live_view_shows_every_state_the_running_cell_and_the_time_to_go() -> None:
    view, console, clock = live(height=40)
    todo = jobs(6)
    view.jobs = todo  # as start() does, without rich's thread
    view.job_started(todo[0], 0)
    view.job_finished(todo[0], "ok", None, 90.0)
    view.job_started(todo[1], 1)
    view.job_finished(todo[1], "unsupported", WHY, None)
    view.job_started(todo[2], 2)
    view.job_finished(todo[2], "crashed", "boom [at] once", 30.0)
    view.job_started(todo[4], 4)
    view.event(phase="steady", step=7, max_steps=30, tokens_per_s=12345.6, vram_bytes=int(11.5 * GIB))
    clock.now_s += 125
    lines = drawn(view, console)
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert list(rows) == ["1", "2", "3", "4", "5", "6"]
    assert "ok" in rows["1"] and "1 min 30 s" in rows["1"]
    assert "unsupported" in rows["2"] and WHY in rows["2"]
    assert "crashed" in rows["3"] and "boom [at] once" in rows["3"]
    assert "pending" in rows["4"] and WHY in rows["4"]
    assert "running" in rows["5"] and "steady" in rows["5"]
    assert lines[-2] == "hf-peft lora r3 bf16 #0 m: steady, step 7/30, 12,346 tokens/s, 11.50 GiB VRAM"
    assert "1 ok, 1 unsupported, 1 crashed" in lines[-1]
    assert "3 to do of 6; 2 min 05 s so far, to go: about 1 min 00 s" in lines[-1]


@pytest.mark.parametrize("height", [1, 12, 24, 60])
@pytest.mark.parametrize("running", [0, 1, 250, 498, 499])
def test_live_view_fits_the_terminal_and_keeps_the_running_row(height: int, running: int) -> None:
    view, console, _ = live(height)
    view.jobs = jobs(500)
    view.job_started(view.jobs[running], running)
    view.event(phase="steady", step=1)
    lines = drawn(view, console)
    rows = [line for line in lines if line.startswith("│")]
    assert len(lines) <= max(height, 10)
    assert sum("running" in row for row in rows) == 1
    first, last = (int(row.split("│")[1]) for row in (rows[0], rows[-1]))
    assert f"{first - 1} above and {500 - last} below are not shown" in "\n".join(lines)


def test_live_view_is_one_line_a_row_when_narrow() -> None:
    view, console, _ = live(height=30, width=40)
    view.jobs = [Job(Cell(model="a-model-with-a-very-long-name-" * 3), 0)]
    view.job_started(view.jobs[0], 0)
    view.event(phase="steady", step=1, tokens_per_s=1e6, vram_bytes=80 * GIB)
    assert len(drawn(view, console)) == 5 + 1 + 1, "a table of one row, the running cell, the totals"


def test_live_run_ends_with_the_summary() -> None:
    view, console, clock = live(height=24)
    play(view, clock, jobs())
    assert not view.live.is_started
    assert console.export_text().rstrip().endswith("1 ok, 1 unsupported, 1 oom, 3 done before, 1 not run; 1 min 00 s")


def test_make_chooses_by_mode_and_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.make("auto", stream=Terminal()), LiveProgress)
    assert type(progress.make("auto", stream=io.StringIO())) is PlainProgress
    assert type(progress.make("plain", stream=Terminal())) is PlainProgress
    assert type(progress.make("quiet", stream=Terminal())) is QuietProgress
    assert type(progress.make("json", stream=Terminal())) is JsonProgress
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress.make("auto", stream=Terminal())) is PlainProgress


def test_a_pipe_gets_plain_lines() -> None:
    code = "from bench.progress import make; v = make('auto'); v.start([], 0); v.stop()"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "0 runs to make, 0 done before\nnothing ran; 0 s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text
