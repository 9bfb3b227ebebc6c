"""One question with its answer, and the two decisions that keep training and test apart.

Whether an item is held out is a function of the item alone (a hash of its normalised question), so no item can be on
both sides, whatever the sizes, and asking for more items never moves one from one side to the other.
"""

import hashlib
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question as the model sees it, and what it is trained to reply."""

    question: str
    answer: str
    """The final answer, compared exactly after normalisation (``bench.tasks.answers``)."""
    reasoning: str | None = None
    """Worked steps, trained on before the final answer."""
    context: str | None = None
    """Text shown above the question."""
    instruction: str
    """First lines of the prompt."""

    @property
    def key(self) -> str:
        """SHA-256 of question and context with case and white space levelled: equal keys are the same item."""
        levelled = [" ".join((text or "").casefold().split()) for text in (self.question, self.context)]
        return hashlib.sha256("\0".join(levelled).encode()).hexdigest()

    def as_line(self) -> dict[str, str | None]:
        """The item as an object of ``train.jsonl`` and ``test.jsonl``."""
        return asdict(self)


def is_held_out(key: str, test_fraction: float) -> bool:
    """Whether the item with this key belongs to the test side: its hash, as a share of all hashes, is below."""
    return int(key[:13], 16) / 16**13 < test_fraction
