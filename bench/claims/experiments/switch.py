"""Several adapters on one base: seconds of a switch, of loading an adapter, and of loading base and adapter afresh;
outputs after switching to and fro against those of the fresh load.
"""

import tempfile
from pathlib import Path
from typing import Any

from bench.claims.experiments import parts


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Raw seconds, the distance of every adapter's outputs to a fresh load, and the least between two adapters."""
    import torch
    from peft import PeftModel

    names = [f"adapter{i}" for i in range(settings["adapters"])]
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(names):
            made = parts.with_adapter(parts.base_model(settings)[0], settings["r"], seed=number + 1)
            made.save_pretrained(f"{scratch}/{name}")
        base, _ = parts.base_model(settings)
        ids = parts.tokens(base, 1, settings["tokens"])
        model = PeftModel.from_pretrained(base, f"{scratch}/{names[0]}", adapter_name=names[0])
        load_adapter_s = [
            parts.timed(lambda name=name: model.load_adapter(f"{scratch}/{name}", adapter_name=name))[0]  # type: ignore[misc]
            for name in names[1:]
        ]
        model.eval()
        switch_s, outputs = [], {}
        for _ in range(settings["rounds"]):
            for name in names:
                switch_s.append(parts.timed(lambda name=name: model.set_adapter(name))[0])  # type: ignore[misc]
                with torch.no_grad():
                    outputs[name] = model(input_ids=ids).logits
        fresh_s, fresh_distance, largest_difference = [], [], []
        for name in names:

            def load(name: str = name) -> Any:
                return PeftModel.from_pretrained(parts.base_model(settings)[0], f"{scratch}/{name}").eval()

            seconds, alone = parts.timed(load)
            fresh_s.append(seconds)
            with torch.no_grad():
                logits = alone(input_ids=ids).logits
            fresh_distance.append(parts.distance(outputs[name], logits))
            largest_difference.append(float((outputs[name] - logits).abs().max()))
    apart = [parts.distance(outputs[a], outputs[b]) for a in names for b in names if a < b]
    return {
        "device": parts.device_name(), "switch_s": switch_s, "load_adapter_s": load_adapter_s, "fresh_load_s": fresh_s,
        "fresh_distance": fresh_distance, "largest_difference": largest_difference,
        "least_between_adapters": min(apart),
        "tolerance": parts.tolerance(base, settings.get("precision", "fp32")),
    }  # fmt: skip
