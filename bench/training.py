"""The one training run: TRL's SFTTrainer for every backend, timed by the harness's own callback.

Runs inside the worker. The backend loads the model; everything that is measured happens here, the same for each.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import adapters, audit, cpu
from bench.cache import sha256_file
from bench.cell import Cell
from bench.errors import AuditError, Diverged
from bench.events import Journal
from bench.record import AdapterFacts, DataFacts, ModelFacts, TrainerReport

if TYPE_CHECKING:
    from bench.backends.base import TorchBackend, WorkerJob


def device() -> str:
    """The device that cells run on."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def compute_dtype(cell: Cell) -> Any:
    """torch dtype of activations and unquantised base weights: bf16 except where the cell says fp16 or fp32."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16}.get(cell.precision, torch.bfloat16)


def target_modules(cell: Cell, model: Any) -> list[str]:
    """Leaf names of the linear modules that get an adapter, in name order.

    ``all-linear``: every linear layer of the blocks, the head left out; ``attention``: those inside attention.
    """
    import torch

    if not isinstance(cell.target_modules, str):
        return list(cell.target_modules)
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    chosen = {n.rsplit(".", 1)[-1] for n in linear if cell.target_modules == "all-linear" or "attn" in n}
    return sorted(chosen)


def run(backend: "TorchBackend", job: "WorkerJob", journal: Journal) -> None:
    """Load, adapt, evaluate, train, evaluate, save; see DESIGN's rules for what each phase may contain."""
    with journal.phase("import", t_s=0.0):
        backend.imports()
    with cpu.bf16_matmul():
        _run(backend, job, journal)


def _run(backend: "TorchBackend", job: "WorkerJob", journal: Journal) -> None:
    import torch
    import transformers

    from bench.models.sources import resolve
    from bench.tasks import materialise

    cell = job.cell
    source = resolve(cell, offline=True)
    files = materialise(cell, offline=True, base=job.base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, trust_remote_code=cell.trust_remote_code)

    transformers.set_seed(cell.seed)
    with journal.phase("load"):
        model = backend.load(cell, source.folder)
        _synchronise()
    with journal.phase("adapter"):
        model = backend.add_adapter(cell, model)
        _synchronise()
    cpu.exact_nf4_gradients(model)
    initial = None if cell.method == "full" else adapters.load_initial(model, cell.seed)
    journal.fact("adapter", AdapterFacts(initial_sha256=initial))
    journal.fact("model", _model_facts(model, source))
    data = DataFacts(train_sha256=files.train_sha256, eval_sha256=files.eval_sha256)
    journal.fact("data", data)
    wanted = audit.requested(cell) | backend.requested(cell) | {"parameters_trainable": str(_trainable(model))}
    loaded = {k: v for k, v in wanted.items() if k not in ("gradient_checkpointing", "padding_free")}  # the trainer's
    _audited(journal, audit.check(loaded, audit.effective(model)))

    def evaluate(phase: Any, folder: str) -> None:
        if cell.eval_examples:
            with journal.phase(phase):
                backend.for_inference(model)
                journal.fact(phase, _evaluate(cell, model, tokenizer, files, job.folder / folder))
                backend.for_training(model, cell)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    evaluate("eval_before", "eval_before")
    transformers.set_seed(cell.seed)
    trainer, stream = _trainer(backend, cell, model, tokenizer, files, job.folder)
    seen = _watch_first_forward(model)
    clock = _clock(cell, journal, stream, lambda: _after_first_step(journal, wanted, trainer))
    trainer.add_callback(clock)
    try:
        summary = trainer.train().metrics
    finally:
        clock.finish()
    consumed = cell.max_steps * cell.gradient_accumulation_steps
    journal.fact(
        "data",
        data.model_copy(
            update={
                "stream_sha256": stream.stream_sha256(consumed),
                "stream_checked_in_forward": _same_tokens(seen, stream),
            }
        ),
    )
    journal.fact(
        "trainer",
        TrainerReport(
            train_runtime_s=summary.get("train_runtime"),
            train_loss=summary.get("train_loss"),
        ),
    )
    evaluate("eval_after", "eval_after")
    with journal.phase("save"):
        model.save_pretrained(job.folder / "adapter")
    journal.fact("adapter", _saved(job.folder / "adapter", initial, cell))


def _trainer(backend: "TorchBackend", cell: Cell, model: Any, tokenizer: Any, files: Any, folder: Path) -> Any:
    """SFTTrainer over pre-tokenised rows, and the meter around the collator that it chose for itself."""
    import torch
    from trl import SFTConfig

    from bench.stream import StreamCollator, tokenise

    gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "max_steps": cell.max_steps,
        "per_device_train_batch_size": cell.batch_size,
        "gradient_accumulation_steps": cell.gradient_accumulation_steps,
        "learning_rate": cell.learning_rate,
        "lr_scheduler_type": cell.lr_scheduler,
        "warmup_steps": cell.warmup_steps,
        "optim": {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit"}[cell.optimizer],
        "weight_decay": cell.weight_decay,
        "max_grad_norm": cell.max_grad_norm,
        "bf16": cell.precision in ("bf16", "nf4", "int8"),
        "fp16": cell.precision == "fp16",
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "seed": cell.seed,
        "data_seed": cell.seed,
        "train_sampling_strategy": "sequential",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None if cell.padding_free == "on" else cell.max_length,
        "packing": cell.packing == "bfd",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if cell.padding_free != "auto":
        arguments["padding_free"] = cell.padding_free == "on"
    trainer = _trainer_class(gpu)(
        model=model,
        args=SFTConfig(**arguments | backend.trainer_arguments(cell)),
        train_dataset=tokenise(files, tokenizer, cell),
        processing_class=tokenizer,
    )
    stream = StreamCollator(trainer.data_collator)
    trainer.data_collator = stream
    return trainer, stream


def _trainer_class(gpu: bool) -> Any:
    """SFTTrainer; without a GPU with transformers' own loss, since TRL's fused head is a Triton kernel."""
    from transformers import Trainer
    from trl import SFTTrainer

    if gpu:
        return SFTTrainer

    class CpuSFTTrainer(SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return Trainer.compute_loss(self, *args, **kwargs)

    return CpuSFTTrainer


def _clock(cell: Cell, journal: Journal, stream: Any, after_first_step: Any) -> Any:
    """The callback that owns the time: a step runs from the end of the one before to its own end, GPU synchronised."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        phase: Any = None
        mark = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._enter("warmup" if cell.untimed_steps else "steady")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _synchronise()
            now = time.monotonic()
            self.wall_s, self.mark = now - self.mark, now

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            step, per_step = state.global_step, cell.gradient_accumulation_steps
            batches = stream.batches[(step - 1) * per_step : step * per_step]
            journal.write(
                "step",
                step=step,
                wall_s=self.wall_s,
                loss=float(logs["loss"]),
                grad_norm=_maybe_float(logs.get("grad_norm")),
                learning_rate=_maybe_float(logs.get("learning_rate")),
                samples=sum(b.rows for b in batches),
                padded_tokens=sum(b.padded_tokens for b in batches),
                real_tokens=sum(b.real_tokens for b in batches),
                trained_tokens=sum(b.trained_tokens for b in batches),
                trainer_tokens_seen=state.num_input_tokens_seen or None,
                trainer_log_s=journal.now_s(),
            )
            if not float("-inf") < float(logs["loss"]) < float("inf"):
                raise Diverged(f"loss is {logs['loss']} at step {step}")
            if step == 1:
                after_first_step()
            if step == cell.untimed_steps:
                self._enter("steady")
            elif step == 1:
                self.mark = time.monotonic()

        def _enter(self, phase: Any) -> None:
            self.finish()
            _synchronise()
            journal.begin(phase)
            self.phase, self.mark = phase, time.monotonic()

        def finish(self) -> None:
            """End the phase that is open, with its peaks."""
            if self.phase:
                journal.end(self.phase)
            self.phase = None

    return Clock()


def _after_first_step(journal: Journal, wanted: dict[str, str], trainer: Any) -> None:
    args = trainer.args
    recipe = (
        f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}, {_value(args.optim)}, "
        f"lr {args.learning_rate:g} {_value(args.lr_scheduler_type)} after {args.warmup_steps}, "
        f"decay {args.weight_decay:g}, clip {args.max_grad_norm:g}, bf16 {args.bf16}, fp16 {args.fp16}"
    )
    found = audit.effective(trainer.model, trainer.optimizer) | {
        "recipe": recipe,
        "padding_free": str(getattr(trainer, "padding_free", None)),
        "trainer": type(trainer).__name__,
    }
    _audited(journal, audit.check(wanted, found))


def _audited(journal: Journal, entries: list[Any]) -> None:
    journal.fact("audit", entries)
    audit.fail_on_mismatch(entries)


def _watch_first_forward(model: Any) -> list[list[int]]:
    """Collects the real token ids that the model's first forward call gets (one list, filled later)."""
    seen: list[list[int]] = []

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        ids = kwargs.get("input_ids")
        if ids is not None:
            mask = kwargs.get("attention_mask")
            kept = ids[mask.bool()] if mask is not None and mask.shape == ids.shape else ids.flatten()
            seen.append(kept.tolist())

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def _same_tokens(seen: list[list[int]], stream: Any) -> bool | None:
    if not seen:
        return None
    if seen[0] != stream.first_tokens:
        raise AuditError("the model's first forward pass did not get the tokens of the stream")
    return True


def _evaluate(cell: Cell, model: Any, tokenizer: Any, files: Any, out_dir: Path) -> Any:
    from bench.evaluation import evaluate

    return evaluate(
        model,
        tokenizer,
        files,
        limit=cell.eval_examples,
        batch_size=cell.eval_batch_size,
        max_new_tokens=cell.eval_max_new_tokens,
        out_dir=out_dir,
        record_dir=out_dir.parent,
    )


def _trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _model_facts(model: Any, source: Any) -> ModelFacts:
    # A 4-bit weight packs two values into one byte-sized element: quant_state keeps the true shape.
    def size(p: Any) -> int:
        state = getattr(p, "quant_state", None)
        return int(state.shape.numel()) if state is not None else p.numel()

    return ModelFacts(
        weights=source.weights,
        source_detail=source.source_detail,
        config_sha256=source.config_sha256,
        weights_sha256=source.weights_sha256,
        tokenizer_sha256=source.tokenizer_sha256,
        parameters_total=sum(size(p) for p in model.parameters()),
        parameters_trainable=_trainable(model),
    )


def _saved(folder: Path, initial: str | None, cell: Cell) -> AdapterFacts:
    """Size and hash of the saved tensors; the folder's config names the model as the cell does, not a local path."""
    import json

    config_file = folder / "adapter_config.json"
    if config_file.exists():
        config = json.loads(config_file.read_text())
        config_file.write_text(json.dumps(config | {"base_model_name_or_path": cell.model}, indent=2))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's template, with the local path in it
    tensors = sorted(folder.glob("*.safetensors"))
    return AdapterFacts(
        initial_sha256=initial,
        saved_bytes=sum(f.stat().st_size for f in tensors),
        saved_sha256=sha256_file(tensors[0]) if len(tensors) == 1 else None,
    )


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _value(option: Any) -> Any:
    """A Trainer option as its plain value, whether the library keeps it as an enum or as text."""
    return getattr(option, "value", option)


def _maybe_float(value: Any) -> float | None:
    return None if value is None else float(value)
