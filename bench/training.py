"""The one training run: TRL's SFTTrainer for every backend, timed by the harness's own callback.

Runs inside the worker. The backend loads the model; everything that is measured happens here, the same for each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import adapters, audit, cpu, fingerprint, probe, trainer, vram_cap
from bench.cache import sha256_file
from bench.cell import Cell
from bench.clock import clock, synchronise
from bench.errors import AuditError
from bench.events import Journal
from bench.record import AdapterFacts, AuditEntry, DataFacts, ModelFacts, TrainerReport

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

    audited = _Audited(journal)
    audited.add(audit.check({}, vram_cap.apply(cell.vram_budget_bytes, vram_cap.RESERVE_BEFORE_STEP_BYTES)))
    transformers.set_seed(cell.seed)
    with journal.phase("load"):
        model = backend.load(cell, source.folder)
        synchronise()
    wanted = audit.requested(cell) | backend.requested(cell)
    if cell.method != "full":
        wanted["target_modules"] = audit.targets(model, target_modules(cell, model))
    with journal.phase("adapter"):
        model = backend.add_adapter(cell, model)
        synchronise()
    cpu.exact_nf4_gradients(model)
    initial = None if cell.method == "full" else adapters.load_initial(model, cell.seed)
    undrawn = adapters.undrawn(model)
    journal.fact("adapter", AdapterFacts(initial_sha256=initial))
    journal.fact("model", _model_facts(model, source))
    data = DataFacts(train_sha256=files.train_sha256, eval_sha256=files.eval_sha256)
    journal.fact("data", data)
    wanted["parameters_trainable"] = str(_trainable(model))
    found = audit.effective(model)
    already = {k: v for k, v in wanted.items() if k in found and k != "gradient_checkpointing"}  # the trainer arms it
    audited.add(audit.check(already, found))

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
    run, stream = trainer.make(backend, cell, model, tokenizer, files, job.folder)
    seen = _watch_first_forward(model)

    def after_first_step() -> None:
        capped = vram_cap.apply(cell.vram_budget_bytes, vram_cap.RESERVE_BYTES)
        audited.add(audit.check(wanted, _read_trainer(run) | backend.readings(run) | capped))

    timed = clock(cell, journal, stream, after_first_step)
    run.add_callback(timed)
    try:
        summary = run.train().metrics
    finally:
        timed.finish()
    backend.for_training(model, cell)  # Unsloth's train() leaves the model set for inference, without checkpointing
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
    with journal.phase("profile"):
        dispatched = _profile(run, cell, journal, job.folder)
    audited.add(audit.check(audit.requested_dispatch(wanted, dispatched), dispatched))
    evaluate("eval_after", "eval_after")
    with journal.phase("save"):
        model.save_pretrained(job.folder / "adapter")
    journal.fact("adapter", _saved(job.folder / "adapter", initial, cell))
    if cell.method != "full":
        with journal.phase("probe"), _optional(journal, "probe"):
            journal.fact("probe", probe.measure(run, cell.seed, undrawn, job.folder))


def _profile(run: Any, cell: Cell, journal: Journal, folder: Path) -> dict[str, str]:
    """Fingerprint passes over the last batch of the training set; return the audit's readings of what the first did.

    torch's random state is as before; the gradients are cleared.
    """
    import torch

    watch = audit.Watch()
    kernels: dict[str, str] = {}
    devices = [0] if torch.cuda.is_available() else []
    with _optional(journal, "fingerprint"), torch.random.fork_rng(devices):
        rows = run.train_dataset
        last = rows.select(range(len(rows) - cell.batch_size, len(rows)))
        with watch.on(run.model):
            fact, kernels = fingerprint.measure(trainer.one_batch(run, last), folder)
        more = range(fingerprint.PASSES - 1) if devices else ()
        again_s = [fingerprint.pass_s(trainer.one_batch(run, last)) for _ in more]
        journal.fact("fingerprint", fact.model_copy(update={"passes_s": [*fact.passes_s, *again_s]}))
    run.model.zero_grad(set_to_none=True)
    return kernels | watch.readings


@contextmanager
def _optional(journal: Journal, name: str) -> Iterator[None]:
    """A meter that may fail: the error goes to the journal and the record has null; the run goes on."""
    try:
        yield
    except Exception as error:
        journal.write("missing", name=name, message=f"{type(error).__name__}: {error}")


class _Audited:
    """The audit so far: every addition goes to the journal, and ends the run where it is not what was asked for."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._entries: list[AuditEntry] = []

    def add(self, entries: list[AuditEntry]) -> None:
        self._entries = audit.merge(self._entries, entries)
        self._journal.fact("audit", self._entries)
        audit.fail_on_mismatch(entries)


def _read_trainer(run: Any) -> dict[str, str]:
    args = run.args
    recipe = (
        f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}, {_value(args.optim)}, "
        f"lr {args.learning_rate:g} {_value(args.lr_scheduler_type)} after {args.warmup_steps}, "
        f"decay {args.weight_decay:g}, clip {args.max_grad_norm:g}, bf16 {args.bf16}, fp16 {args.fp16}"
    )
    return audit.effective(run.model, run.optimizer) | {
        "recipe": recipe,
        "padding_free": str(getattr(run, "padding_free", None)),
        "trainer": type(run).__name__,
    }


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
    return ModelFacts(
        weights=source.weights,
        source_detail=source.source_detail,
        config_sha256=source.config_sha256,
        weights_sha256=source.weights_sha256,
        tokenizer_sha256=source.tokenizer_sha256,
        parameters_total=audit.parameters_total(model),
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


def _value(option: Any) -> Any:
    """A Trainer option as its plain value, whether the library keeps it as an enum or as text."""
    return getattr(option, "value", option)
