"""The audit: a request that quietly became something else ends the cell, and the error names both values."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bench import audit
from bench.backends.hf_peft import HfPeft
from bench.backends.unsloth import Unsloth
from bench.cell import Cell
from bench.errors import AuditError
from bench.record import AuditEntry
from bench.store import load
from tests.backends.trial import Altered, Run, Trial
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial.create(tmp_path_factory.mktemp("audit"))


def refused(run: Run, name: str, asked: str, got: str) -> None:
    assert isinstance(run.error, AuditError), run.error
    assert f"{name}: asked for {asked}, got {got}" in str(run.error)
    assert run.record.status == "crashed" and run.record.message == str(run.error)
    entry = next(e for e in run.record.audit if e.name == name)
    assert (entry.requested, entry.effective, entry.ok) == (asked, got, False)


def instead(trial: Trial, **fields: Any) -> HfPeft:
    """A backend that loads and adapts by other fields than the cell's."""
    other = trial.cell(**fields)
    return Altered(
        load=lambda cell, folder: HfPeft().load(other, folder),
        add_adapter=lambda cell, model: HfPeft().add_adapter(other, model),
    )


def test_dropped_quantisation_is_caught_before_any_step(trial: Trial) -> None:
    run = trial.run(trial.cell(precision="nf4"), instead(trial, precision="bf16"))
    refused(run, "base_precision", "nf4", "bf16")
    assert run.record.steps.wall_s == [] and run.record.failed_phase == "adapter"


@pytest.mark.parametrize(("asked", "got"), [("bf16", "fp32"), ("bf16", "nf4"), ("int8", "nf4"), ("fp32", "bf16")])
def test_another_precision_is_caught(trial: Trial, asked: str, got: str) -> None:
    refused(trial.run(trial.cell(precision=asked), instead(trial, precision=got)), "base_precision", asked, got)


def test_eager_attention_where_sdpa_was_asked_for(trial: Trial) -> None:
    refused(trial.run(trial.cell(attention="sdpa"), instead(trial, attention="eager")), "attention", "sdpa", "eager")


def test_another_rank(trial: Trial) -> None:
    refused(trial.run(trial.cell(r=4), instead(trial, r=8, lora_alpha=8)), "lora_rank", "4", "8")


def test_another_scaling(trial: Trial) -> None:
    refused(trial.run(trial.cell(method="rslora"), instead(trial, method="lora")), "lora_scaling", "2", "1")
    refused(trial.run(trial.cell(lora_alpha="2r"), instead(trial)), "lora_scaling", "2", "1")


@pytest.mark.parametrize(("asked", "got"), [("dora", "lora"), ("lora", "dora"), ("full", "lora")])
def test_another_kind_of_adapter(trial: Trial, asked: str, got: str) -> None:
    backend = instead(trial, method=got)
    refused(trial.run(trial.cell(method=asked), backend), "adapter", "none" if asked == "full" else asked, got)


def test_gradient_checkpointing_that_is_silently_off(trial: Trial) -> None:
    """The trainer arms it, so it shows after the first step; that step is kept in the record."""
    run = trial.run(trial.cell(), Altered(trainer_arguments=lambda cell: {"gradient_checkpointing": False}))
    refused(run, "gradient_checkpointing", "on", "off")
    assert len(run.record.steps.wall_s) == 1


def test_gradient_checkpointing_that_is_silently_on(trial: Trial) -> None:
    backend = Altered(trainer_arguments=lambda cell: {"gradient_checkpointing": True})
    refused(trial.run(trial.cell(gradient_checkpointing="off"), backend), "gradient_checkpointing", "off", "on")


def test_a_stock_model_where_unsloth_was_asked_for(trial: Trial) -> None:
    backend = Altered(requested=lambda cell: {"gradient_checkpointing": "on", "implementation": "unsloth"})
    refused(trial.run(trial.cell(), backend), "implementation", "unsloth", "stock")


def test_checkpointing_that_is_on_by_its_flags_and_recomputes_nothing(trial: Trial) -> None:
    """Only the profiled pass can tell: every layer ran once."""

    def add_adapter(cell: Cell, model: Any) -> Any:
        def enable(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            for layer in adapted.get_base_model().model.layers:
                layer._gradient_checkpointing_func = lambda function, *inputs, **named: function(*inputs, **named)

        adapted = HfPeft().add_adapter(cell, model)
        real = adapted.gradient_checkpointing_enable
        adapted.gradient_checkpointing_enable = enable
        return adapted

    run = trial.run(trial.cell(), Altered(add_adapter=add_adapter))
    refused(run, "forwards_per_layer", "2", "1")
    assert run.reading("gradient_checkpointing") == "on" and run.record.failed_phase == "profile"


def test_sdpa_by_its_flag_that_dispatches_eager(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", eager_attention_forward)
    run = trial.run(trial.cell(attention="sdpa"))
    refused(run, "attention_dispatched", "sdpa", "eager")
    assert run.reading("attention") == "sdpa" and run.reading("attention_kernel") == "softmax"


def stock_unsloth(trial: Trial, cell: Cell) -> types.ModuleType:
    """A package with Unsloth's entry points that does what Unsloth does without a GPU: stock transformers and PEFT.

    It also does what Unsloth does without bitsandbytes: it loads 16-bit weights whatever was asked for.
    """
    plain = cell.model_copy(update={"precision": "bf16"})

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name: str, **options: Any) -> tuple[Any, None]:
            return HfPeft().load(plain, Path(model_name)), None

        @staticmethod
        def get_peft_model(model: Any, **options: Any) -> Any:
            return HfPeft().add_adapter(plain, model)

    module = types.ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    return module


def test_unsloth_that_fell_back_to_stock_peft(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = trial.cell(backend="unsloth", precision="bf16", gradient_checkpointing="on")
    monkeypatch.setitem(sys.modules, "unsloth", stock_unsloth(trial, cell))
    run = trial.run(cell, Unsloth())
    refused(run, "implementation", "unsloth", "stock")
    assert run.record.steps.wall_s == []


def test_unsloth_that_dropped_4bit(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = trial.cell(backend="unsloth", precision="nf4", gradient_checkpointing="on")
    monkeypatch.setitem(sys.modules, "unsloth", stock_unsloth(trial, cell))
    refused(trial.run(cell, Unsloth()), "base_precision", "nf4", "bf16")


def test_dropout_that_was_left_out(trial: Trial) -> None:
    refused(trial.run(trial.cell(lora_dropout=0.1), instead(trial)), "lora_dropout", "0.1", "0")


def test_a_target_module_that_was_left_out(trial: Trial) -> None:
    backend = instead(trial, target_modules=["q_proj", "v_proj"])
    cell = trial.cell(target_modules=["q_proj", "k_proj", "v_proj"])
    refused(trial.run(cell, backend), "target_modules", "2 k_proj, 2 q_proj, 2 v_proj", "2 q_proj, 2 v_proj")


def test_a_reading_that_changed_is_kept_at_both_moments(trial: Trial) -> None:
    run = trial.run(trial.cell())
    entries = {e.name: e.effective for e in run.record.audit}
    assert len(entries) == len(run.record.audit), "no name twice"
    assert (entries["gradient_checkpointing"], entries["gradient_checkpointing@loading"]) == ("on", "off")
    assert [name for name in entries if name.endswith(audit.AT_LOADING)] == ["gradient_checkpointing@loading"]
    assert (entries["autocast"], entries["forwards_per_layer"]) == ("off", "2")
    assert (entries["attention_dispatched"], entries["attention_kernel"]) == ("sdpa", "flash")
    assert run.record.model and entries["parameters_total"] == str(run.record.model.parameters_total)
    assert "lora_anomalies" not in entries


def test_autocast_is_read_inside_the_forward(trial: Trial) -> None:
    assert trial.run(trial.cell(precision="bf16")).reading("autocast") == "bfloat16"


def test_padding_free_that_was_not_asked_for(trial: Trial) -> None:
    """The cell says off, the backend's own trainer arguments turn it on."""
    backend = Altered(trainer_arguments=lambda cell: {"padding_free": True, "max_length": None})
    refused(trial.run(trial.cell(padding_free="off"), backend), "padding_free", "False", "True")


@pytest.mark.parametrize("readings", [{"kernels": "plain"}, {}])
def test_a_backends_own_reading_is_checked_once_it_can_be_read(trial: Trial, readings: dict[str, str]) -> None:
    backend = Altered(
        requested=lambda cell: HfPeft().requested(cell) | {"kernels": "fused"}, readings=lambda trainer: readings
    )
    run = trial.run(trial.cell(), backend)
    assert f"kernels: asked for fused, got {readings.get('kernels')}" in str(run.error)
    assert run.record.status == "crashed" and len(run.record.steps.wall_s) == 1


def test_parameters_frozen_on_the_way(trial: Trial) -> None:
    def trainer_arguments(cell: Cell) -> dict[str, Any]:
        for name, parameter in kept[0].named_parameters():
            if "layers.0.self_attn.q_proj.lora_A" in name:
                parameter.requires_grad_(False)
        return HfPeft().trainer_arguments(cell)

    def add_adapter(cell: Cell, model: Any) -> Any:
        kept.append(HfPeft().add_adapter(cell, model))
        return kept[0]

    kept: list[Any] = []
    run = trial.run(trial.cell(), Altered(add_adapter=add_adapter, trainer_arguments=trainer_arguments))
    before, after = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96), 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96) - 4 * 32
    refused(run, "parameters_trainable", str(before), str(after))


def test_other_tokens_in_the_first_forward_are_caught(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that changes the batch after the collator (truncates it, say) does not train on the stream."""

    def add_adapter(cell: Cell, model: Any) -> Any:
        def shift(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"input_ids": kwargs["input_ids"].roll(1, dims=1)}

        adapted = HfPeft().add_adapter(cell, model)
        adapted.register_forward_pre_hook(shift, with_kwargs=True)
        return adapted

    run = trial.run(trial.cell(), Altered(add_adapter=add_adapter))
    assert isinstance(run.error, AuditError) and "tokens of the stream" in str(run.error)


# The parts


def test_requests_follow_the_cell() -> None:
    full = audit.requested(Cell(model="m", method="full"))
    assert full == {"base_precision": "bf16", "adapter": "none"}
    assert audit.requested(Cell(model="m", method="dora"))["adapter"] == "dora"
    lora = audit.requested(Cell(model="m", r=8, lora_alpha="2r", attention="eager", padding_free="on"))
    assert lora == {
        "base_precision": "bf16", "attention": "eager", "padding_free": "True", "adapter": "lora", "lora_rank": "8",
        "lora_scaling": "2", "lora_dropout": "0",
    }  # fmt: skip
    assert audit.requested(Cell(model="m", r=64, method="rslora"))["lora_scaling"] == "8"
    assert audit.requested(Cell(model="m", r=3, method="rslora"))["lora_scaling"] == "1.73205"


def test_every_mismatch_is_named_and_unasked_readings_pass() -> None:
    entries = audit.check({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
    assert [(e.name, e.requested, e.effective, e.ok) for e in entries] == [
        ("a", "1", "1", True), ("b", "2", "3", False), ("c", None, "4", True),
    ]  # fmt: skip
    with pytest.raises(AuditError, match="^audit: b: asked for 2, got 3; d: asked for 5, got None$"):
        audit.fail_on_mismatch([*entries, AuditEntry(name="d", requested="5", effective=None, ok=False)])
    audit.fail_on_mismatch(entries[:1])


def test_merging_loses_no_reading_that_changed() -> None:
    loaded = audit.check({"a": "1"}, {"a": "1", "b": "2", "c": "3"})
    merged = audit.merge(loaded, audit.check({"b": "4"}, {"a": "1", "b": "4", "d": "5"}))
    assert [(e.name, e.requested, e.effective) for e in merged] == [
        ("a", None, "1"), ("b", "4", "4"), ("c", None, "3"), ("d", None, "5"), ("b@loading", None, "2"),
    ]  # fmt: skip
    assert audit.merge(merged, []) == merged


def test_a_profile_that_cannot_tell_owes_nothing() -> None:
    wanted = {"attention": "sdpa", "gradient_checkpointing": "unsloth", "lora_rank": "4"}
    assert audit.requested_dispatch(wanted, {"autocast": "off"}) == {}
    found = {"attention_dispatched": "eager", "forwards_per_layer": "2"}
    assert audit.requested_dispatch(wanted, found) == {"attention_dispatched": "sdpa", "forwards_per_layer": "2"}
    assert audit.requested_dispatch({"gradient_checkpointing": "off"}, found) == {"forwards_per_layer": "1"}


def test_oddities_of_the_adapter_are_named() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_bias=True)
    model = get_peft_model(tiny_model(), config)
    assert audit.effective(model)["lora_anomalies"] == "4 bias"
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.disable_adapter_layers()
    assert audit.effective(model)["lora_anomalies"] == "4 bias, 4 disabled, 2 several adapters"


def test_target_modules_are_counted_in_the_bare_model() -> None:
    model = tiny_model()
    assert audit.targets(model, ["q_proj", "mlp.down_proj"]) == "2 down_proj, 2 q_proj"
    assert audit.targets(model, ["proj"]) == "none", "a part of a name is no match"


def test_a_reading_that_was_asked_for_and_is_missing_fails() -> None:
    with pytest.raises(AuditError, match="lora_rank: asked for 4, got None"):
        audit.fail_on_mismatch(audit.check({"lora_rank": "4"}, {"base_precision": "bf16"}))


def test_readings_of_a_plain_model() -> None:
    found = audit.effective(tiny_model())
    assert found["base_precision"] == "fp32"
    assert (found["quantised_modules"], found["implementation"], found["fused_lora_modules"]) == ("none", "stock", "0")
    assert found["gradient_checkpointing"] == "off"
    assert found["embedding"] == found["lm_head"] == "torch.float32 on cpu"
    assert "lora_rank" not in found and "optimizer" not in found
    assert audit.effective(tiny_model().half())["base_precision"] == "fp16"


@pytest.mark.parametrize("home", ["unsloth.models.llama", "peftmark.unsloth_compiled_cache.Llama"])
def test_unsloth_is_known_by_the_code_of_its_forward(home: str) -> None:
    model = tiny_model()

    class Replaced(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x

    Replaced.forward.__module__ = home
    model.model.layers[0].mlp.__class__ = Replaced
    assert audit.effective(model)["implementation"] == "unsloth"
    Replaced.forward.__module__ = "unsloth._cpu_init"  # its fallback: stock code
    assert audit.effective(model)["implementation"] == "stock"


def test_fused_lora_is_counted_by_what_the_modules_call() -> None:
    from types import MethodType

    def apply_lora_qkv(self: Any, x: Any) -> Any:
        return x

    def original_apply_o(self: Any, x: Any) -> Any:
        return x

    model = tiny_model()
    attention = model.model.layers[0].self_attn
    attention.apply_qkv, attention.apply_o = apply_lora_qkv, original_apply_o
    assert audit.effective(model)["fused_lora_modules"] == "1"
    attention.apply_qkv = MethodType(apply_lora_qkv, attention)
    assert audit.effective(model)["fused_lora_modules"] == "1"


def test_unsloth_checkpointing_is_known_by_its_function(tmp_path: Path) -> None:
    import functools

    def unsloth_checkpoint(*args: Any, **kwargs: Any) -> None: ...

    model = tiny_model()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert audit.effective(model)["gradient_checkpointing"] == "on"
    for layer in model.model.layers:
        layer._gradient_checkpointing_func = functools.partial(unsloth_checkpoint, use_reentrant=True)
    assert audit.effective(model)["gradient_checkpointing"] == "unsloth"
    model.gradient_checkpointing_disable()
    assert audit.effective(model)["gradient_checkpointing"] == "off"


def test_of_the_published_runs_unsloth_trained_unpacked_rows_without_padding_where_it_was_left_the_choice() -> None:
    """On an H100 it has measured nothing against that (unsloth/utils/padding_choice.py); other runs are withdrawn."""
    read = [
        entry.effective for one in load(Path("results"))[0] for entry in one.record.audit
        if entry.name == "padding_free" and one.record.environment.gpus and one.record.cell.backend == "unsloth"
        and (one.record.cell.packing, one.record.cell.padding_free) in (("off", "auto"), ("off", "on"))
    ]  # fmt: skip
    assert len(read) >= 7 and set(read) == {"True"}
