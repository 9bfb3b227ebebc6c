"""``peftmark serve``: the report over run folders on this machine's loopback address, made anew while a run goes on.

The page is rendered into a temporary folder; the run folders are only read. Served are the page and the files that the
records name, nothing else: a request is looked up in a table, never joined to a path. Requests that name another host
are refused, so that no web page can read the report by pointing its own name at 127.0.0.1 (DNS rebinding).
"""

import errno
import hashlib
import json
import mimetypes
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.markup import escape

from bench.console import err
from bench.errors import InputError
from bench.store import RECORD, Loaded, Shared, Unreadable, read, record_files

HOST = "127.0.0.1"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
LOOK_EVERY_S = 1.0
"""Between two looks at the run folders; rendering again takes as long as it takes."""
PAGE, VERSION = "/", "/version"
EMPTY = """<!doctype html><html lang="en"><meta charset="utf-8"><title>peftmark</title>
<body><p>No records yet. This page shows the report as soon as the first run has ended.</p></body></html>"""
RELOAD = """<script>
(() => {
  const shown = %s;
  const look = async () => {
    try {
      const now = await (await fetch("/version", {cache: "no-store"})).text();
      if (now !== shown) { location.reload(); return; }
    } catch (gone) { /* the server was stopped: the page stays */ }
    setTimeout(look, 2000);
  };
  setTimeout(look, 2000);
})();
</script>"""


@dataclass(frozen=True)
class Shown:
    """What is served at one moment."""

    version: str
    page: bytes
    files: dict[str, Path] = field(default_factory=dict)
    """By path of the URL."""


class Site:
    """The report over ``runs``, kept in ``work`` (a folder of its own)."""

    def __init__(self, runs: Sequence[Path], work: Path) -> None:
        self._work = work
        self._folders = []
        for place, folder in enumerate(runs):
            link = work / f"runs{place}"  # so that the page's links are short, and say nothing of this machine
            link.symlink_to(folder.resolve(), target_is_directory=True)
            self._folders.append(link)
        self._shared, self._read = Shared(), dict[Path, Loaded | Unreadable]()
        self.shown = Shown("", b"")
        self.refresh()

    def refresh(self) -> bool:
        """Render again if records came or went; whether they did. An unreadable record is tried again."""
        paths = [path for folder in self._folders for path in record_files(folder)]
        known = {path: one for path in paths if isinstance(one := self._read.get(path), Loaded)}
        self._read = {path: known.get(path) or read(path, self._shared) for path in paths}
        loaded = [one for one in self._read.values() if isinstance(one, Loaded)]
        version = hashlib.sha256("\n".join(str(one.folder) for one in loaded).encode()).hexdigest()[:16]
        if version == self.shown.version:
            return False
        self.shown = Shown(version, self._page(loaded, version), self._files(loaded))
        return True

    def _page(self, loaded: list[Loaded], version: str) -> bytes:
        from bench import report
        from bench.compare import compare
        from bench.finding import Findings, FindingsFile

        page = EMPTY
        if loaded:
            loaded = sorted(loaded, key=lambda one: one.record.id)
            names = ", ".join(folder.resolve().name for folder in self._folders)
            content = FindingsFile(title=f"peftmark: {names}", own=compare(loaded), published=Findings())
            report.render(content, loaded, [], self._work)
            page = (self._work / "index.html").read_text(encoding="utf-8")
        before, end, after = page.rpartition("</body>")
        return (before + RELOAD % json.dumps(version) + end + after).encode()

    def _files(self, loaded: list[Loaded]) -> dict[str, Path]:
        """The record files and what they name; a name that leads out of the record's folder is left out."""
        found = {f"/{name}": self._work / name for name in ("report.md", "findings.json")}
        for one in loaded:
            for name in (RECORD, *(ref.path for ref in one.record.files())):
                path = one.folder / name
                if path.resolve().is_relative_to(one.folder.resolve()):
                    found["/" + path.relative_to(self._work).as_posix()] = path
        return found


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of what the site shows."""

    protocol_version = "HTTP/1.1"
    server_version = "peftmark"
    sys_version = ""

    def __init__(self, site: Site, *args: object) -> None:
        self.site = site
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The page, its version, or a record's file."""
        shown = self.site.shown
        host = (self.headers.get("Host") or "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in LOOPBACK_NAMES:
            self._say(HTTPStatus.FORBIDDEN, "this server answers to its loopback address alone")
            return
        path = unquote(urlsplit(self.path).path)
        if path in (PAGE, "/index.html"):
            tag = f'"{shown.version}"'
            if self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, "text/html; charset=utf-8", None, tag)
            else:
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", shown.page, tag)
        elif path == VERSION:
            self._say(HTTPStatus.OK, shown.version)
        elif path in shown.files:
            self._file(shown.files[path])
        else:
            self._say(HTTPStatus.NOT_FOUND, "no such page")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # a body may follow that nobody reads
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD: nothing can be changed here")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _file(self, path: Path) -> None:
        try:
            body = path.read_bytes()
        except OSError:
            self._say(HTTPStatus.NOT_FOUND, "that file is not there")
            return
        kind = mimetypes.guess_type(path.name)[0]
        text = kind == "application/json" or path.suffix in (".md", ".jsonl")
        self._send(HTTPStatus.OK, "text/plain; charset=utf-8" if text else "application/octet-stream", body)

    def _say(self, status: HTTPStatus, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", text.encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes | None, tag: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        if tag:
            headers["ETag"] = tag
        if body is not None:
            headers["Content-Length"] = str(len(body))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: the page asks every two seconds."""


class Server(ThreadingHTTPServer):
    """One thread a request."""

    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away in the middle is no error; anything else keeps its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _listen(site: Site, port: int) -> Server:
    try:
        return Server((HOST, port), partial(Handler, site))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        what = "another program uses it" if error.errno == errno.EADDRINUSE else "this user may not use it"
        raise InputError(f"--port {port}", what, "give another --port, or 0 for any that is free") from None


def _watch(site: Site, stop: threading.Event) -> None:
    """Look at the folders until ``stop``; an error is said once, and the page stays as it was."""
    said = ""
    while not stop.wait(LOOK_EVERY_S):
        try:
            site.refresh()
            said = ""
        except Exception as error:  # the run goes on, and so does the page of a moment ago
            if said != (said := f"{type(error).__name__}: {error}"):
                err.print(f"[yellow]the report could not be made anew[/] {escape(said)}", soft_wrap=True)


def serve(runs: Sequence[Path], port: int, started: Callable[[str], None]) -> None:
    """Serve until KeyboardInterrupt; ``started`` is told the address. InputError where the port cannot be had."""
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="peftmark-") as work:
        site = Site(runs, Path(work))
        with _listen(site, port) as server:
            watcher = threading.Thread(target=_watch, args=(site, stop), daemon=True)
            watcher.start()
            started(f"http://{HOST}:{server.server_address[1]}/")
            try:
                server.serve_forever()
            finally:
                stop.set()
                watcher.join()
