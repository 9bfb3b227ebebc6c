"""Tasks whose items are generated: reasoning-gym's generators, with fixed data seeds.

The data seeds are constants and not the cell's seed: every training seed sees the same data, so that accuracies of
repeats are taken over the same items. reasoning-gym is pinned, for its output is the data.

Train and test are disjoint by item (``bench.tasks.item.is_held_out``). The items of one task still share their
templates (sentence patterns, puzzle shapes): this measures learning the skill within a family, not transfer.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.environment import package_version
from bench.errors import InputError
from bench.tasks.item import Item

REASONING_GYM = "0.1.25"
"""The version whose output these tasks are; a host that only reads materialised files need not have it."""
TRAIN_SEED = 20_000_000
TEST_SEED = 40_000_000
"""Far apart: a generator's item i under seed s is its item i - 1 under seed s + 1."""
MAX_DRAWS = 1_000_000
"""Items drawn from one seed at most."""
TEST_FRACTION = 0.2
"""Share of all possible items that is never trained on."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A reasoning-gym generator and how its entries become items."""

    generator: str
    config: dict[str, Any]
    to_item: Callable[[dict[str, Any]], Item]

    def draw(self, seed: int) -> Iterator[Item]:
        """Items in the generator's order; repeats included. Raises InputError where the pinned version is missing."""
        if (installed := package_version("reasoning-gym")) != REASONING_GYM:
            raise InputError(
                f"task of reasoning-gym's {self.generator}",
                f"needs reasoning-gym {REASONING_GYM}, here is {installed or 'none'}",
                f"pip install reasoning-gym=={REASONING_GYM}, or copy the task's folder from another machine's cache",
            )
        import reasoning_gym

        dataset = reasoning_gym.create_dataset(self.generator, seed=seed, size=MAX_DRAWS, **self.config)
        return (self.to_item(dataset[index]) for index in range(MAX_DRAWS))


def _chain_sum(entry: dict[str, Any]) -> Item:
    return Item(
        question=f"{entry['metadata']['expression']} = ?",
        answer=entry["answer"],
        instruction="Work out the sum.",
    )


def _gsm_symbolic(entry: dict[str, Any]) -> Item:
    """The worked steps are the generator's ``answer_cot`` without its closing ``#### answer`` line."""
    steps, _, _ = entry["metadata"]["answer_cot"].rpartition("####")
    question = entry["question"].replace("Give the result as your final answer. Do not include units.", "")
    return Item(
        question=question.strip(),
        answer=entry["answer"],
        reasoning=steps.strip() or None,
        instruction="Solve the word problem. The final answer is a number without units.",
    )


def _knights_and_knaves(entry: dict[str, Any]) -> Item:
    """Answers as ``name: role`` in the order of introduction: the generator's own wording of articles varies."""
    facts = entry["metadata"]
    roles = facts["knight_knave_terms"]
    pairs = zip(facts["names"], facts["solution"], strict=True)
    return Item(
        question=re.sub(r"\s*\(Format your answer like: .*\)$", "", entry["question"]),
        answer=", ".join(f"{name}: {roles['knight' if honest else 'knave']}" for name, honest in pairs),
        instruction="Solve the puzzle. Give the final answer as a list in the order in which the people are "
        'introduced, such as "Ann: knight, Bob: knave".',
    )


TASKS = {
    "chain-sum": Generated(
        generator="chain_sum",
        config={"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2},
        to_item=_chain_sum,
    ),
    "gsm-symbolic": Generated(generator="gsm_symbolic", config={}, to_item=_gsm_symbolic),
    # propositional_logic has no single right answer, so exact match cannot score it; a puzzle has one by construction.
    "logic": Generated(generator="knights_knaves", config={"n_people": 2}, to_item=_knights_and_knaves),
}
