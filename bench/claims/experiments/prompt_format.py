"""A structured prompt (instruction, question, output format) against the bare question, on sums of two terms.

Both are scored alike: the reply's last number must be the sum; so a bare prompt is not punished for a missing marker.
Each is asked before and after a LoRA fine-tune on that same prompt, with the same items and steps. Items asked are
never trained on. Replies are kept in lm-eval's format, one file a variant, so that accuracies can be paired by item.
"""

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from bench.claims.experiments import parts
from bench.tasks.item import Item
from bench.tasks.prompt import CHAT_TEMPLATE_ARGS, messages, target

PROMPTS = ("structured", "bare")
METRIC = "last_number"


def split(settings: dict[str, Any]) -> tuple[list[Item], list[Item]]:
    """Items to train on and to ask: no sum is in both, in either order of its terms."""
    top = settings["largest_term"]
    sums = [(a, b) for a in range(top + 1) for b in range(a, top + 1)]
    random.Random(settings["seed"]).shuffle(sums)
    asked, trained = sums[: settings["items"]], sums[settings["items"] :]
    if not trained:
        raise ValueError(f"items: {settings['items']} leave none of {len(sums)} sums to train on")
    both_ways = sorted({(b, a) for a, b in trained} | set(trained))
    random.Random(settings["seed"]).shuffle(both_ways)
    return _items(both_ways[: settings["train_items"]]), _items(asked)


def _items(sums: list[tuple[int, int]]) -> list[Item]:
    return [Item(question=f"{a} + {b} = ?", answer=str(a + b), instruction="Work out the sum.") for a, b in sums]


def last_number(reply: str) -> str | None:
    """The last whole number in the reply."""
    found = re.findall(r"-?\d+", reply.replace(",", ""))
    return str(int(found[-1])) if found else None


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Losses of both fine-tunes; the replies go to ``<prompt>-<before|after>.jsonl``."""
    import torch
    from transformers import AutoTokenizer

    train, asked = split(settings)
    losses = {}
    for prompt in PROMPTS:
        torch.manual_seed(settings["seed"])
        model, source = parts.base_model(settings)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        _ask(model, tokenizer, asked, prompt, settings, folder / f"{prompt}-before.jsonl")
        adapted = parts.with_adapter(model, settings["r"], seed=None)
        losses[prompt] = _tune(adapted, tokenizer, train, prompt, settings)
        _ask(adapted, tokenizer, asked, prompt, settings, folder / f"{prompt}-after.jsonl")
    return {"device": parts.device_name(), "losses": losses, "items": len(asked), "trained_items": len(train)}


def _text(tokenizer: Any, item: Item, prompt: str) -> str:
    chat = messages(item) if prompt == "structured" else [{"role": "user", "content": item.question}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGS))


def _ask(model: Any, tokenizer: Any, items: list[Item], prompt: str, settings: dict[str, Any], out: Path) -> None:
    """Greedy replies to every item; a line each."""
    import torch

    model.eval()
    size = settings["batch_size"] * 4
    lines: list[dict[str, Any]] = []
    for start in range(0, len(items), size):
        chunk = items[start : start + size]
        batch = tokenizer([_text(tokenizer, item, prompt) for item in chunk], return_tensors="pt", padding=True,
                          add_special_tokens=False).to(model.device)  # fmt: skip
        with torch.no_grad():
            made = model.generate(
                **batch, do_sample=False, max_new_tokens=settings["max_new_tokens"], pad_token_id=tokenizer.pad_token_id
            )
        replies = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for item, reply in zip(chunk, replies, strict=True):
            lines.append({
                "doc_id": len(lines), "doc_hash": hashlib.sha256(item.question.encode()).hexdigest(), "filter": "none",
                "question": item.question, "answer": item.answer, "reply": reply,
                METRIC: float(last_number(reply) == item.answer),
            })  # fmt: skip
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _tune(model: Any, tokenizer: Any, items: list[Item], prompt: str, settings: dict[str, Any]) -> list[float]:
    """AdamW on the replies' tokens alone; the loss of every step."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings["learning_rate"])
    losses = []
    for step in range(settings["steps"]):
        chosen = [items[(step * settings["batch_size"] + i) % len(items)] for i in range(settings["batch_size"])]
        rows = [_row(tokenizer, item, prompt) for item in chosen]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r, _ in rows], device=model.device)
        labels = torch.tensor([lab + [-100] * (width - len(lab)) for _, lab in rows], device=model.device)
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in rows], device=model.device)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _row(tokenizer: Any, item: Item, prompt: str) -> tuple[list[int], list[int]]:
    """Token ids of prompt and reply, and the labels: the reply alone. A bare question is answered by a bare number."""
    asked = tokenizer(_text(tokenizer, item, prompt), add_special_tokens=False)["input_ids"]
    reply = target(item) if prompt == "structured" else item.answer
    said = tokenizer(reply + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return asked + said, [-100] * len(asked) + said
