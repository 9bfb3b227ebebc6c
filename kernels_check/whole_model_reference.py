"""The reference of the whole-model check: plain transformers + peft in float64, in a process without Unsloth."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kernels_check.whole_model_shapes import (
    ALPHA,
    B_SCALE,
    HIDDEN,
    IGNORED,
    INTERMEDIATE,
    LAYERS,
    RANK,
    SEED,
    SHAPES,
    TARGETS,
    TOKENS,
    VOCABULARY,
)  # fmt: skip


def write_reference(place: Path, shape: str, dtype: str) -> None:
    """Write weights, adapter, tokens, the reference's loss and gradients, and those of HF + PEFT in ``dtype``."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    config = getattr(transformers, SHAPES[shape].config)(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **SHAPES[shape].options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(4, VOCABULARY, TOKENS, generator=generator)
    labels = tokens.clone()
    labels[0, :4] = IGNORED
    weights = torch.manual_seed(SEED) and transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in weights.named_parameters():
        if "norm" in name:  # not all alike, as they are made
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    weights.to(getattr(torch, dtype)).save_pretrained(place / "model")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2", "pad_token": "w3"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(place / "model")
    adapter: dict[str, torch.Tensor] = {}
    for precision in ("float64", dtype):
        base = transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=getattr(torch, dtype))
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
        adapter = adapter or {
            name: torch.randn(p.shape, generator=generator) * (B_SCALE if "lora_B" in name else p.shape[1] ** -0.5)
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        with in_float64() if precision == "float64" else nullcontext():
            loss, gradients = loss_and_gradients(
                model.double() if precision == "float64" else model, adapter, tokens, labels
            )
        save_file(gradients | {"loss": loss}, place / f"{'reference' if precision == 'float64' else 'hf'}.safetensors")
    save_file(adapter, place / "adapter.safetensors")
    save_file({"tokens": tokens, "labels": labels}, place / "tokens.safetensors")


def loss_and_gradients(model: Any, adapter: dict[str, Any], tokens: Any, labels: Any) -> tuple[Any, dict[str, Any]]:
    """Put ``adapter`` into the model's LoRA tensors; the loss, and the gradient of each tensor by name, as float64."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(trained) != set(adapter):
        raise ValueError(f"other LoRA tensors are trained: {sorted(set(trained) ^ set(adapter))[:3]}")
    for name, parameter in trained.items():
        parameter.data.copy_(adapter[name])
    loss = model.train()(input_ids=tokens, labels=labels).loss
    loss.backward()
    return loss.detach().double(), {name: p.grad.detach().double().contiguous() for name, p in trained.items()}


def in_float64() -> Any:
    """A context in which what transformers computes in float32 whatever the model's dtype (norms, angles, the loss) is
    computed in float64."""
    import torch
    from torch.overrides import TorchFunctionMode

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    class InFloat64(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = {key: wide(value) for key, value in (kwargs or {}).items()}
            return (
                torch.Tensor.double(args[0]) if function is torch.Tensor.float else function(*map(wide, args), **named)
            )

    return InFloat64()
