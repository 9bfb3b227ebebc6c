"""The terminal: where commands print, and how they tell an error that the user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from bench.errors import PeftmarkError

out = Console()
err = Console(stderr=True)


@contextmanager
def told() -> Iterator[None]:
    """Errors a user can mend are one message and exit code 2."""
    try:
        yield
    except PeftmarkError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
