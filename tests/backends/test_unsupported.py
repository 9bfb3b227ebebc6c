"""What each backend cannot do, and the reason it gives before anything is loaded."""

from typing import Any

import pytest

from bench import backends
from bench.cell import Cell
from bench.environment import Environment, Package
from tests.synthetic import environment


def machine(*packages: str, gpu: str | None = "Test GPU", capability: str = "9.0") -> Environment:
    """A machine with the given packages beside torch, and a GPU unless told otherwise."""
    base = environment(gpu=gpu)
    return base.model_copy(
        update={
            "packages": base.packages | {name: Package(version="1.0", source="index") for name in packages},
            "gpus": [g.model_copy(update={"compute_capability": capability}) for g in base.gpus],
        }
    )


H100 = machine("bitsandbytes", "unsloth", "flash-attn")
CPU = machine("bitsandbytes", gpu=None)


def reason(backend: str, where: Environment, **fields: Any) -> str | None:
    return backends.unsupported(Cell(model="m", backend=backend, **fields), where)


@pytest.mark.parametrize("backend", ["hf-peft", "unsloth"])
def test_a_whole_gpu_machine_runs_all(backend: str) -> None:
    for precision in ("fp32", "bf16", "fp16", "int8", "nf4"):
        for method in ("lora", "rslora"):
            assert reason(backend, H100, method=method, precision=precision) is None, (method, precision)
    for precision in ("fp32", "bf16", "fp16"):
        assert reason(backend, H100, method="full", precision=precision) is None, precision
    assert reason(backend, H100, attention="flash_attention_2", optimizer="adamw_8bit") is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_hf_peft_needs_no_gpu(precision: str) -> None:
    assert reason("hf-peft", CPU, precision=precision) is None
    assert reason("hf-peft", CPU, method="dora", precision="fp32") is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"precision": "fp16"}, "fp16 training needs an NVIDIA GPU"),
        ({"optimizer": "adamw_8bit"}, "8-bit AdamW needs an NVIDIA GPU"),
        ({"attention": "flash_attention_2"}, "FlashAttention 2 needs an NVIDIA GPU"),
        ({"gradient_checkpointing": "unsloth"}, "in the unsloth backend only"),
        ({"method": "dora", "precision": "int8"}, "DoRA over int8 weights needs an NVIDIA GPU"),
    ],
)
def test_hf_peft_on_a_cpu(fields: dict[str, Any], expected: str) -> None:
    assert expected in (reason("hf-peft", CPU, **fields) or "")


def test_hf_peft_has_no_unsloth_checkpointing_anywhere() -> None:
    assert "in the unsloth backend only" in (reason("hf-peft", H100, gradient_checkpointing="unsloth") or "")
    assert reason("unsloth", H100, gradient_checkpointing="unsloth") is None
    assert reason("hf-peft", H100, method="dora", precision="int8") is None


@pytest.mark.parametrize("backend", ["hf-peft", "unsloth"])
@pytest.mark.parametrize("precision", ["bf16", "nf4", "int8"])
def test_bf16_needs_an_ampere_gpu(backend: str, precision: str) -> None:
    turing = machine("bitsandbytes", "unsloth", capability="7.5")
    assert reason(backend, turing, precision=precision) == "bf16 needs compute capability 8.0, Test GPU has 7.5"
    assert reason(backend, turing, precision="fp16") is None
    assert reason(backend, machine("bitsandbytes", "unsloth", capability="8.0"), precision=precision) is None
    assert reason(backend, machine("bitsandbytes", "unsloth", capability="12.0"), precision=precision) is None


@pytest.mark.parametrize("backend", ["hf-peft", "unsloth"])
def test_a_missing_package_comes_with_its_command(backend: str) -> None:
    bare = machine("unsloth")
    assert "pip install flash-attn" in (reason(backend, bare, attention="flash_attention_2") or "")
    for precision in ("nf4", "int8"):
        assert reason(backend, bare, precision=precision) == f"{precision} needs bitsandbytes: pip install bitsandbytes"
    assert reason(backend, bare, precision="bf16") is None


@pytest.mark.parametrize(
    ("where", "fields", "expected"),
    [
        (CPU, {}, "needs an NVIDIA GPU"),
        (machine("bitsandbytes"), {}, "unsloth is not installed: pip install 'peftmark[gpu]'"),
        (H100, {"method": "dora"}, "no fused DoRA"),
        (H100, {"attention": "eager"}, "no eager path"),
        (H100, {"gradient_checkpointing": "unsloth", "max_length": 511}, "below 512 tokens"),
    ],
)
def test_unsloth(where: Environment, fields: dict[str, Any], expected: str) -> None:
    assert expected in (reason("unsloth", where, **fields) or "")


def test_unsloth_offloads_from_512_tokens_and_auto_follows() -> None:
    assert reason("unsloth", H100, gradient_checkpointing="unsloth", max_length=512) is None
    assert reason("unsloth", H100, max_length=64) is None, "auto takes what there is"
    assert reason("unsloth", H100, gradient_checkpointing="on", max_length=64) is None


@pytest.mark.parametrize(
    ("asked", "max_length", "expected"),
    [
        ("auto", 512, "unsloth"), ("auto", 511, "on"), ("unsloth", 2048, "unsloth"), ("on", 2048, "on"),
        ("off", 2048, "off"),
    ],
)  # fmt: skip
def test_the_audit_expects_the_checkpointing_that_unsloth_takes(asked: str, max_length: int, expected: str) -> None:
    from bench.backends.unsloth import Unsloth

    cell = Cell.model_validate({"model": "m", "gradient_checkpointing": asked, "max_length": max_length})
    assert Unsloth().requested(cell) == {"gradient_checkpointing": expected, "implementation": "unsloth"}
    assert Unsloth().trainer_arguments(cell) == ({"gradient_checkpointing": False} if asked == "off" else {})


@pytest.mark.parametrize(("asked", "expected"), [("auto", "on"), ("on", "on"), ("off", "off")])
def test_the_audit_expects_the_checkpointing_that_hf_peft_takes(asked: str, expected: str) -> None:
    from bench.backends.hf_peft import HfPeft

    cell = Cell.model_validate({"model": "m", "gradient_checkpointing": asked})
    assert HfPeft().requested(cell) == {"gradient_checkpointing": expected, "implementation": "stock"}
    assert HfPeft().trainer_arguments(cell)["gradient_checkpointing"] is (expected == "on")
