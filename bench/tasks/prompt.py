"""The structured prompt: instruction, context, question, output format; and the reply that is trained on.

Training and evaluation both render through this module, so that a model is scored on the prompt it was trained on,
byte for byte (a test compares the two).
"""

from collections.abc import Mapping
from typing import Any

from bench.errors import InputError
from bench.tasks.item import Item

ANSWER_MARKER = "Answer:"
"""What precedes the final answer, on the last line of the reply."""

CHAT_TEMPLATE_ARGS: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""Variables given to every chat template. Llama 3.2's template prints today's date, which would change the token stream
from one day to the next: it gets the date that Llama 3.1's template has as its default. Qwen3's gets its documented
switch for replies without a hidden thinking block. A template that knows neither ignores them."""

FORMAT_PLAIN = f'Reply with one line of the form "{ANSWER_MARKER} <final answer>".'
FORMAT_STEPS = f'Work it out step by step, then finish with one line of the form "{ANSWER_MARKER} <final answer>".'


def messages(item: Item) -> list[dict[str, str]]:
    """The chat that asks for ``item``: one user turn."""
    parts = [item.instruction]
    if item.context:
        parts.append(f"Context:\n{item.context}")
    parts += [f"Question:\n{item.question}", FORMAT_STEPS if item.reasoning else FORMAT_PLAIN]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def target(item: Item) -> str:
    """The reply trained on: the worked steps where there are any, then a last line with the final answer."""
    last_line = f"{ANSWER_MARKER} {' '.join(item.answer.split())}"
    return f"{item.reasoning}\n{last_line}" if item.reasoning else last_line


def render(tokenizer: Any, item: Item) -> str:
    """The prompt's text through the model's chat template, up to where the reply starts."""
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or "the model"
        raise InputError(
            f"tokenizer of {name}",
            "it has no chat template, so the structured prompt cannot be rendered",
            "choose the instruction-tuned variant of the model",
        )
    text = tokenizer.apply_chat_template(
        messages(item), tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGS
    )
    return str(text)


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """lm-eval's hook: the user turn of one line of ``test.jsonl``; lm-eval applies the chat template itself."""
    return messages(Item(**doc))[0]["content"]
