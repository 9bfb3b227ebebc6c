"""What the GPU tests share: when to skip, a small Llama's folder, a task file, and a suite run as a user runs one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import store
from bench.environment import package_version, read_gpus
from bench.record import Record

ROOT = Path(__file__).resolve().parents[2]
SMALL_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2816,
    "vocab_size": 32000, "max_position_embeddings": 4096, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "initializer_range": 0.02, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip

needs_gpu = pytest.mark.skipif(not read_gpus()[0], reason="NVML sees no NVIDIA GPU on this machine")
needs_unsloth = pytest.mark.skipif(package_version("unsloth") is None, reason="unsloth is not installed")


def write_inputs(folder: Path) -> dict[str, Any]:
    """A model folder (config only: the weights are drawn) and a task file in ``folder``; the recipe that names them."""
    model = folder / "small-llama"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SMALL_LLAMA))
    lines = [{"question": f"What is {n} plus {3 * n + 1}?", "answer": str(4 * n + 1)} for n in range(800)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"model": str(model), "source": "random", "task": "custom", "custom_task": {"path": "sums.jsonl"}}


def run_suite(folder: Path, content: dict[str, Any], *, limit_s: float = 570) -> tuple[list[Record], str]:
    """Write the suite into ``folder`` and run ``python -m bench run`` on it; its records, oldest first, and output."""
    suite = folder / "suite.yaml"
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", str(suite), "--out", str(folder / "out"), "--offline"],
        cwd=folder, env=os.environ | {"PYTHONPATH": path, "PEFTMARK_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s,
    )  # fmt: skip
    records, broken = store.load(folder / "out")
    assert not broken, broken
    logs = [f"--- {log}\n{log.read_text()[-3000:]}" for log in sorted(folder.rglob("worker.log"))]
    return [item.record for item in records], "\n".join([done.stdout[-3000:], *logs])


def reading(record: Record, name: str) -> str | None:
    """What the audit read back under that name."""
    return next((entry.effective for entry in record.audit if entry.name == name), None)
