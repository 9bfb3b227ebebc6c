"""The run folder: what is written comes back, whole or not at all, and nothing is lost or overwritten."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import executor
from bench.cache import sha256_file
from bench.errors import StoreError
from bench.record import SCHEMA_VERSION, AuditEntry, FileRef, Fingerprint, GradientProbe, Record, Steps, Timeline
from bench.store import Loaded, Store, load, new_id, publish, readable_json
from tests import fakes
from tests.synthetic import record


def put(store: Store, made: Record) -> Path:
    return store.add(made, store.workspace(made.id))


# JSON

AWKWARD = [
    "a [list] of {things}",
    "two\nlines\n  and an indent",
    '[\n "x",\n "y"\n]',
    'quote " backslash \\ tab \t',
    "ends with [",
    "] begins",
    "\u2028 \u00e9 \U0001f600 \x00",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_survives_the_readable_form(text: str) -> None:
    made = record(
        message=text,
        cell={"target_modules": (text, "q_proj")},
        audit=[AuditEntry(name=text, requested=None, effective=text, ok=True)],
    )
    assert Record.model_validate_json(readable_json(made)) == made


def test_missing_values_and_empty_lists_survive(tmp_path: Path) -> None:
    made = record(
        steps=Steps(wall_s=[1.0, 1e-9, 3e20], loss=[None, 1.5, None], grad_norm=[None] * 3, real_tokens=[1, 2, 3]),
        phases=[], audit=[], wall_s=None,
    )  # fmt: skip
    assert Record.model_validate_json(readable_json(made)) == made
    put(Store(tmp_path), made)
    assert Store(tmp_path).load()[0][0].record == made


def test_a_list_of_numbers_is_one_line() -> None:
    text = readable_json(record(step_s=(1.0,) * 500))
    line = next(line for line in text.splitlines() if '"wall_s": [' in line)
    assert line.count("1.0") >= 500 and line.rstrip(",").endswith("]")
    assert len(text.splitlines()) < 200


# Adding and loading


def test_records_come_back_oldest_first_with_their_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [record(serial=i, backend=b) for i, b in ((2, "unsloth"), (0, "unsloth"), (1, "hf-peft"))]
    folders = {m.id: put(store, m) for m in made}
    good, bad = store.load()
    assert [item.record for item in good] == [made[1], made[2], made[0]] and not bad
    assert all(item.folder == folders[item.record.id] for item in good)
    assert folders[made[0].id] == tmp_path / "records" / made[0].cell.slug / made[0].id


def test_withdrawn_records_are_kept_and_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder, other = (put(store, record(id=id)) for id in ("one", "other"))
    target = tmp_path / "withdrawn" / folder.name
    target.parent.mkdir()
    folder.rename(target)
    assert [one.folder for one in store.load()[0]] == [other]
    assert [one.folder for one in load(target.parent)[0]] == [target], "asked for by name they are there"


def test_an_older_record_gets_its_kernel_time_from_the_file_that_it_names(tmp_path: Path) -> None:
    kernels = [
        {"name": "Memcpy HtoD (Pinned -> Device)", "count": 1, "total_us": 5e5},
        {"name": "gemm", "count": 1, "total_us": 2e5},
    ]
    store, workspace = Store(tmp_path), tmp_path / "made"
    workspace.mkdir()
    (workspace / "fingerprint.json").write_text(json.dumps({"kernels": kernels}))
    seen = Fingerprint(
        file=FileRef.of(workspace / "fingerprint.json", workspace), device="cuda", kernels=2, launches=2, device_s=0.7,
        sha256="f" * 64,
    )  # fmt: skip
    folder = store.add(record(fingerprint=seen), workspace)
    (one,), _ = store.load()
    assert one.record.fingerprint and one.record.fingerprint.passes_s == [pytest.approx(0.2)]
    (folder / "fingerprint.json").write_text(json.dumps({"kernels": kernels[1:]}))
    for _ in ("another file than the one that was hashed", "no file"):
        (one,), _ = store.load()
        assert one.record.fingerprint and one.record.fingerprint.passes_s == []
        (folder / "fingerprint.json").unlink(missing_ok=True)


def test_every_committed_file_is_the_one_that_its_record_hashed() -> None:
    results = Path(__file__).parents[1] / "results"
    good, bad = load(results)
    runs = good + load(results / "withdrawn")[0]
    found = [(one.folder, ref) for one in runs for ref in one.record.files()]
    assert not bad and len(found) > len(runs) > 250
    changed = [folder / ref.path for folder, ref in found if sha256_file(folder / ref.path) != ref.sha256]
    assert changed == []


def test_files_of_the_workspace_lie_beside_the_record(tmp_path: Path) -> None:
    store, made = Store(tmp_path), record()
    workspace = store.workspace(made.id)
    (workspace / "timeline.parquet").write_bytes(b"rows")
    folder = store.add(made, workspace)
    assert (folder / "timeline.parquet").read_bytes() == b"rows"
    assert not workspace.exists()


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    store, made = Store(tmp_path), record()
    path = put(store, made) / "record.json"
    before = path.read_bytes()
    with pytest.raises(StoreError, match="never overwritten"):
        put(store, made.model_copy(update={"message": "changed"}))
    assert path.read_bytes() == before


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [new_id(fakes.cell()) for _ in range(20)]
    times = [id.split("-")[0] for id in ids]
    assert len(set(ids)) == 20 and times == sorted(times)
    assert all(re.fullmatch(rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-{fakes.cell().digest[:8]}-[0-9a-f]{{4}}", id) for id in ids)


BROKEN = {
    "truncated": (lambda text: text[: len(text) // 2], "not a whole record"),
    "empty": (lambda text: "", "not a whole record"),
    "a list": (lambda text: "[]", "not a whole record"),
    "binary": (lambda text: "\udcff\udcfe", "not a whole record"),
    "without a version": (lambda text: "{}", "not a whole record"),
    "unknown field": (lambda text: json.dumps(json.loads(text) | {"speedup": 2}), "not a whole record"),
    "newer": (
        lambda text: json.dumps(json.loads(text) | {"schema_version": SCHEMA_VERSION + 1, "later": 1}),
        f"schema version {SCHEMA_VERSION + 1} is newer than this peftmark; upgrade it",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_record_is_reported_and_the_others_are_read(tmp_path: Path, how: str) -> None:
    store, spoil = Store(tmp_path), BROKEN[how][0]
    kept, broken = record(serial=1), record(serial=2)
    put(store, kept)
    path = put(store, broken) / "record.json"
    path.write_text(spoil(path.read_text()), errors="surrogateescape")
    good, bad = store.load()
    assert [item.record for item in good] == [kept]
    assert [item.path for item in bad] == [path]
    assert BROKEN[how][1] in bad[0].reason and "\n" not in bad[0].reason


def test_an_absent_folder_holds_nothing(tmp_path: Path) -> None:
    assert load(tmp_path / "none") == ([], [])


# Locking and sweeping

HOLD = """
import sys
from pathlib import Path
from bench.store import Store
with Store(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_ends_even_by_kill(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout and first.stdout.readline() == "held\n"
    workspace = Store(tmp_path).workspace("of-the-first")
    with pytest.raises(StoreError, match="another run is writing here") as caught, Store(tmp_path).locked():
        pytest.fail("locked twice")
    assert str(tmp_path) in str(caught.value) and "--out" in str(caught.value)
    assert workspace.exists(), "the refused run must not sweep the first one's work"
    first.kill()
    first.communicate()
    with Store(tmp_path).locked():
        assert not workspace.exists()


def test_what_a_killed_run_left_is_not_a_record(tmp_path: Path) -> None:
    store, made = Store(tmp_path), record()
    (store.workspace(made.id) / "record.json").write_text(readable_json(made))
    assert store.load() == ([], [])


# A disk without space


def test_a_full_disk_keeps_the_records_and_says_so(small_disk: Path) -> None:
    store = Store(small_disk / "run")
    first, second = record(serial=1), record(serial=2, step_s=(1.0,) * 20_000)
    store.root.mkdir()
    store.keep_suite("name: before\n")
    put(store, first)
    with pytest.raises(StoreError) as caught:
        put(store, second)
    told = str(caught.value)
    assert "No space left on device" in told and second.id in told
    assert "mend: free space" in told and "--out" in told and "finished cells are kept" in told
    assert [item.record for item in store.load()[0]] == [first] and not store.load()[1]
    with pytest.raises(StoreError):
        store.keep_suite("x" * 2**20)
    assert (store.root / "suite.yaml").read_text() == "name: before\n"
    (store.root / ".suite.yaml").unlink()  # the next run's would take its place
    with store.locked():
        put(store, record(serial=3))
    assert len(store.load()[0]) == 2


def test_a_disk_that_is_full_when_a_cell_starts(small_disk: Path) -> None:
    store = Store(small_disk)
    put(store, record(serial=1))
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(StoreError, match="No space left on device"):
        executor.run([fakes.job()], fakes.setting(small_disk), store, fakes.Listener())
    assert len(store.load()[0]) == 1
    assert not fakes.processes_of(small_disk)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_disk_errors_are_told_wherever_they_strike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    store = Store(tmp_path)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StoreError, match=re.escape(os.strerror(code))):
        put(store, record())
    assert store.load() == ([], [])


def test_another_os_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="broken"):
        put(Store(tmp_path), record())


# Publishing


def test_publishing_copies_what_the_record_names_and_refuses_a_second_time(tmp_path: Path) -> None:
    def ref(path: str) -> FileRef:
        return FileRef(path=path, sha256="0", size_bytes=1)

    store = Store(tmp_path / "run")
    made = record().model_copy(update={
        "timeline": Timeline(file=ref("timeline.parquet"), rows=1, requested_hz=1, other_gpu_processes=0),
        "probe": GradientProbe(file=ref("eval_after/file"), tensors=1, loss=1, rows=1, tokens=1),
    })  # fmt: skip
    workspace = store.workspace(made.id)
    for name in ("timeline.parquet", "worker.log", "journal.jsonl"):
        (workspace / name).write_text(name)
    for name in ("eval_after", "adapter"):
        (workspace / name).mkdir()
        (workspace / name / "file").write_text(name)
    store.add(made, workspace)
    (loaded,) = store.load()[0]
    target = publish(loaded, tmp_path / "results")
    assert target == tmp_path / "results" / made.cell.slug / made.id
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} == {
        "record.json", "timeline.parquet", "eval_after/file",
    }  # fmt: skip
    assert load(tmp_path / "results")[0][0].record == made
    with pytest.raises(StoreError, match="already published"):
        publish(loaded, tmp_path / "results")
    cell = made.cell.model_copy(update={"source": "local", "model": "/somewhere/of/mine"})
    private = Loaded(made.model_copy(update={"cell": cell}), loaded.folder)
    with pytest.raises(StoreError, match="model is an absolute path"):
        publish(private, tmp_path / "results")
    assert store.load()[0] == [loaded]
    (loaded.folder / "timeline.parquet").unlink()
    with pytest.raises(StoreError, match="timeline.parquet is not there"):
        publish(loaded, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere") == ([], [])


def test_a_withdrawn_record_is_not_published_again(tmp_path: Path) -> None:
    put(Store(tmp_path / "run"), record())
    (loaded,) = Store(tmp_path / "run").load()[0]
    target = publish(loaded, tmp_path / "results")
    withdrawn = tmp_path / "results" / "withdrawn" / target.parent.name
    withdrawn.mkdir(parents=True)
    target.rename(withdrawn / target.name)
    with pytest.raises(StoreError, match="this record was withdrawn"):
        publish(loaded, tmp_path / "results")
    assert load(tmp_path / "results") == ([], [])


def test_a_publication_cut_short_is_not_a_record_and_is_made_anew(tmp_path: Path) -> None:
    put(Store(tmp_path / "run"), record())
    (loaded,) = Store(tmp_path / "run").load()[0]
    target = publish(loaded, tmp_path / "results")
    target.rename(target.with_name("." + target.name))
    assert load(tmp_path / "results") == ([], [])
    assert publish(loaded, tmp_path / "results") == target
    assert len(load(tmp_path / "results")[0]) == 1


# At every moment


@settings(deadline=None, max_examples=50)
@given(st.text(), st.lists(st.floats(allow_nan=False), max_size=5))
def test_any_text_and_any_loss_comes_back(text: str, losses: list[float]) -> None:
    audit = [AuditEntry(name=text, requested=text, effective=None, ok=False)]
    made = record(message=text, audit=audit, steps=Steps(loss=[*losses, None]))
    assert Record.model_validate_json(readable_json(made)) == made


def test_a_loss_that_is_not_a_number_comes_back() -> None:
    back = Record.model_validate_json(readable_json(record(steps=Steps(loss=[float("nan")])))).steps.loss[0]
    assert back is not None and back != back


def test_a_visible_record_is_whole(tmp_path: Path) -> None:
    store, stop, seen, broken = Store(tmp_path), threading.Event(), [0], list[str]()

    def look() -> None:
        while not stop.is_set():
            for path in (tmp_path / "records").rglob("record.json"):
                seen[0] += 1
                try:
                    Record.model_validate_json(path.read_text())
                except ValueError as error:
                    broken.append(str(error))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for serial in range(30):
            put(store, record(serial=serial))
    finally:
        stop.set()
        reader.join()
    assert seen[0] and not broken


def test_a_run_stopped_before_the_rename_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(fd: int) -> None:
        raise KeyboardInterrupt

    store = Store(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", stop)
        put(store, record())
    assert store.load() == ([], []) and not list((tmp_path / "records").rglob("record.json"))
    with store.locked():
        put(store, record())
    assert len(store.load()[0]) == 1
