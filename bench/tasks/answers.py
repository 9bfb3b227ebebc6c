"""Reading the final answer out of a reply, and comparing it exactly.

reasoning-gym's own scorers are not used: some give partial credit, and that of gsm_symbolic takes the first number in
the text.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from bench.tasks.prompt import ANSWER_MARKER

WRAPPING = " \t*_`\"'"
"""Characters around an answer that are dressing (markdown, quotes), not part of it."""
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


def final_answer(reply: str) -> str | None:
    """The normalised line after the last ``Answer:`` of ``reply``; None where there is no marker or nothing after."""
    _, marker, rest = reply.rpartition(ANSWER_MARKER)
    lines = [line for line in rest.strip(WRAPPING + "\n\r").splitlines() if line.strip(WRAPPING)]
    return (normalise(lines[0]) or None) if marker and lines else None


def normalise(answer: str) -> str:
    """Level what does not matter: case, white space, dressing, a closing full stop, and how a number is written.

    Numbers: thousands commas, a leading ``$`` or ``+``, trailing decimal zeros and the Unicode minus are levelled, so
    ``$1,080.00`` equals ``1080``.
    """
    text = " ".join(answer.strip(WRAPPING).split()).casefold().replace("\N{MINUS SIGN}", "-")
    text = text.removesuffix(".").strip(WRAPPING)
    number = text.replace("$", "", 1) if text.lstrip("+-").startswith("$") else text
    if NUMBER.fullmatch(number) and any(c.isdigit() for c in number):
        value = Decimal(number.replace(",", ""))
        return "0" if value == 0 else f"{value:f}".rstrip("0").rstrip(".") if "." in number else f"{value:f}"
    return text


def is_correct(reply: str, answer: str) -> bool:
    """Whether the reply's final answer equals ``answer`` after both are normalised."""
    return final_answer(reply) == normalise(" ".join(answer.split()))


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's hook: the score of one generated reply to one line of ``test.jsonl``."""
    return {"exact_match": float(is_correct(results[0], doc["answer"]))}


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """lm-eval's hook: the expected answer, kept in the per-item samples."""
    return str(doc["answer"])
