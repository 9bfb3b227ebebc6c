"""``python -m bench`` is the same as ``peftmark``."""

from bench.cli import app

app(prog_name="peftmark")
