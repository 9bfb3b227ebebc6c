"""Evaluation through lm-eval: same prompt as training, readable files without machine paths, no trace in training."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cache import sha256_file
from bench.cell import Cell, CustomTask
from bench.errors import InputError, StoreError
from bench.evaluation import evaluate
from bench.record import EvalResult
from bench.stream import encode
from bench.tasks import TaskFiles, materialise, read_items
from bench.tasks.prompt import render
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskFiles:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))
    return materialise(Cell(model="m", train_examples=8, eval_examples=6))


def run(model: Any, task: TaskFiles | str, folder: Path, tokenizer: Any = None, limit: int = 6) -> EvalResult:
    return evaluate(
        model, tokenizer or tiny_tokenizer(), task, limit=limit, batch_size=4, max_new_tokens=4,
        out_dir=folder / "record" / "eval_before", record_dir=folder / "record", model_name="org/tiny",
    )  # fmt: skip


def read_samples(result: EvalResult, folder: Path) -> list[dict[str, Any]]:
    path = folder / "record" / result.samples.path
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda s: s["doc_id"])


def test_evaluation_prompt_is_the_training_prompt_and_the_files_are_lm_evals(files: TaskFiles, tmp_path: Path) -> None:
    from lm_eval.utils import get_results_filenames, get_sample_results_filenames

    tokenizer = tiny_tokenizer()
    result = run(tiny_model(), files, tmp_path, tokenizer)
    items = read_items(files.test_jsonl)
    samples = read_samples(result, tmp_path)
    assert len(samples) == result.items == 6
    for item, sample in zip(items, samples, strict=True):
        prompt = sample["arguments"]["gen_args_0"]["arg_0"]
        assert prompt == render(tokenizer, item)
        trained = encode(item, tokenizer)
        shown = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert trained.input_ids[: len(shown)] == shown and trained.labels[: len(shown)] == [-100] * len(shown)
        assert sample["target"] == item.answer
        generation = sample["arguments"]["gen_args_0"]["arg_1"]
        assert (generation["do_sample"], generation["max_gen_toks"]) == (False, 4)

    assert (result.task, result.metric, result.value) == ("peftmark_chain_sum", "exact_match", 0.0)
    for ref in (result.results, result.samples):
        path = tmp_path / "record" / ref.path
        assert ref.path.startswith("eval_before/org__tiny/")
        assert (ref.sha256, ref.size_bytes) == (sha256_file(path), path.stat().st_size)
        text = path.read_text()
        for private in (str(tmp_path), str(Path.home()) + "/", str(Path.cwd()) + "/"):
            assert private not in text
        assert not re.search(r'"/[\w.-]+/', text), "an absolute path"
    assert get_results_filenames(["/" + result.results.path]) and get_sample_results_filenames(
        ["/" + result.samples.path]
    )
    kept = json.loads((tmp_path / "record" / result.results.path).read_text())
    assert kept["results"]["peftmark_chain_sum"]["exact_match,none"] == 0.0
    assert kept["config"]["model"] == kept["model_name"] == "org/tiny"


def test_right_answers_score_and_wrong_ones_do_not(
    files: TaskFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    items = read_items(files.test_jsonl)
    tokenizer = tiny_tokenizer()
    replies = {render(tokenizer, item): f"So.\nAnswer: {item.answer}" for item in items}
    wrong = render(tokenizer, items[0])
    replies[wrong] = f"Answer: {items[0].answer}1"
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **_: [replies[r.args[0]] for r in requests])
    result = run(tiny_model(), files, tmp_path, tokenizer)
    assert result.value == pytest.approx(5 / 6) and result.stderr is not None and result.stderr > 0
    assert [s["exact_match"] for s in read_samples(result, tmp_path)] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_model_tokenizer_and_random_states_are_left_as_they_were(files: TaskFiles, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.pad_token = None
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    run(model, files, tmp_path, tokenizer, limit=2)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert model.training and not model.model.layers[0].training and model.model.layers[1].training
    assert model.config.use_cache is False
    assert tokenizer.pad_token is None


def test_training_after_an_evaluation_is_training_without_one(files: TaskFiles, tmp_path: Path) -> None:
    """Same losses and weights, on a PEFT model with dropout (which draws from torch's random state)."""
    from peft import LoraConfig, get_peft_model

    tokenizer = tiny_tokenizer()
    encoded = encode(read_items(files.train_jsonl)[0], tokenizer)
    batch = {"input_ids": torch.tensor([encoded.input_ids]), "labels": torch.tensor([encoded.labels])}

    def losses(evaluated: bool) -> list[float]:
        model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"]))
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        torch.manual_seed(1)
        if evaluated:
            run(model, files, tmp_path, tokenizer, limit=2)
        seen = []
        for _ in range(3):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
        return seen

    assert losses(evaluated=True) == losses(evaluated=False)


def test_bf16_model_with_reasoning_and_a_second_task_reads_its_own_items(tmp_path: Path, files: TaskFiles) -> None:
    """Both tasks name their data 'test.jsonl': one must not be served the other's from a cache."""
    lines = [json.dumps({"question": f"Say {i}", "answer": str(i), "steps": "Hm."}) for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    task = CustomTask(path="mine.jsonl", reasoning="steps", context=None)
    other = materialise(Cell(model="m", task="custom", custom_task=task, eval_examples=3), base=tmp_path)
    model = tiny_model().to(torch.bfloat16)
    first = read_samples(run(model, files, tmp_path / "a", limit=3), tmp_path / "a")
    second = read_samples(run(model, other, tmp_path / "b", limit=3), tmp_path / "b")
    assert [s["doc"]["question"] for s in first] == [i.question for i in read_items(files.test_jsonl)[:3]]
    assert [s["doc"]["question"] for s in second] == [i.question for i in read_items(other.test_jsonl)]
    assert "step by step" in second[0]["arguments"]["gen_args_0"]["arg_0"]


def test_write_failure_is_reported(files: TaskFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval swallows it; a full disk must not pass for an evaluation with results."""
    from lm_eval.models.huggingface import HFLM

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **_: ["Answer: 0" for _ in requests])
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="is the disk full"):
        run(tiny_model(), files, tmp_path)


def test_official_task_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names, groups, and names whose data cannot be reached: each is said, with the task's name."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tiny_model()
    with pytest.raises(InputError, match="'gsm8kk': no such task[\\s\\S]*lm_eval ls tasks"):
        run(model, "gsm8kk", tmp_path)
    with pytest.raises(InputError, match="'mmlu': a group"):
        run(model, "mmlu", tmp_path)
    with pytest.raises(InputError, match="'gsm8k': it cannot be loaded here"):
        run(model, "gsm8k", tmp_path)
