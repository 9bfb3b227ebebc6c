"""The trainer: TRL's SFTTrainer over pre-tokenised rows, built for a cell, and one batch through it beside its loop."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cell import Cell

if TYPE_CHECKING:
    from bench.backends.base import TorchBackend

CUT_TO = "_unsloth_truncated_to"
"""Attribute by which a data set says that its rows are cut to so many tokens (unsloth/models/rl.py). Unsloth cannot cut
rows that are tokenised already, and without this word it turns its padding-free batches off (default: on) for them."""


def make(backend: "TorchBackend", cell: Cell, model: Any, tokenizer: Any, files: Any, folder: Path) -> Any:
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
    rows = tokenise(files, tokenizer, cell)
    setattr(rows, CUT_TO, cell.max_length)
    trainer = _trainer_class(gpu)(
        model=model,
        args=SFTConfig(**arguments | backend.trainer_arguments(cell)),
        train_dataset=rows,
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


def one_batch(trainer: Any, rows: Any) -> Callable[[], Any]:
    """One forward and backward over ``rows`` (a datasets.Dataset of one batch) by the trainer's own code.

    Call the result once: it returns the loss, and leaves the gradients on the parameters (scaled, with fp16). Loader,
    collator, loss and the count of trained tokens are the trainer's; no optimizer step is taken. Gradients are cleared
    here and are the caller's to clear afterwards.
    """
    kept, trainer.train_dataset = trainer.train_dataset, rows
    try:
        batches, items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    finally:
        trainer.train_dataset = kept
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad(set_to_none=True)
    return lambda: trainer.training_step(trainer.model_wrapped, batches[0], num_items_in_batch=items)
