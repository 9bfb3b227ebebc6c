"""``peftmark serve`` as a process of its own: asked over HTTP, fed with records, ended by Ctrl-C."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.record import FileRef, Record, TrainerReport
from bench.store import Store
from tests import synthetic

WAIT_S = 60.0


def put(folder: Path, record: Record) -> Path:
    store = Store(folder)
    return store.add(record, store.workspace(record.id))


class Served:
    """The process, and requests to it."""

    def __init__(self, *args: object) -> None:
        line = [sys.executable, "-m", "bench", "serve", *map(str, args)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.said = self.process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", self.said)
        assert found, self.said + (self.process.stderr.read() if self.process.stderr else "")
        self.port = int(found[1])

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    def wait_for(self, text: bytes) -> bytes:
        deadline = time.monotonic() + WAIT_S
        while text not in (page := self.ask("/")[2]):
            assert time.monotonic() < deadline, f"{text!r} did not appear"
            time.sleep(0.1)
        return page

    def interrupt(self, with_signal: int = signal.SIGINT) -> tuple[int, str, str]:
        self.process.send_signal(with_signal)
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one record, and a file beside it and one above it."""
    folder = tmp_path_factory.mktemp("served") / "runs"
    there = put(folder, synthetic.record(trainer=TrainerReport(), eval_after=synthetic.evaluation(0.5)))
    (there / "eval.json").write_text("{}")
    (there / "worker.log").write_text("not named by the record")
    (folder.parent / "secret.json").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def served(runs: Path) -> Iterator[Served]:
    one = Served(runs, "--port", 0)
    yield one
    assert one.interrupt(signal.SIGTERM) == (0, "stopped\n", ""), "a termination ends it as Ctrl-C does"


def test_the_page_changes_while_a_run_goes_on_and_the_folder_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    try:
        served = Served(folder, "--port", 0)
    finally:
        del os.environ["TMPDIR"]
    assert b"No records yet" in served.ask("/")[2]
    version = served.ask("/version")[2]
    first = synthetic.record()
    put(folder, first)
    page = served.wait_for(first.id.encode())
    assert served.ask("/version")[2] != version and served.ask("/version")[2] in page
    second = synthetic.record("unsloth", serial=1)
    put(folder, second)
    served.wait_for(second.id.encode())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {f"records/{r.cell.slug}/{r.id}/record.json" for r in (first, second)}
    assert list(temporary.iterdir())
    assert served.interrupt() == (0, "stopped\n", "")
    assert not list(temporary.iterdir()), "the temporary folder is gone"


def test_only_get_and_head(served: Served) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, headers, body = served.ask("/", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD") and b"only GET and HEAD" in body
    page = served.ask("/")[2]
    status, headers, body = served.ask("/", "HEAD")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) == len(page)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.1", "[::2]", ""]
)
def test_another_host_is_refused(served: Served, host: str) -> None:
    assert served.ask("/", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:8008", "127.0.0.1", "LOCALHOST", "[::1]:8008", "[::1]"])
def test_the_machine_itself_is_answered(served: Served, host: str) -> None:
    assert served.ask("/", Host=host)[0] == 200


def test_it_listens_on_loopback_alone(served: Served) -> None:
    listening = f":{served.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert {line[1] for line in lines if line[1].endswith(listening) and line[3] == "0A"} == {f"0100007F{listening}"}


def test_the_same_page_is_not_sent_twice(served: Served) -> None:
    tag = served.ask("/")[1]["ETag"]
    status, _, body = served.ask("/", **{"If-None-Match": tag})
    assert (status, body) == (304, b"")


def test_the_files_that_a_record_names_are_served_and_no_others(served: Served, runs: Path) -> None:
    path = "/runs0/" + next(runs.rglob("record.json")).parent.relative_to(runs).as_posix()
    assert b'"schema_version"' in served.ask(f"{path}/record.json")[2]
    status, headers, body = served.ask(f"{path}/eval.json")
    assert (status, body, headers["X-Content-Type-Options"]) == (200, b"{}", "nosniff")
    assert served.ask(f"{path}/worker.log")[0] == 404
    escapes = (
        "/../secret.json", "/runs0/../../secret.json", "/runs0/%2e%2e/secret.json", "//etc/passwd", "/%00", "/runs0",
        "/..%2f..%2fetc/passwd", "/runs0/", f"{path}/../../../../secret.json",
    )  # fmt: skip
    for escape in escapes:
        status, _, body = served.ask(escape)
        assert status == 404 and b"secret" not in body, escape


def test_a_record_that_names_a_file_outside_its_folder_gets_nothing_from_there(tmp_path: Path) -> None:
    from bench.serve import Site

    outside = FileRef(path="../../../../secret.json", sha256="0" * 64, size_bytes=1)
    evaluated = synthetic.evaluation(0.5).model_copy(update={"results": outside})
    put(tmp_path / "runs", synthetic.record(eval_after=evaluated))
    (tmp_path / "secret.json").write_text("secret")
    work = tmp_path / "work"
    work.mkdir()
    files = Site([tmp_path / "runs"], work).shown.files
    assert not [path for path in files.values() if path.resolve() == (tmp_path / "secret.json").resolve()]
    assert any(name.endswith("/record.json") for name in files)


def test_a_wrong_folder_and_a_used_port_are_one_error_each(runs: Path) -> None:
    def error(*args: object) -> str:
        line = [sys.executable, "-m", "bench", "serve", *map(str, args)]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=WAIT_S)
        assert ended.returncode == 2 and ended.stdout == "" and "Traceback" not in ended.stderr
        return ended.stderr

    assert "absent: no such folder" in error(runs / "absent")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = error(runs, "--port", port)
    assert f"--port {port}: another program uses it" in said and "mend: give another --port" in said
