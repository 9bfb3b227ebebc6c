"""Base model, adapter beside it, adapter merged into it: outputs of one batch, and latency of a forward pass.

The three run in turn, round by round, so that drift of the machine falls on all. A process gives one median a variant.
"""

from pathlib import Path
from typing import Any

from bench.claims.experiments import parts

UNTIMED_ROUNDS = 2


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds of every round by variant (prefill of all rows, and one token after it), and relative distances."""
    import torch

    base, _ = parts.base_model(settings)
    ids = parts.tokens(base, settings["rows"], settings["tokens"])
    variants = {
        "base": base,
        "unmerged": parts.with_adapter(parts.base_model(settings)[0], settings["r"], seed=1),
        "merged": parts.with_adapter(parts.base_model(settings)[0], settings["r"], seed=1).merge_and_unload(),
    }
    prefill_s: dict[str, list[float]] = {name: [] for name in variants}
    decode_s: dict[str, list[float]] = {name: [] for name in variants}
    logits, caches = {}, {}
    with torch.inference_mode():
        for round_ in range(settings["rounds"] + UNTIMED_ROUNDS):
            order = list(variants) if round_ % 2 == 0 else list(reversed(variants))
            for name in order:
                model = variants[name]
                seconds, out = parts.timed(lambda model=model: model(input_ids=ids, use_cache=True))  # type: ignore[misc]
                logits[name], caches[name] = out.logits, out.past_key_values
                step_s, _ = parts.timed(
                    lambda model=model, cache=caches[name]: model(  # type: ignore[misc]
                        input_ids=ids[:, :1], past_key_values=cache, use_cache=True
                    )
                )
                if round_ >= UNTIMED_ROUNDS:
                    prefill_s[name].append(seconds)
                    decode_s[name].append(step_s)
    return {
        "device": parts.device_name(), "prefill_s": prefill_s, "decode_s": decode_s,
        "merged_distance": parts.distance(logits["merged"], logits["unmerged"]),
        "adapter_distance": parts.distance(logits["unmerged"], logits["base"]),
        "same_top_token": float((logits["merged"].argmax(-1) == logits["unmerged"].argmax(-1)).float().mean()),
        "tolerance": parts.tolerance(base, settings.get("precision", "fp32")),
    }  # fmt: skip
