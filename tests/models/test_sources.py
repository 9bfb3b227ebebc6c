"""Sources of a model: local folders and what may be wrong with them, the hub (a small one served here), names."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TypeAlias

import pytest

from bench.cell import Cell
from bench.errors import InputError
from bench.models import sources
from bench.models.catalogue import entry
from bench.models.files import weights_sha256

MakeCell: TypeAlias = Callable[..., Cell]
MakeFolder: TypeAlias = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b'{"model_type": "llama", "hidden_size": 32}',
    "model.safetensors": b"weights",
    "consolidated.safetensors": b"a second copy of the weights",
    "original/params.json": b"{}",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "code.py": b"print()",
}


def whole(folder: Path, weights: bytes = b"abc") -> Path:
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_local_folder_is_described_by_hashes_and_its_name_alone(cell: MakeCell, config_folder: MakeFolder) -> None:
    folder = whole(config_folder("my-model"))
    path = sources.resolve(cell(folder, "local"), offline=True)
    assert (path.folder, path.weights, path.source_detail) == (folder, "real", "local folder my-model")
    assert path.config_sha256 == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    of_file = hashlib.sha256(b"abc").hexdigest()
    assert path.weights_sha256 == hashlib.sha256(f"{of_file}\n".encode()).hexdigest()

    (folder / "chat_template.jinja").write_text("{{ messages }}")
    again = sources.resolve(cell(folder, "local"))
    assert again.weights_sha256 == path.weights_sha256 and again.tokenizer_sha256 != path.tokenizer_sha256


def test_weights_are_hashed_once_and_again_when_they_change(
    config_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole(config_folder())
    first = weights_sha256(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert weights_sha256(folder) == first
    monkeypatch.setattr("bench.models.files.sha256_file", lambda path: pytest.fail("read the weights again"))
    assert weights_sha256(folder) == first
    monkeypatch.undo()
    (folder / "model.safetensors").write_bytes(b"abd")
    assert weights_sha256(folder) != first


def test_missing_local_folder(cell: MakeCell, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere', source 'local': there is no such folder\n  mend: check the path"):
        sources.resolve(cell(tmp_path / "nowhere", "local"))
    with pytest.raises(InputError, match="for a catalogue name use source hub or random"):
        sources.config_for(cell("qwen3-4b", "local"))


def test_local_folder_without_config(cell: MakeCell, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config\.json in the folder"):
        sources.resolve(cell(tmp_path, "local"))


def test_local_folder_with_a_broken_config(cell: MakeCell, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON: .*line 1"):
        sources.resolve(cell(tmp_path, "local"))


def test_local_folder_without_safetensors_names_what_is_there(cell: MakeCell, config_folder: MakeFolder) -> None:
    folder = config_folder()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"no safetensors files \(only pytorch_model\.bin\)\n  mend: convert"):
        sources.resolve(cell(folder, "local"))


def test_local_folder_with_a_missing_shard(cell: MakeCell, config_folder: MakeFolder) -> None:
    folder = config_folder()
    (folder / "a.safetensors").write_bytes(b"")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json names b\.safetensors, which is missing"):
        sources.resolve(cell(folder, "local"))


def test_local_folder_without_tokenizer(cell: MakeCell, config_folder: MakeFolder) -> None:
    folder = config_folder()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"there is no tokenizer\n  mend: add its files \(tokenizer\.json"):
        sources.resolve(cell(folder, "local"))


@pytest.mark.parametrize("source", ["hub", "random"])
def test_misspelt_name_gets_the_nearest(cell: MakeCell, source: str) -> None:
    for ask in (sources.resolve, sources.config_for):
        with pytest.raises(
            InputError, match=rf"'lama-3.2-1b', source '{source}'.*\n  mend: did you mean 'llama-3.2-1b'"
        ):
            ask(cell("lama-3.2-1b", source))


def test_only_smollm2_is_packaged(cell: MakeCell) -> None:
    with pytest.raises(InputError, match="only smollm2-135m-instruct comes as a package"):
        sources.resolve(cell("qwen3-4b", "packaged"))


def test_config_for_every_source_without_weights(
    cell: MakeCell, config_folder: MakeFolder, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, source in [("qwen3-4b", "hub"), ("Qwen/Qwen3-4B", "hub"), ("qwen3-4b", "random")]:
        assert sources.config_for(cell(model, source)) == entry("qwen3-4b").config
    assert sources.config_for(cell("smollm2-135m-instruct", "packaged")) == entry("smollm2-135m-instruct").config
    for source in ("local", "random"):
        config = sources.config_for(cell(config_folder(source), source))
        assert config is not None and config["hidden_size"] == 32
    assert sources.config_for(cell("someone/some-model", "hub")) is None
    assert not own_cache.exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a snapshot needs: real HTTP, files from REPOSITORY."""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        owner = next((o for o in ("gated", "good", "pickled") if f"/{o}/model" in self.path), None)
        files = {n: b for n, b in REPOSITORY.items() if owner == "good" or not n.endswith(".safetensors")}
        if owner is None:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif owner == "gated":
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "/tree/" in self.path:
            listing = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif "/resolve/" in self.path:
            body = files[self.path.split(f"/resolve/{COMMIT}/")[1]]
            self.send(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})
        else:
            info = {"id": f"{owner}/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """huggingface_hub talks to the server above and keeps an empty cache."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def test_hub_downloads_what_loads_and_nothing_else(cell: MakeCell, hub: None) -> None:
    path = sources.resolve(cell("good/model", "hub"))
    assert path.source_detail == f"good/model@{COMMIT}" and path.weights == "real"
    assert {p.name for p in path.folder.rglob("*")} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert sources.resolve(cell("good/model", "hub"), offline=True) == path
    with_code = sources.resolve(cell("good/model", "hub", trust_remote_code=True))
    assert (with_code.folder / "code.py").is_file()


@pytest.mark.parametrize(
    ("model", "offline", "message"),
    [
        ("gated/model", False, r"gated/model.*login and an accepted licence\n  mend: .*hf auth login"),
        ("missing/qwen3-4b", False, r"missing/qwen3-4b.*knows no such model\n  mend: .*did you mean 'qwen3-4b'"),
        ("pickled/model", False, r"pickled/model.*no safetensors files\n  mend: convert"),
        ("good/model", True, r"good/model.*offline runs download nothing\n  mend: run 'peftmark fetch'.*'random'"),
        ("good/mo--del", False, r"not a valid hub id"),
    ],
)
def test_hub_faults_name_the_model_and_the_mend(
    cell: MakeCell, hub: None, model: str, offline: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sources.resolve(cell(model, "hub"), offline=offline)


def test_hub_out_of_reach(cell: MakeCell, hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"hub cannot be reached, and .* not in the local cache\n  mend: check the net"
    ):
        sources.resolve(cell("qwen3-4b", "hub"))
