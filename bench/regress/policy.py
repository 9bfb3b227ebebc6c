"""The policy: what counts as a change of a metric, and which regressions fail a check. Defaults: policy.yaml."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from bench import yaml_file
from bench.cell import Frozen
from bench.stats import ALPHA

DEFAULT = Path(__file__).with_name("policy.yaml")


class Rule(Frozen):
    """What holds for the metrics whose names match."""

    match: str
    """Pattern as in a shell; ``*`` matches slashes too."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Relative change that counts as none."""
    floor: Annotated[float, Field(ge=0)] = 0.0
    """Absolute change that counts as none, in the metric's unit."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = ALPHA
    """Share of false verdicts; intervals are at 1 - alpha."""
    gate: bool = True
    """Whether a regression fails the check."""
    why: str = ""
    """The reason for these numbers."""


class Policy(Frozen):
    """Rules in order."""

    rules: Annotated[list[Rule], Field(min_length=1)]

    def rule(self, name: str) -> Rule:
        """The first rule that matches; where none does, any change counts and fails."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), Rule(match="*"))


def load(path: Path | None = None) -> Policy:
    """Read a policy file (default: the shipped one). InputError names each wrong line."""
    path = path or DEFAULT
    content, lines, problems = yaml_file.read(path)
    try:
        policy = Policy.model_validate(content)
    except ValidationError as error:
        problems += [
            yaml_file.Problem(tuple(map(str, fault["loc"])), fault["msg"], f"compare with {DEFAULT.name}")
            for fault in error.errors(include_url=False)
        ]
    if problems:
        yaml_file.refuse(path, lines, problems)
    return policy
