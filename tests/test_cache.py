"""The cache: a folder appears whole or not at all, once, whoever races or dies."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.cache import cache_dir, kept_bytecode, publish_folder, sha256_file


def test_the_variable_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b" and cache_dir().is_dir()
    monkeypatch.setenv("PEFTMARK_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "peftmark"


def test_fresh_processes_keep_what_they_compile_in_the_cache_where_python_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("")
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert kept_bytecode() == {}, "Python's own way is left alone"

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    subprocess.run(
        [sys.executable, "-c", "import module"],
        check=True,
        env=os.environ | kept_bytecode() | {"PYTHONPATH": str(package)},
    )
    assert [file.stem.split(".")[0] for file in (tmp_path / "cache" / "bytecode").rglob("module.*.pyc")] == ["module"]
    assert [file.name for file in package.iterdir()] == ["module.py"]
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "own"))
    assert kept_bytecode()["PYTHONPYCACHEPREFIX"] == str(tmp_path / "own")


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    built = []

    def build(draft: Path) -> None:
        built.append(draft)
        assert draft.parent == tmp_path / "deep" and not (tmp_path / "deep" / "x").exists()
        (draft / "file").write_text("whole")

    for _ in range(2):
        assert publish_folder(build, tmp_path / "deep" / "x") == tmp_path / "deep" / "x"
    assert len(built) == 1
    assert (tmp_path / "deep" / "x" / "file").read_text() == "whole"
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o755
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]


@pytest.mark.parametrize("error", [ValueError("x"), OSError("disk"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build(draft: Path) -> None:
        (draft / "half").write_text("")
        raise error

    with pytest.raises(type(error)):
        publish_folder(build, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_the_first_wins(tmp_path: Path) -> None:
    barrier, target = threading.Barrier(2, timeout=10), tmp_path / "x"

    def publish(name: str) -> None:
        def build(draft: Path) -> None:
            (draft / "by").write_text(name)
            (draft / name).write_text("")
            barrier.wait()  # both have built before either renames

        assert publish_folder(build, target) == target

    threads = [threading.Thread(target=publish, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = (target / "by").read_text()
    assert {p.name for p in target.iterdir()} == {"by", winner}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_killed_build_is_not_taken_for_the_folder(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from bench.cache import publish_folder
def build(draft):
    (draft / "half").write_text("")
    os.kill(os.getpid(), 9)
publish_folder(build, pathlib.Path({str(tmp_path / "x")!r}))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not (tmp_path / "x").exists()
    publish_folder(lambda draft: (draft / "whole").touch(), tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["whole"]


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x00abc" * 100_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"\x00abc" * 100_000).hexdigest()
