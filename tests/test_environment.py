"""The environment: what is taken, what must never be, and what makes two runs unlike."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import environment as env
from bench.environment import Environment, Package
from tests import fakes
from tests.synthetic import environment

PRIVATE = {
    "HF_TOKEN": "hf_private_token_value",
    "HUGGING_FACE_HUB_TOKEN": "hf_other_token_value",
    "WANDB_API_KEY": "private_wandb_value",
    "AWS_SECRET_ACCESS_KEY": "private_aws_value",
    "USER": "private_user_name",
    "LOGNAME": "private_log_name",
    "HOSTNAME": "private_host_name",
    "HOME": "/private_home_folder",
}
PRINT = "from bench import environment; print(environment.current().model_dump_json())"


def read_in_process(**variables: str) -> tuple[str, Environment]:
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return done.stdout, Environment.model_validate_json(done.stdout)


def test_nothing_private_is_taken() -> None:
    text, read = read_in_process(**PRIVATE, OMP_NUM_THREADS="3", CUDA_VISIBLE_DEVICES="")
    assert "private" not in text and not any(value in text for value in PRIVATE.values())
    assert os.uname().nodename not in text and str(Path.home()) not in text and str(Path.cwd()) not in text
    assert read.variables["OMP_NUM_THREADS"] == "3"
    assert set(read.variables) <= set(env.VARIABLES) and set(read.packages) <= set(env.PACKAGES)


def test_the_lists_ask_for_nothing_secret() -> None:
    for name in env.VARIABLES:
        assert not any(word in name for word in ("TOKEN_", "_TOKEN", "KEY", "SECRET", "PASSWORD", "USER", "HOME"))


def test_this_machine_is_described() -> None:
    machine = env.current()
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.ram_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.packages["numpy"].version == env.package_version("numpy")
    assert "no-such-package" not in machine.packages and env.package_version("no-such-package") is None
    assert machine.kernel == os.uname().release
    assert env.current() is machine


def changed(**fields: Any) -> str:
    return environment().model_copy(update=fields).fingerprint


SWAYS: dict[str, dict[str, Any]] = {
    "package version": {"packages": environment(torch="2.12.0").packages},
    "package gone": {"packages": {"torch": environment().packages["torch"]}},
    "variable": {"variables": {"OMP_NUM_THREADS": "1"}},
    "gpu": {"gpus": environment(gpu="Other GPU").gpus},
    "power limit": {"gpus": [environment().gpus[0].model_copy(update={"power_limit_w": 300.0})]},
    "mig": {"gpus": [environment().gpus[0].model_copy(update={"mig": True})]},
    "driver": {"driver": "590.1"},
    "cpu": {"cpu": "Other CPU"},
    "python": {"python": "3.13.0"},
}
DOES_NOT: dict[str, dict[str, Any]] = {
    "git revision": {"git_revision": "1" * 40},
    "uncommitted changes": {"git_dirty": True},
    "kernel": {"kernel": "6.1"},
    "harness source": {"harness_sha256": "e" * 64},
    "where a package came from": {
        "packages": {n: Package(version=p.version, source="unpacked") for n, p in environment().packages.items()}
    },
}


@pytest.mark.parametrize("what", SWAYS)
def test_the_fingerprint_changes_with_what_may_sway_a_number(what: str) -> None:
    assert changed(**SWAYS[what]) != environment().fingerprint


@pytest.mark.parametrize("what", DOES_NOT)
def test_the_fingerprint_does_not_change_with_what_cannot(what: str) -> None:
    assert changed(**DOES_NOT[what]) == environment().fingerprint


def test_the_harness_hash_is_of_its_sources(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1")
    first = env.harness_sha256(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    assert env.harness_sha256(tmp_path) == first
    (tmp_path / "sub" / "a.py").write_text("x = 2")
    second = env.harness_sha256(tmp_path)
    (tmp_path / "sub" / "a.py").rename(tmp_path / "a.py")
    assert len({first, second, env.harness_sha256(tmp_path)}) == 3


def test_without_git_the_revision_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "HARNESS_FOLDER", tmp_path)
    monkeypatch.delenv("PEFTMARK_REVISION", raising=False)
    assert env._git() == (None, None)
    monkeypatch.setenv("PEFTMARK_REVISION", "abc123")
    assert env._git() == ("abc123", None)


def test_the_environment_is_read_without_torch() -> None:
    code = "import sys; from bench import environment; environment.current(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_environment_survives_json() -> None:
    for machine in (env.current(), environment(), environment(gpu=None)):
        assert Environment.model_validate_json(machine.model_dump_json()) == machine
        assert json.loads(machine.model_dump_json())["git_revision"] == machine.git_revision


def test_nothing_private_is_in_a_record(tmp_path: Path) -> None:
    private = PRIVATE | {"HOME": str(tmp_path / "private_home"), "PEFTMARK_CACHE": "", "HF_HOME": "/private_hub"}
    suite = fakes.suite(tmp_path, "model: [fake-crash]")
    ended = fakes.finish(fakes.start("run", suite, "--out", "run", "--quiet", cwd=tmp_path, **private))
    assert ended.returncode == 1, ended.stderr
    (path,) = tmp_path.glob("run/records/*/*/record.json")
    assert "private" not in path.read_text() and str(tmp_path) not in path.read_text()


def read_by_copy(folder: Path, revision: str | None = None) -> Environment:
    """What a copy of the harness in ``folder`` says of itself, in a process of its own."""
    check = f"assert str(environment.HARNESS_FOLDER) == {str(folder / 'bench')!r}, environment.HARNESS_FOLDER"
    variables = {k: v for k, v in os.environ.items() if k != "PEFTMARK_REVISION"} | {"PYTHONPATH": str(folder)}
    variables |= {"PEFTMARK_REVISION": revision} if revision else {}
    command = [sys.executable, "-c", PRINT.replace(";", f"; {check};")]
    done = subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True, text=True)
    return Environment.model_validate_json(done.stdout)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_gits_where_git_knows_the_harness(tmp_path: Path) -> None:
    shutil.copytree(env.HARNESS_FOLDER, tmp_path / "bench", ignore=shutil.ignore_patterns("__pycache__"))

    def git(*args: str) -> str:
        named = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args]
        return subprocess.run(named, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    without = read_by_copy(tmp_path, "abc123")
    assert (without.git_revision, without.git_dirty) == ("abc123", None)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another repository, in which the harness lies untracked")
    assert read_by_copy(tmp_path, "abc123").git_revision == "abc123"

    git("add", "bench")
    git("commit", "-q", "-m", "the harness")
    clean = read_by_copy(tmp_path, "abc123")
    assert (clean.git_revision, clean.git_dirty) == (git("rev-parse", "HEAD"), False)

    with (tmp_path / "bench" / "errors.py").open("a") as file:
        file.write("\n")
    dirty = read_by_copy(tmp_path)
    assert (dirty.git_revision, dirty.git_dirty) == (clean.git_revision, True)
    assert dirty.harness_sha256 != clean.harness_sha256 == without.harness_sha256
