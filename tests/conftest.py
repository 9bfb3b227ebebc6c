"""What several test files stand on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skips where none can be mounted."""
    mount = tmp_path / "disk"
    mount.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True)
    except OSError:
        pytest.skip("there is no mount command here")
    if made.returncode:
        pytest.skip("mounting needs root")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=True)
