"""The Cell: one fully specified training configuration, named by the digest of its content.

A cell knows nothing of machines, repeats or results. Every field can be an axis of a suite. Defaults come from the
libraries' own documentation: PEFT's LoRA guide, TRL's SFTTrainer, Unsloth's notebooks; each docstring says which.
"""

import hashlib
import json
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Source = Literal["hub", "local", "packaged", "random"]
Method = Literal["lora", "rslora", "dora", "full"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "nf4"]
Checkpointing = Literal["auto", "off", "on", "unsloth"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
Packing = Literal["off", "wrapped", "bfd"]

LORA_ONLY = ("r", "lora_alpha", "lora_dropout", "target_modules")
LATER_FIELDS = ("vram_budget_bytes",)
"""Fields that came after the first published records: out of the digest at their default, so that older ones stand."""


class Frozen(BaseModel):
    """Base of every stored object: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class CustomTask(Frozen):
    """The user's own data: a JSONL file or a Hugging Face dataset, and which field is what."""

    path: str | None = None
    """A JSONL file; relative paths start at the suite file's folder."""
    dataset: str | None = None
    """A Hugging Face dataset id, instead of ``path``."""
    dataset_config: str | None = None
    """Its configuration name, where it has several."""
    split: str = "train"
    """Split of ``dataset`` that is read."""
    question: str = "question"
    """Field with the question."""
    answer: str = "answer"
    """Field with the final answer; held-out items are scored by exact match on it."""
    reasoning: str | None = None
    """Field with the worked steps, trained on before the answer."""
    context: str | None = None
    """Field with context shown above the question."""
    instruction: str = "Solve the problem."
    """First lines of the prompt."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the items held out for evaluation, chosen by a hash of the item."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'path' (a JSONL file) and 'dataset' (a Hugging Face dataset id)")
        return self


class Cell(Frozen):
    """One configuration. Two runs of the same cell are repeats of each other."""

    model: str
    """Catalogue name (``peftmark list models``), Hugging Face id, or a folder, as ``source`` says."""
    source: Source = "hub"
    """Where the weights come from; ``random`` has the real architecture and random weights."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    backend: str = "hf-peft"
    """Who loads and trains the model (``peftmark list backends``)."""
    method: Method = "lora"
    """Fine-tuning method."""
    precision: Precision = "bf16"
    """Base weights: fp32 / bf16 / fp16 as such, int8 and nf4 through bitsandbytes with bf16 compute."""

    r: int | None = Field(16, ge=1)
    """LoRA rank. 16 is the default of Unsloth's notebooks; PEFT's is 8."""
    lora_alpha: int | Literal["r", "2r"] = "r"
    """LoRA alpha, or a rule over the rank; Unsloth's guide says r or 2r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """LoRA dropout; 0 is PEFT's default, and what Unsloth's fused kernels need."""
    target_modules: tuple[str, ...] | Literal["all-linear", "attention"] = "all-linear"
    """Linear modules that get an adapter: every one in the blocks, the attention's four, or a list."""

    task: str = "chain-sum"
    """Training and evaluation task (``peftmark list tasks``)."""
    custom_task: CustomTask | None = None
    """Definition for ``task: custom``."""
    train_examples: int = Field(2000, ge=1)
    """Size of the training set; seen again from the start when the steps outlast it."""
    eval_examples: int = Field(0, ge=0)
    """Held-out items scored by lm-eval before and after; 0 skips evaluation."""
    eval_max_new_tokens: int = Field(64, ge=1)
    """Longest generated answer, tokens."""
    eval_batch_size: int = Field(32, ge=1)
    """Batch of generation."""

    max_length: int = Field(1024, ge=8)
    """Longest sequence, tokens; TRL's default."""
    packing: Packing = "off"
    """off: one example a row, padded; wrapped: one stream cut into full rows; bfd: whole examples packed best-fit."""
    padding_free: Literal["auto", "on", "off"] = "auto"
    """Flatten a batch into one row without padding; auto: the library's own choice (TRL: off, Unsloth: mostly on)."""
    batch_size: int = Field(2, ge=1)
    """Sequences in one forward pass."""
    gradient_accumulation_steps: int = Field(4, ge=1)
    """Forward passes per optimizer step."""
    max_steps: int = Field(30, ge=1)
    """Optimizer steps."""
    untimed_steps: int = Field(5, ge=0)
    """Steps that belong to warm-up (compilation, autotuning); throughput is taken from the rest."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate; 2e-4 in the QLoRA paper and in Unsloth's notebooks."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "linear"
    """Learning-rate schedule."""
    warmup_steps: int = Field(5, ge=0)
    """Steps of rising learning rate."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """torch's fused AdamW, or bitsandbytes' 8-bit AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping; Trainer's default."""

    gradient_checkpointing: Checkpointing = "auto"
    """auto: the backend's documented setting (hf-peft: on; unsloth: its own offloading kind)."""
    attention: Attention = "auto"
    """Attention implementation; auto: the library's own choice. The audit records which one ran."""
    seed: int = Field(3407, ge=0)
    """Seed of data order, adapter and random weights; 3407 is the notebooks' own."""
    vram_budget_bytes: int | None = Field(None, ge=1)
    """GPU memory that the process may take, context included: a smaller card on a larger one; null: the whole card."""

    @model_validator(mode="before")
    @classmethod
    def _full_has_no_adapter(cls, data: Any) -> Any:
        """Full fine-tuning has no adapter: its cells are one cell, whatever the axes say of r."""
        if isinstance(data, dict) and data.get("method") == "full":
            defaults = {name: cls.model_fields[name].default for name in LORA_ONLY}
            return {**data, **defaults, "r": None}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method != "full" and self.r is None:
            raise ValueError("r: give a rank of at least 1 (only method 'full' has none)")
        if self.untimed_steps >= self.max_steps:
            raise ValueError(
                f"untimed_steps ({self.untimed_steps}) must be below max_steps ({self.max_steps}), or no step is timed"
            )
        if self.eval_examples and self.source == "random":
            raise ValueError("eval_examples: random weights have no accuracy to score; set it to 0 or use real weights")
        if (self.task == "custom") != (self.custom_task is not None):
            raise ValueError("task 'custom' needs a 'custom_task' section, and only that task takes one")
        if self.packing == "bfd" and self.padding_free == "off":
            raise ValueError(
                "padding_free 'off' contradicts packing 'bfd', which is always padding-free; use auto or on"
            )
        if self.method == "full" and self.precision in ("int8", "nf4"):
            raise ValueError(f"method 'full' cannot train {self.precision} weights; use bf16, fp16 or fp32")
        return self

    @property
    def alpha(self) -> int:
        """LoRA alpha as a number."""
        rank = self.r or 0
        return {"r": rank, "2r": 2 * rank}[self.lora_alpha] if isinstance(self.lora_alpha, str) else self.lora_alpha

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the cell's canonical JSON."""
        return self.twin_key()

    @property
    def slug(self) -> str:
        """A readable folder name: what most suites vary, then the digest."""
        rank = "full" if self.method == "full" else f"{self.method}-r{self.r}"
        model = self.model.rstrip("/").split("/")[-1].lower()
        return f"{model}-{rank}-{self.precision}-{self.backend}-{self.digest[:8]}"

    def twin_key(self, *differ: str) -> str:
        """Digest of everything but ``differ``: cells that share it differ in those fields alone."""
        later = {name for name in LATER_FIELDS if getattr(self, name) == type(self).model_fields[name].default}
        return digest_of(self.model_dump(mode="json", exclude={*differ, *later}))


def digest_of(content: Any) -> str:
    """First 16 hex digits of the SHA-256 of ``content`` as canonical JSON."""
    blob = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(blob.encode()).hexdigest()[:16]
