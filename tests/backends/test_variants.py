"""The variants of hf-peft: what they ask of the trainer and the audit, and that the audit sees whether they ran.

Liger's Triton kernels need a GPU or Triton's interpreter: here its patches are put on a model that is never run.
Dynamo traces on a CPU as on a GPU; Inductor's code generation is left out, since it takes minutes on two cores.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import audit, backends
from bench.backends import hf_variants
from bench.backends.hf_peft import HfPeft
from bench.cell import Cell
from bench.errors import AuditError
from tests.backends.test_unsupported import machine
from tests.tiny import tiny_model, tiny_tokenizer

GPU = machine("bitsandbytes", "liger-kernel", "triton")
NO_LIGER = pytest.mark.skipif(not importlib.util.find_spec("liger_kernel"), reason="liger-kernel is not installed")


def cell(**fields: Any) -> Cell:
    return Cell.model_validate({"model": "m", "r": 4, "max_length": 64, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().bfloat16().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("backend", "where", "fields", "expected"),
    [
        ("hf-peft-no-upcast", GPU, {"precision": "bf16"}, "this would be hf-peft again"),
        ("hf-peft-no-upcast+liger", GPU, {"precision": "fp16"}, "this would be hf-peft again"),
        ("hf-peft+liger", machine("liger-kernel", gpu=None), {}, "needs an NVIDIA GPU"),
        ("hf-peft+liger", machine("triton"), {}, "pip install liger-kernel"),
        ("hf-peft+compile", machine("triton", gpu=None), {}, "NVIDIA GPU only"),
        ("hf-peft+compile", machine(), {}, "pip install triton"),
        ("hf-peft+liger+compile", machine("triton"), {}, "pip install liger-kernel"),
        ("hf-peft+liger+compile", machine("liger-kernel"), {}, "pip install triton"),
        ("hf-peft-no-upcast+liger+compile", machine("liger-kernel", "triton"), {"precision": "nf4"}, "bitsandbytes"),
        ("hf-peft+compile-blocks", machine(), {}, "pip install triton"),
        ("hf-peft+liger", GPU, {"gradient_checkpointing": "unsloth"}, "in the unsloth backend only"),
    ],
)
def test_what_a_variant_lacks_is_told(backend: str, where: Any, fields: dict[str, Any], expected: str) -> None:
    assert expected in (backends.unsupported(cell(backend=backend, **fields), where) or "")


def test_a_switch_that_turns_compilation_off_is_told() -> None:
    off = GPU.model_copy(update={"variables": {"TORCHDYNAMO_DISABLE": "1"}})
    assert "unset TORCHDYNAMO_DISABLE" in (backends.unsupported(cell(backend="hf-peft+compile"), off) or "")


def test_every_variant_runs_on_a_whole_machine() -> None:
    for name in backends.names():
        if name.startswith("hf-peft"):
            assert backends.unsupported(cell(backend=name, precision="nf4"), GPU) is None, name


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("hf-peft-no-upcast", set(), {"embedding", "lm_head"}),
        ("hf-peft+liger", {"use_liger_kernel"}, {"liger"}),
        ("hf-peft+compile", {"torch_compile"}, {"compiled"}),
        ("hf-peft-no-upcast+liger", {"use_liger_kernel"}, {"embedding", "lm_head", "liger"}),
        ("hf-peft+liger+compile", {"use_liger_kernel", "torch_compile"}, {"liger", "compiled"}),
        (
            "hf-peft-no-upcast+liger+compile",
            {"use_liger_kernel", "torch_compile"},
            {"embedding", "lm_head", "liger", "compiled"},
        ),
        ("hf-peft+compile-blocks", set(), {"compiled"}),
        ("hf-peft-no-upcast+liger+compile-blocks", {"use_liger_kernel"}, {"embedding", "lm_head", "liger", "compiled"}),
    ],
)
def test_a_combination_asks_for_all_its_parts(name: str, arguments: set[str], wanted: set[str]) -> None:
    made: Any = backends.get(name)
    plain, asked = HfPeft(), cell(backend=name, precision="nf4")
    assert set(made.trainer_arguments(asked)) - set(plain.trainer_arguments(asked)) == arguments
    assert set(made.requested(asked)) - set(plain.requested(asked)) == wanted


# Without the cast to float32


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_no_upcast_differs_from_pefts_preparation_in_the_cast_alone(folder: Path, checkpointing: str) -> None:
    asked = cell(precision="nf4", gradient_checkpointing=checkpointing)
    plain, kept = HfPeft().load(asked, folder), hf_variants.NoUpcast().load(asked, folder)

    def told(model: Any) -> dict[str, str]:
        return audit.effective(model)

    differing = {name for name, value in told(plain).items() if told(kept)[name] != value}
    assert differing == {"base_dtypes", "embedding", "lm_head"}
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in kept.parameters()]
    flags = [[getattr(m, "gradient_checkpointing", None) for m in model.modules()] for model in (plain, kept)]
    assert flags[0] == flags[1] and (True in flags[0]) == (checkpointing == "on")


def test_the_audit_tells_a_cast_from_none(folder: Path) -> None:
    asked = cell(precision="nf4")
    wanted = {k: v for k, v in hf_variants.NoUpcast().requested(asked).items() if k in ("embedding", "lm_head")}
    assert wanted == {"embedding": "torch.bfloat16 on cpu", "lm_head": "torch.bfloat16 on cpu"}
    audit.fail_on_mismatch(audit.check(wanted, audit.effective(hf_variants.NoUpcast().load(asked, folder))))
    with pytest.raises(AuditError, match=r"embedding: asked for torch.bfloat16 on cpu, got torch.float32 on cpu"):
        audit.fail_on_mismatch(audit.check(wanted, audit.effective(HfPeft().load(asked, folder))))


# Liger


@NO_LIGER
def test_liger_is_seen_on_partly_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.models.llama import modeling_llama

    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # Liger replaces these for the whole process
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    backend, model = hf_variants.Liger(), HfPeft().add_adapter(cell(), tiny_model())
    trainer = SimpleNamespace(model=model)
    assert backend.readings(trainer) == {"liger": "off", "liger_modules": "0"}
    apply_liger_kernel(model, {"fused_linear_cross_entropy": False})
    assert backend.readings(trainer) == {"liger": "on", "liger_modules": "7"}, "five norms and two MLPs"
    del model.get_base_model().model.norm.__dict__["forward"]
    assert backend.readings(trainer) == {"liger": "partly", "liger_modules": "6"}


# torch.compile


def _train(folder: Path, backend: Any = None, checkpointing: str = "off", **arguments: Any) -> dict[str, str]:
    """One step of a compiling backend under Dynamo; its readings. Inductor is left out unless asked for."""
    import datasets
    import torch
    from accelerate.state import AcceleratorState
    from transformers import Trainer
    from trl import SFTConfig, SFTTrainer

    class CpuTrainer(SFTTrainer):  # TRL's fused head is a Triton kernel
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return Trainer.compute_loss(self, *args, **kwargs)

    AcceleratorState._reset_state(reset_partial_state=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    asked = cell(precision="fp32", gradient_checkpointing=checkpointing)
    backend = backend or hf_variants.Compiled()
    model = backend.add_adapter(asked, backend.load(asked, folder))
    ids = [[5 + (7 * row + n) % 200 for n in range(32)] for row in range(2)]
    given = backend.trainer_arguments(asked) | arguments
    config = SFTConfig(
        output_dir=str(folder / "trainer"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True}, **given,
    )  # fmt: skip
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})
    trainer = CpuTrainer(model=model, args=config, train_dataset=rows, processing_class=tiny_tokenizer())
    trainer.train()
    return backend.readings(trainer)


@pytest.mark.slow
def test_a_compiled_model_is_seen(folder: Path) -> None:
    readings = _train(folder, torch_compile_backend="eager")
    assert readings["compiled"] == "on"
    assert readings["compiled_graphs"].startswith("1 of ") and readings["compiled_graphs"].endswith(" 0 breaks")


def test_a_model_that_is_not_compiled_is_seen(folder: Path) -> None:
    assert _train(folder, torch_compile=False, torch_compile_backend=None)["compiled"] == "off"


def test_a_wrapper_around_code_that_dynamo_passes_over_is_not_compiled(folder: Path) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Mode():
        readings = _train(folder, torch_compile_backend="eager")
    assert readings == {"compiled": "off", "compiled_graphs": "0 of 0 calls, 0 breaks"}


class Traced(hf_variants.CompiledBlocks):
    """Blocks through Dynamo without code generation."""

    def add_adapter(self, asked: Cell, model: Any) -> Any:
        model = HfPeft.add_adapter(self, asked, model)
        for block in hf_variants._blocks(model):
            block.compile(backend="eager")
        return model


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "graphs"), [("on", 1), ("off", 2)])
def test_compiled_blocks_are_seen_and_share_their_graphs(folder: Path, checkpointing: str, graphs: int) -> None:
    readings = _train(folder, Traced(), checkpointing)
    assert readings["compiled"] == "on"
    assert readings["compiled_graphs"].startswith(f"{graphs} of ") and readings["compiled_graphs"].endswith(" 0 breaks")


def test_blocks_are_found_and_a_block_left_out_is_seen() -> None:
    backend = hf_variants.CompiledBlocks()
    model = backend.add_adapter(cell(), tiny_model())
    blocks = hf_variants._blocks(model)
    assert len(blocks) == model.config.num_hidden_layers
    trainer = SimpleNamespace(model=model)
    assert backend.holds_compiled(trainer)
    blocks[-1]._compiled_call_impl = None
    assert not backend.holds_compiled(trainer)
