"""peftmark advise: what it answers, what it refuses, and what it does not import."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import suite
from bench.advise.advice import RANKS, advise
from bench.advise.check import suite_text
from bench.advise.gpus import find
from bench.advise.question import Asked, find_model, fits
from bench.cli import app
from tests.advise.made import config, fit


def asked(gpu: str = "rtx-4090", model: str = "llama-3.1-8b", **fields: Any) -> Asked:
    return Asked(model=find_model(model), gpu=find(gpu), **fields)


def told(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["advise", *args], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_every_rank_and_backend_with_ends_that_frame_the_value() -> None:
    made = advise(asked(), fit())
    assert [(c.backend, c.r) for c in made.choices] == [(b, r) for b in ("hf-peft", "unsloth") for r in RANKS]
    for c in made.choices:
        assert c.nvml.low < c.nvml.value < c.nvml.high <= c.needed_bytes
        assert sum(part.size_bytes for part in c.parts) == pytest.approx(c.nvml.value)
        assert c.rate and c.rate.low < c.rate.value < c.rate.high and c.rate.from_record
        assert c.verdict == ("fits" if c.needed_bytes <= made.asked.free_bytes else c.verdict)
    assert made.fit_records == fit().record_ids


def test_the_rule_takes_the_smallest_rank_that_is_good_enough() -> None:
    for backend in ("hf-peft", "unsloth"):
        made = advise(asked(backends=(backend,)), fit())
        enough = next(one.enough for one in fit().accuracy if one.backend == backend)
        assert made.recommended and made.recommended.r == enough
        assert f"r {enough} is the smallest" in made.why and made.evidence[0].ranks.backend == backend


def test_where_the_good_rank_does_not_fit_the_largest_that_does_is_taken() -> None:
    made = next(
        m
        for free in range(6000, 24_000, 20)
        if (m := advise(asked(reserve_mib=24_564 - free, backends=("unsloth",)), fit())).recommended
    )
    assert made.recommended and made.recommended.r == 4 and "is the largest that fits" in made.why


def test_a_card_of_the_same_name_with_other_memory_is_noticed() -> None:
    """An RTX 3080 of 12 GB has the name of the table's 10 GB and another bandwidth."""
    ours = find("rtx-3080")
    twin = ours.model_copy(update={"memory_mib": 12288, "memory_from": "this machine"})
    notes = {gpu: advise(Asked(model=find_model("llama-3.2-1b"), gpu=gpu), fit()).notes for gpu in (ours, twin)}
    assert any("another card of that name" in note for note in notes[twin])
    assert not any("another card" in note for note in notes[ours])


def test_longest_and_largest_are_the_edge() -> None:
    question = asked(backends=("unsloth",))
    made = advise(question, fit())
    assert made.recommended
    r, length, batch = made.recommended.r, made.longest_sequence["unsloth"], made.largest_batch["unsloth"]
    assert fits(question.model_copy(update={"sequence": length}), fit(), "unsloth", r)
    assert not fits(question.model_copy(update={"sequence": length + 256}), fit(), "unsloth", r)
    assert fits(question.model_copy(update={"batch": batch}), fit(), "unsloth", r)
    assert not fits(question.model_copy(update={"batch": batch + 1}), fit(), "unsloth", r)
    short = advise(asked("b200", "tinyllama-1.1b"), fit())
    assert short.longest_sequence["unsloth"] == 2048  # its positions end there


def test_nothing_fits_names_changes_that_do() -> None:
    question = asked("rtx-3080", precision="bf16", sequence=4096, backends=("hf-peft",))
    made = advise(question, fit())
    assert made.recommended is None and made.instead
    assert any("such as" in change for change in made.instead)
    assert any(change.startswith("model ") for change in made.instead)
    changed = question.model_copy(update={"precision": "nf4", "backends": ("unsloth",), "sequence": 512, "batch": 1})
    if fits(changed, fit(), "unsloth", 4):
        assert any("precision nf4" in change for change in made.instead)


def test_the_suite_is_one_that_peftmark_reads(tmp_path: Path) -> None:
    for question in (asked(), asked("rtx-4060", "llama-3.3-70b", precision="bf16")):
        made = advise(question, fit())
        path = tmp_path / "check.yaml"
        path.write_text(suite_text(made))
        cells = suite.load(path).cells()
        assert cells[0].max_length == 2048 and cells[0].source == "random" and cells[0].precision == question.precision
        if made.recommended:
            sizes = [cell.batch_size for cell in cells]
            largest = made.largest_batch[made.recommended.backend]
            assert sizes == [2, largest, 2 * largest]


def test_a_folder_and_a_strange_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(model_type="novel")))
    code, text = told("--gpu", "rtx-3060-12gb", "--model", str(tmp_path), "--precision", "bf16")
    assert code == 0 and "model_type 'novel' is not known here" in text


def test_json_says_where_the_numbers_come_from() -> None:
    code, text = told("--gpu", "a100-40gb", "--model", "meta-llama/Llama-3.1-8B-Instruct", "--json")
    content = json.loads(text)
    assert code == 0 and content["fit_records"] and content["choices"][0]["rate"]["from_record"]
    assert content["choices"][0]["parts"][0]["formula"] and content["evidence"][0]["ranks"]["ranks"][0]["record_ids"]
    assert any("records are from NVIDIA H100" in note for note in content["notes"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--gpu", "rtx-4091", "--model", "llama-3.1-8b"), "did you mean 'rtx-4090'"),
        (("--gpu", "t4", "--model", "lama-3.1-8b"), "did you mean 'llama-3.1-8b'"),
        (("--gpu", "t4", "--model", "someone/nothing"), "not in the local hub cache"),
        (("--gpu", "t4", "--model", "llama-3.1-8b", "--fit", "/none.json"), "cannot be read"),
    ],
)
def test_wrong_input_names_the_mend(args: tuple[str, ...], says: str) -> None:
    code, text = told(*args)
    assert code == 2 and says in text


def test_nothing_fits_exits_1_and_a_card_without_bf16_is_named() -> None:
    code, text = told("--gpu", "rtx-4060", "--model", "llama-3.3-70b")
    assert code == 1 and "nothing fits" in text and "What would" in text
    assert "Tesla T4 has no bf16" in told("--gpu", "t4", "--model", "llama-3.2-1b")[1]


def test_it_starts_without_heavy_libraries() -> None:
    script = (
        "import sys; from bench.cli import app\n"
        "try: app(['advise', '--gpu', 'rtx-4090', '--model', 'llama-3.1-8b', '--json'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'scipy', 'statsmodels', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-300:] + done.stderr[-300:]


def test_the_calibration_suite_tells_the_parts_apart() -> None:
    cells = suite.load(suite.find("h100-memory")).cells()
    assert len(cells) >= 40 and len({cell.digest for cell in cells}) == len(cells)
    assert len({cell.model for cell in cells}) >= 5
    assert {cell.precision for cell in cells} == {"nf4", "bf16", "int8"}
    assert {cell.backend for cell in cells} == {"hf-peft", "unsloth"}
    for backend in ("hf-peft", "unsloth"):
        own = [cell for cell in cells if cell.backend == backend]
        assert {cell.gradient_checkpointing for cell in own} == {"auto", "on", "off"}
        assert min(cell.r or 0 for cell in own) == 8 and max(cell.r or 0 for cell in own) == 256
        assert min(cell.max_length for cell in own) == 512 and max(cell.max_length for cell in own) == 8192
        for model in {cell.model for cell in own}:
            positions = find_model(model).config["max_position_embeddings"]
            assert all(cell.max_length <= positions for cell in own if cell.model == model)
