"""``peftmark limit``: one command, its files, and one clear error for each wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench import environment
from bench.cli import app
from bench.limit.result import LimitResult
from tests import synthetic

FAKE = ("--model", "fake", "--backend", "fake")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path


def limit(*args: object, code: int = 0) -> Result:
    ran = CliRunner().invoke(app, ["limit", *map(str, args)])
    assert ran.exit_code == code, ran.output + repr(ran.exception)
    return ran


def test_one_command_finds_shows_and_keeps_the_limit(tmp_path: Path) -> None:
    told = limit("--vram", 4, "--what", "batch_size", *FAKE, "--publish").stdout
    assert "batch_size: 3 (sequences a batch) trains inside 4 GiB, 4 does not" in told
    assert "gradient_checkpointing auto" in told and "probe: batch_size 4" in told
    name = "fake-nf4-fake-4gib-batch_size-r16-l2048"
    kept = LimitResult.model_validate_json((tmp_path / "runs/limit" / name / "limit.json").read_text())
    assert (kept.name, kept.value, kept.first_failing_value, kept.budget_bytes) == (name, 3, 4, 4 * 2**30)
    assert (tmp_path / "results/limits" / name / "limit.json").is_file()
    assert len(list((tmp_path / "results").rglob("record.json"))) == len(kept.probes)
    again = limit("--vram", 4, "--what", "batch_size", *FAKE, "--json").stdout
    assert [probe["reused"] for probe in json.loads(again)["probes"]] == [True] * len(kept.probes)


def test_a_crash_is_one_error_and_nothing_is_written(tmp_path: Path) -> None:
    told = limit("--vram", 4, "--what", "r", "--model", "fake-crash", "--backend", "fake", code=2).stderr
    assert "r 64: the probe ended as crashed: ValueError: scripted crash" in told and "Traceback" not in told
    assert not list(tmp_path.rglob("limit.json"))


WRONG = {
    "negative": (("--vram", -1, *FAKE), "--vram -1: a budget is a positive number of GiB"),
    "nan": (("--vram", "nan", *FAKE), "--vram nan: a budget is a positive number"),
    "no GPU": (("--vram", 24, "--model", "llama-3.1-8b"), "needs an NVIDIA GPU, and NVML sees none here"),
    "what is searched": (("--vram", 4, *FAKE, "--batch-size", 2), "batch_size is what is searched for"),
    "precision": (("--vram", 4, *FAKE, "--precision", "nf5"), "precision: Input should be"),
    "GPU number": (("--vram", 4, *FAKE, "--gpu", 3), "there is no GPU 3 here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "current", lambda: synthetic.environment(gpu=None))
    args, message = WRONG[case]
    told = " ".join(limit("--what", "batch_size", *args, code=2).stderr.split())
    assert message in told


WRONG_WITH_A_CARD = {
    "above the card": (("--vram", 100, "--model", "llama-3.1-8b"), "--vram 100: the card has 80.0 GiB (Test GPU)"),
    "model": (("--vram", 24, "--model", "llama-3.1-8x"), "did you mean 'llama-3.1-8b'?"),
    "backend": (("--vram", 24, "--model", "llama-3.1-8b", "--backend", "unslot"), "did you mean 'unsloth'?"),
    "not installed": (("--vram", 24, "--model", "llama-3.1-8b", "--backend", "unsloth"), "unsloth is not installed"),
}


@pytest.mark.parametrize("case", WRONG_WITH_A_CARD)
def test_wrong_input_on_a_machine_with_a_card_is_told(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is made up: every one of these is refused before anything runs."""
    monkeypatch.setattr(environment, "current", synthetic.environment)
    args, message = WRONG_WITH_A_CARD[case]
    told = " ".join(limit("--what", "max_length", *args, code=2).stderr.split())
    assert message in told


def test_the_command_line_stays_light() -> None:
    code = "import sys, bench.cli; print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout and "transformers" not in done.stdout
