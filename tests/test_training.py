"""The shared run, end to end on a CPU: phases, steps, stream, adapter, methods, precisions, packing, divergence."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import assemble, backends, events
from bench.backends.hf_peft import HfPeft
from bench.cache import sha256_file
from bench.cell import Cell
from bench.errors import Diverged
from tests.backends.trial import HIDDEN, LAYERS, LINEAR_SHAPES, Altered, Run, Trial, on_cpu

STEPS, UNTIMED, ACCUMULATION, BATCH = 6, 2, 2, 2


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial.create(tmp_path_factory.mktemp("trial"))


def whole_cell(trial: Trial, **fields: Any) -> Cell:
    return trial.cell(**{
        "model": "./tiny", "max_steps": STEPS, "untimed_steps": UNTIMED, "batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION, "learning_rate": 5e-2, "lr_scheduler": "constant", **fields,
    })  # fmt: skip


@pytest.fixture(scope="module")
def whole(trial: Trial) -> Run:
    """One run of six steps, started with a relative model path as a user would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trial.root)
        run = trial.run(whole_cell(trial))
    assert run.record.status == "ok", run.record.message
    return run


def test_phases_follow_each_other_and_have_their_own_clocks(whole: Run) -> None:
    phases = whole.record.phases
    assert [p.name for p in phases] == ["import", "load", "adapter", "warmup", "steady", "profile", "save", "probe"]
    assert phases[0].start_s == 0
    for before, after in zip(phases, phases[1:], strict=False):
        assert before.wall_s > 0 and after.start_s >= before.start_s + before.wall_s


def test_the_untimed_steps_are_the_warmup(whole: Run) -> None:
    steps, warmup, steady = whole.record.steps, whole.record.phase("warmup"), whole.record.phase("steady")
    assert warmup and steady
    assert len(steps.wall_s) == STEPS and min(steps.wall_s) > 0
    assert sum(steps.wall_s[:UNTIMED]) <= warmup.wall_s
    assert sum(steps.wall_s[UNTIMED:]) <= steady.wall_s
    assert steps.trainer_log_s[UNTIMED - 1] <= steady.start_s < steps.trainer_log_s[UNTIMED]
    end_of_steps = steps.trainer_log_s[-1] - steady.start_s
    assert sum(steps.wall_s[UNTIMED:]) == pytest.approx(end_of_steps, rel=0.2), "no time is lost between the steps"


def test_tokens_are_those_of_the_batches(whole: Run) -> None:
    steps = whole.record.steps
    seen = [n for n in steps.trainer_tokens_seen if n is not None]
    assert [b - a for a, b in zip([0, *seen], seen, strict=False)] == steps.padded_tokens
    assert steps.samples == [BATCH * ACCUMULATION] * STEPS
    pairs = list(zip(steps.real_tokens, steps.padded_tokens, steps.trained_tokens, strict=True))
    assert all(0 < trained < real <= padded for real, padded, trained in pairs)
    assert any(real < padded for real, padded, _ in pairs), "rows differ in length, so some batch is padded"
    assert whole.record.data and whole.record.data.stream_checked_in_forward is True


def test_the_first_loss_is_that_of_the_base_model(trial: Trial, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """B starts at zero; the loss is averaged over all labels of the step's batches."""
    on_cpu(monkeypatch, trial.root)
    monkeypatch.chdir(trial.root)
    import torch
    from transformers import AutoTokenizer

    from bench.models.sources import resolve
    from bench.stream import tokenise
    from bench.tasks import materialise

    cell = whole.record.cell
    folder = resolve(cell).folder
    files = materialise(cell, offline=True, base=trial.root)
    rows = tokenise(files, AutoTokenizer.from_pretrained(folder), cell)
    model = HfPeft().load(cell, folder)
    total, count = 0.0, 0
    for row in rows.select(range(BATCH * ACCUMULATION)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    assert count == whole.record.steps.trained_tokens[0]
    assert whole.record.steps.loss[0] == pytest.approx(total / count, rel=1e-5)


def test_it_learns(whole: Run) -> None:
    steps = whole.record.steps
    first, last = steps.loss[0], steps.loss[-1]
    assert first is not None and last is not None and last < 0.9 * first
    assert all(norm and math.isfinite(norm) for norm in steps.grad_norm)
    assert steps.learning_rate == [5e-2] * STEPS


def test_the_saved_adapter_is_a_standard_one(trial: Trial, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, trial.root)
    monkeypatch.chdir(trial.root)
    from peft import PeftModel

    from bench.models.sources import resolve

    folder = whole.folder / "adapter"
    model = PeftModel.from_pretrained(HfPeft().load(whole.record.cell, resolve(whole.record.cell).folder), folder)
    tuned = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(tuned) == LAYERS * len(LINEAR_SHAPES)
    assert all(p.abs().max() > 0 for p in tuned), "every B was trained and loaded"
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 4, "./tiny")


def test_the_saved_adapter_names_no_folder_of_this_machine(trial: Trial, whole: Run) -> None:
    files = [f for f in (whole.folder / "adapter").rglob("*") if f.is_file()]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in files}
    for file in files:
        assert str(trial.root).encode() not in file.read_bytes(), file.name


def test_the_record_describes_the_saved_adapter_and_the_model(whole: Run) -> None:
    file = whole.folder / "adapter" / "adapter_model.safetensors"
    assert whole.record.adapter.saved_bytes == file.stat().st_size
    assert whole.record.adapter.saved_sha256 == sha256_file(file)
    linear = sum(i * o for i, o in LINEAR_SHAPES)
    adapter = sum(4 * (i + o) for i, o in LINEAR_SHAPES)
    assert whole.record.model and whole.record.model.weights == "random"
    assert whole.record.model.parameters_trainable == LAYERS * adapter
    norms = (2 * LAYERS + 1) * HIDDEN
    assert whole.record.model.parameters_total == 320 * HIDDEN + LAYERS * (linear + adapter) + norms


# Equal work


def test_a_second_run_starts_from_the_same_adapter_and_repeats_it(
    trial: Trial, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trial.root)
    again = trial.run(whole_cell(trial))
    assert again.record.adapter == whole.record.adapter and again.record.adapter.initial_sha256
    assert again.record.data == whole.record.data
    assert again.record.steps.loss == whole.record.steps.loss


def test_two_backends_get_equal_streams_and_the_same_adapter(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._FACTORIES, "unchecked", ("tests.backends.trial", "Unchecked"))
    pair = [trial.run(c, backends.get(c.backend)) for c in (trial.cell(), trial.cell(backend="unchecked"))]
    assert [run.record.status for run in pair] == ["ok", "ok"]
    assert [run.reading("gradient_checkpointing") for run in pair] == ["on", "off"]
    one, other = (run.record for run in pair)
    assert one.data and other.data and one.data.stream_sha256
    assert one.data.stream_sha256 == other.data.stream_sha256
    assert one.adapter.initial_sha256 and one.adapter.initial_sha256 == other.adapter.initial_sha256
    assert one.steps.loss == pytest.approx(other.steps.loss, rel=1e-6)
    assert one.steps.grad_norm == pytest.approx(other.steps.grad_norm, rel=1e-5)


def test_rank_changes_the_adapter_alone_and_the_seed_both(trial: Trial) -> None:
    base, wider, other = (trial.run(trial.cell(**f)).record for f in ({}, {"r": 8}, {"seed": 1}))
    assert base.data and wider.data and other.data
    assert wider.data.stream_sha256 == base.data.stream_sha256
    assert other.data.stream_sha256 != base.data.stream_sha256
    assert len({r.adapter.initial_sha256 for r in (base, wider, other)}) == 3


def test_accumulation_gives_the_step_of_the_larger_batch(trial: Trial) -> None:
    whole = {"packing": "wrapped", "max_length": 64}
    split = trial.run(trial.cell(batch_size=2, gradient_accumulation_steps=2, **whole)).record
    joined = trial.run(trial.cell(batch_size=4, gradient_accumulation_steps=1, **whole)).record
    assert split.steps.padded_tokens == joined.steps.padded_tokens == [4 * 64] * 2
    assert split.steps.trained_tokens == joined.steps.trained_tokens
    assert split.steps.loss == pytest.approx(joined.steps.loss, rel=1e-5)
    assert split.steps.grad_norm == pytest.approx(joined.steps.grad_norm, rel=1e-4)


def test_padding_changes_nothing_but_the_positions_computed(trial: Trial) -> None:
    padded = trial.run(trial.cell(padding_free="off")).record
    flat = trial.run(trial.cell(padding_free="on")).record
    assert flat.steps.padded_tokens == flat.steps.real_tokens == padded.steps.real_tokens
    assert padded.steps.padded_tokens != padded.steps.real_tokens
    assert flat.data == padded.data
    assert flat.steps.loss == pytest.approx(padded.steps.loss, rel=1e-5)
    assert flat.steps.grad_norm == pytest.approx(padded.steps.grad_norm, rel=1e-4)


def test_rows_say_that_they_are_cut_so_that_unsloth_keeps_its_padding_free_batches(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import trainer

    make, made = trainer.make, list[Any]()

    def watched(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(trainer, "make", watched)
    cell = trial.cell()
    trial.run(cell)
    rows = made[0][0].train_dataset
    assert vars(rows)[trainer.CUT_TO] == cell.max_length >= max(map(len, rows["input_ids"]))

    spec = find_spec("unsloth")
    if spec is None or spec.origin is None:
        pytest.skip("unsloth is not installed")
    source = (Path(spec.origin).parent / "models" / "rl.py").read_text()
    assert f"get('{trainer.CUT_TO}')" in source, "Unsloth asks for it by another name"


# Methods, precisions and recipe fields: two steps each

SCALING = {"lora": "1", "rslora": "2", "dora": "1"}  # alpha 4 over r 4, over sqrt(4)
CASES: dict[str, dict[str, Any]] = {
    **{f"{m}-{p}": {"method": m, "precision": p} for m in ("lora", "full") for p in ("fp32", "bf16")},
    **{f"{m}-{p}": {"method": m, "precision": p} for m in ("rslora", "dora") for p in ("fp32", "nf4")},
    "lora-nf4": {"precision": "nf4"},
    "lora-int8": {"precision": "int8"},
    "alpha-2r": {"lora_alpha": "2r"},
    "attention-only": {"target_modules": "attention"},
    "listed-modules": {"target_modules": ["q_proj", "down_proj"]},
    "dropout": {"lora_dropout": 0.1},
    "checkpointing-off": {"gradient_checkpointing": "off"},
    "checkpointing-off-nf4": {"gradient_checkpointing": "off", "precision": "nf4"},
    "eager": {"attention": "eager"},
    "sdpa": {"attention": "sdpa"},
    "wrapped": {"packing": "wrapped", "max_length": 96},
    "wrapped-flat": {"packing": "wrapped", "max_length": 96, "padding_free": "on"},
    "bfd": {"packing": "bfd"},
    "bfd-flat": {"packing": "bfd", "padding_free": "on"},
    "accumulation": {"gradient_accumulation_steps": 3},
    "cosine": {"lr_scheduler": "cosine"},
    "constant_with_warmup": {"lr_scheduler": "constant_with_warmup", "warmup_steps": 2},
    "all-timed": {"untimed_steps": 0},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_what_was_asked_for_is_what_ran(trial: Trial, fields: dict[str, Any]) -> None:
    cell = trial.cell(**fields)
    run = trial.run(cell)
    assert run.record.status == "ok", run.record.message
    steps = run.record.steps
    assert len(steps.loss) == 2 and all(loss and math.isfinite(loss) for loss in steps.loss)
    assert all(norm and math.isfinite(norm) for norm in steps.grad_norm)
    assert steps.loss[0] == pytest.approx(math.log(320), rel=0.05), "random weights predict nothing"

    asked = {entry.name: entry.requested for entry in run.record.audit if entry.requested is not None}
    always = {"base_precision", "adapter", "gradient_checkpointing", "implementation", "parameters_trainable"}
    assert always <= asked.keys()
    for entry in run.record.audit:
        assert entry.ok and entry.requested in (None, entry.effective)
    assert run.reading("base_precision") == cell.precision
    assert run.reading("attention") == ("eager" if cell.attention == "eager" else "sdpa")
    if cell.method != "full":
        assert {"lora_rank", "lora_scaling"} <= asked.keys()
        scaling = "2" if cell.lora_alpha == "2r" else SCALING[cell.method]
        assert (run.reading("lora_rank"), run.reading("lora_scaling")) == ("4", scaling)
    assert run.reading("padding_free") == str(cell.padding_free == "on" or cell.packing == "bfd")
    if cell.packing == "wrapped":
        assert steps.padded_tokens == steps.real_tokens == [2 * 96] * 2


@pytest.mark.parametrize(("precision", "kind"), [("nf4", "14 Linear4bit"), ("int8", "14 Linear8bitLt")])
def test_quantised_weights_are_counted_at_their_true_size(trial: Trial, precision: str, kind: str) -> None:
    quantised, plain = trial.run(trial.cell(precision=precision)), trial.run(trial.cell())
    assert quantised.reading("quantised_modules") == kind
    assert quantised.record.model and plain.record.model
    assert quantised.record.model.parameters_total == plain.record.model.parameters_total
    assert plain.record.steps.loss[0] is not None
    assert quantised.record.steps.loss[0] == pytest.approx(plain.record.steps.loss[0], rel=0.01)
    assert quantised.record.steps.loss[0] != plain.record.steps.loss[0]


def test_bf16_trains_float32_adapters_over_bf16_weights(trial: Trial) -> None:
    run = trial.run(trial.cell(precision="bf16"))
    assert run.reading("adapter_dtypes") == "28 float32"
    assert "bfloat16" in (run.reading("base_dtypes") or "")


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("linear", 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("linear", 2, [0, 1 / 2, 1, 1 / 2]),
        ("cosine", 0, [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]),
        ("constant", 0, [1, 1, 1, 1]),
        ("constant_with_warmup", 2, [0, 1 / 2, 1, 1]),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    trial: Trial, scheduler: str, warmup: int, expected: list[float]
) -> None:
    run = trial.run(trial.cell(lr_scheduler=scheduler, warmup_steps=warmup, learning_rate=1e-3, max_steps=4))
    assert run.record.steps.learning_rate == pytest.approx([1e-3 * part for part in expected])


def test_the_recipe_reaches_the_trainer(trial: Trial) -> None:
    recipe = {
        "batch_size": 1, "gradient_accumulation_steps": 3, "learning_rate": 1e-3, "lr_scheduler": "cosine",
        "warmup_steps": 1, "weight_decay": 0.5, "max_grad_norm": 0.25,
    }  # fmt: skip
    reading = trial.run(trial.cell(**recipe)).reading("recipe") or ""
    assert reading.startswith("1 x 3, ") and "fused" in reading.lower()
    assert "lr 0.001" in reading and "after 1, decay 0.5, clip 0.25, bf16 False" in reading


def test_full_fine_tuning_saves_a_whole_model(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trial.root)
    run = trial.run(trial.cell(method="full", model="./tiny"))
    assert run.record.status == "ok", run.record.message
    assert run.record.model and run.record.model.parameters_trainable == run.record.model.parameters_total
    assert run.record.adapter.initial_sha256 is None
    files = [f for f in (run.folder / "adapter").rglob("*") if f.is_file()]
    tensors = [f for f in files if f.suffix == ".safetensors"]
    assert run.record.adapter.saved_bytes == sum(f.stat().st_size for f in tensors) > 0
    assert not [f.name for f in files if str(trial.root).encode() in f.read_bytes()]


# Divergence


def test_a_huge_learning_rate_diverges_and_the_steps_are_kept(trial: Trial) -> None:
    run = trial.run(trial.cell(learning_rate=1e30, max_steps=6, untimed_steps=3))
    assert isinstance(run.error, Diverged) and run.record.status == "diverged"
    assert "step 2" in str(run.error)
    assert run.record.failed_phase == "warmup"
    assert len(run.record.steps.loss) == 2
    assert run.record.steps.loss[0] is not None and run.record.steps.loss[1] is None
    last = events.read(run.folder / assemble.JOURNAL)[-2:]
    assert [(e["event"], e.get("name")) for e in last] == [("peaks", "warmup"), ("failed", None)]


def test_weights_that_are_not_numbers_diverge_at_the_first_step(trial: Trial) -> None:
    import torch

    def load(cell: Cell, folder: Path) -> Any:
        model = HfPeft().load(cell, folder)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
        return model

    run = trial.run(trial.cell(), Altered(load=load))
    assert isinstance(run.error, Diverged) and "nan at step 1" in str(run.error)
    assert run.record.steps.loss == [None] and len(run.record.steps.wall_s) == 1
