"""Overlays of a made-up package: what is locked, what is demanded, and that nothing else is touched."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench import environment
from bench.cache import sha256_file
from bench.cli import app
from bench.errors import InputError
from bench.regress import history
from bench.regress.bisect import Bisection
from bench.regress.index import Index, requirement
from bench.regress.levels.static import kernels
from bench.regress.overlay import build
from tests.regress.wheels import PACKAGE, wheel

HANG_S = "4"


def regress(house: Path, old: str, new: str, *more: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, [
        "regress", "--package", PACKAGE, "--wheelhouse", str(house), "--baseline", old, "--candidate", new,
        "--levels", "static", *more,
    ])  # fmt: skip
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def bisected(house: Path, good: str, bad: str, *more: str) -> Result:
    return CliRunner().invoke(app, [
        "bisect", "--package", PACKAGE, "--wheelhouse", str(house), "--check", "static", "--good", good, "--bad", bad,
        *more,
    ])  # fmt: skip


def site_packages() -> tuple[str, float]:
    """pip freeze, and when the environment's folder was last changed."""
    frozen = subprocess.run([sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True)
    return frozen.stdout, Path(sysconfig.get_paths()["purelib"]).stat().st_mtime


def test_a_version_a_wheel_and_a_folder_give_the_same_release_and_touch_nothing_else(tmp_path: Path) -> None:
    house, before = tmp_path / "house", site_packages()
    made = wheel(house, "1.2")
    index = Index(house)
    by_version, by_wheel = build("1.2", PACKAGE, index), build(str(made), PACKAGE, index)
    by_folder = build(str(by_wheel.folder), PACKAGE, index)
    assert [side.version for side in (by_version, by_wheel, by_folder)] == ["1.2"] * 3
    assert by_version.lock[0].sha256 == sha256_file(made) and by_version.lock[0].built == "2026-11-02"
    assert by_folder.folder == by_wheel.folder and by_folder.lock[0].source == "folder"
    assert site_packages() == before


def test_a_checkout_is_built(tmp_path: Path) -> None:
    (tmp_path / "src" / PACKAGE).mkdir(parents=True)
    (tmp_path / "src" / PACKAGE / "__init__.py").write_text("")
    (tmp_path / "src" / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (tmp_path / "src" / "backend.py").write_text(
        "import shutil\ndef build_wheel(folder, *rest):\n"
        f"    return shutil.copy({str(wheel(tmp_path / 'made', '3.4'))!r}, folder).rpartition('/')[2]\n"
    )
    made = build(str(tmp_path / "src"), PACKAGE, Index())
    assert made.version == "3.4" and made.lock[0].source == "checkout"


def test_companions_go_in_with_the_version_that_the_release_asks_for(tmp_path: Path) -> None:
    for version in ("1.0", "1.1", "2.0"):
        wheel(tmp_path, version, name="unsloth_zoo")
    wheel(tmp_path, "5.0", name="unsloth", requires=("unsloth_zoo>=1.0,<2",))
    made = build("5.0", "unsloth", Index(tmp_path))
    assert {item.name: item.version for item in made.lock} == {"unsloth": "5.0", "unsloth-zoo": "1.1"}


def test_a_wheelhouse_needs_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    wheel(tmp_path, "1.1", name="unsloth_zoo")
    wheel(tmp_path, "5.0", name="unsloth", requires=("unsloth_zoo>=1.0", "typer<0.1"))
    wheel(tmp_path, "0.0.9", name="typer")
    made = build("5.0", "unsloth", Index(tmp_path), follow=True)
    assert [item.name for item in made.lock] == ["unsloth", "unsloth-zoo", "typer"]
    assert Index(tmp_path).versions("unsloth") == ["5.0"]


def test_demands_are_followed_where_asked_but_never_for_torch(tmp_path: Path) -> None:
    wheel(tmp_path, "1.0", requires=("torch<1", "typer<0.1", "absent-package"))
    wheel(tmp_path, "0.0.9", name="typer")
    as_is, followed = (build("1.0", PACKAGE, Index(tmp_path), follow=follow) for follow in (False, True))
    assert [demand.name for demand in as_is.demands()] == ["absent-package", "torch", "typer"]
    assert [demand.name for demand in followed.demands()] == ["absent-package", "torch"]
    assert [item.name for item in followed.lock] == [PACKAGE, "typer"]


@pytest.mark.parametrize(("source", "where"), [
    ("9.9", f"pip wheel {PACKAGE}==9.9"), ("nonsense/", "nonsense/"), ("absent.whl", "absent.whl"),
])  # fmt: skip
def test_what_cannot_be_had_is_named(tmp_path: Path, source: str, where: str) -> None:
    wheel(tmp_path, "1.0")
    with pytest.raises(InputError) as told:
        build(source, PACKAGE, Index(tmp_path))
    assert told.value.where == where and told.value.mend


def test_versions_are_in_order_without_pre_releases(tmp_path: Path) -> None:
    for version in ("2026.10.9", "2026.9.14", "2026.10.10", "2026.11.1rc1"):
        wheel(tmp_path, version)
    assert Index(tmp_path).versions(PACKAGE) == ["2026.9.14", "2026.10.9", "2026.10.10"]
    with pytest.raises(InputError, match="has no release"):
        Index(tmp_path).versions("other")
    assert requirement("unsloth", "1.0") == "unsloth==1.0"


def test_kernels_are_read_from_the_source(tmp_path: Path) -> None:
    (tmp_path / "pack" / "kernels").mkdir(parents=True)
    (tmp_path / "pack" / "kernels" / "a.py").write_text(
        "import triton\n@triton.jit\ndef one(): pass\n@triton.jit(do_not_specialize=['x'])\ndef two(): pass\n"
        "@torch.jit.script\ndef three(): pass\ndef four(): pass\n"
    )
    (tmp_path / "pack" / "broken.py").write_text("triton (")
    assert kernels(tmp_path / "pack") == ["pack.kernels.a.one", "pack.kernels.a.two"]


def test_the_same_code_repackaged_passes(tmp_path: Path) -> None:
    wheel(tmp_path, "1.0")
    wheel(tmp_path, "1.1")
    code, told = regress(tmp_path, "1.0", "1.1")
    assert code == 0 and "tinypack 1.0 -> 1.1: passed (0 regressions" in told


@pytest.mark.parametrize(("body", "requires", "metric"), [
    ("raise RuntimeError('wrong GPU')", (), "RuntimeError: wrong GPU"),
    ("import time; time.sleep(60)", (), f"hangs: the import did not end in {HANG_S} s"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", (), "killed by SIGSEGV"),
    ("", ("torch<1",), "wants torch<1; here is"),
])  # fmt: skip
def test_a_broken_candidate_is_a_clear_verdict(
    tmp_path: Path, body: str, requires: tuple[str, ...], metric: str
) -> None:
    wheel(tmp_path, "1.0")
    wheel(tmp_path, "1.1", body, requires)
    file = tmp_path / "found.json"
    code, told = regress(
        tmp_path, "1.0", "1.1", "--hangs-after", HANG_S if "sleep" in body else "60", "--json", str(file)
    )
    assert code == 1 and "Traceback" not in told
    assert metric in file.read_text()


def test_what_could_not_be_asked_for_ends_with_two(tmp_path: Path) -> None:
    wheel(tmp_path, "1.0")
    assert regress(tmp_path, "1.0", "9.9")[0] == 2
    code, told = regress(tmp_path, "1.0", "1.0", "--levels", "kernel")
    assert code == 2 and "did you mean 'kernels'?" in told


def test_bisect_names_the_first_bad_of_eight_and_skips_one_that_does_not_import(tmp_path: Path) -> None:
    for number in range(9):
        body = "raise ImportError('half uploaded')" if number == 4 else ""
        wheel(tmp_path, f"1.{number}", body, ("triton<1",) if number >= 6 else ())
    file = tmp_path / "found.json"
    ran = bisected(tmp_path, "1.0", "1.8", "--json", str(file))
    assert ran.exit_code == 0, ran.output
    assert "first bad release: 1.6 (last before it: 1.5); 4 checks and one of 1.0" in ran.output
    assert "skipped 1.4: does not import: ImportError: half uploaded" in ran.output
    assert "static/requirements/triton" in ran.output
    kept = Bisection.model_validate_json(file.read_text())
    assert (kept.last_without, kept.first_with, list(kept.skipped)) == ("1.5", "1.6", ["1.4"])
    assert [(one.release.version, [m.name for m in one.changed]) for one in kept.releases] == [
        ("1.0", []), ("1.3", []), ("1.5", []), ("1.6", ["static/requirements/triton"]),
    ]  # fmt: skip
    assert kept.releases[0].release.git_revision == environment.current().git_revision


def watched(house: Path, file: Path, version: str) -> Result:
    return CliRunner().invoke(app, [
        "watch", "--package", PACKAGE, "--wheelhouse", str(house), "--levels", "static", "--history", str(file),
        "--version", version,
    ])  # fmt: skip


def test_a_history_is_filled_with_older_releases_oldest_first(tmp_path: Path) -> None:
    for number in range(4):
        wheel(tmp_path, f"1.{number}", "", ("triton<1",) if number == 2 else ())
    file = tmp_path / "history.jsonl"
    assert [watched(tmp_path, file, version).exit_code for version in ("1.0", "1.2", "1.3")] == [0, 1, 0]
    entries = history.read(file)
    assert [(e.release.version, e.against) for e in entries] == [("1.0", None), ("1.2", "1.0"), ("1.3", "1.0")]
    assert "nothing new" in watched(tmp_path, file, "1.3").output
    late, absent = watched(tmp_path, file, "1.1"), watched(tmp_path, file, "9.9")
    assert late.exit_code == absent.exit_code == 2 and len(history.read(file)) == 3
    assert "has a newer release, 1.2" in late.output.replace("\n", " ")
    assert "--version 9.9: is not among the releases" in absent.output


def test_bisect_refuses_ends_that_say_nothing(tmp_path: Path) -> None:
    for number in range(3):
        wheel(tmp_path, f"1.{number}", "raise ImportError('gone')" if number == 0 else "")
    broken, alike = bisected(tmp_path, "1.0", "1.2"), bisected(tmp_path, "1.1", "1.2")
    assert broken.exit_code == 2 and "--good 1.0: does not import: ImportError: gone" in broken.output
    assert alike.exit_code == 2 and "--bad 1.2: has no such change against 1.1" in alike.output
