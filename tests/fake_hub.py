"""A Hub on this machine: the addresses that huggingface_hub and datasets ask, answered from memory and counted."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest

LARGE = (".safetensors", ".bin", ".parquet")
"""Files that the Hub keeps apart and sends the client to by a redirect."""

_API = r"/api/(models|datasets)/([^/]+/[^/]+)"


class FakeHub:
    """Repositories: commits of files in memory, the last of them the main branch. Names of data begin with datasets/.

    Attributes:
        commits: Files of each commit of each repository, the head last.
        requests: How often each file was asked for with GET, by repository and path.
        sent: Bytes sent of each file, by repository and path.
        ranges: Whether ranges are honoured, as the Hub does and some mirrors don't.
        sized: Whether answers in parts tell the length of the whole, as the Hub's do.
        gone: Whether weights have vanished from where they are kept.
        users: What ``whoami`` says of each token.
        private: Repositories that were made so.
        full: Whether commits are refused.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ranges = True
        self.sized = True
        self.gone = False
        self.users: dict[str, dict[str, Any]] = {}
        self.private: set[str] = set()
        self.full = False

    def push(self, name: str, directory: Path, **files: bytes) -> str:
        """Commit a directory; ``files`` replace what is in it, by name with ``__`` for a dot."""
        found = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        found |= {path.replace("__", "."): data for path, data in files.items()}
        content = repr([(path, hashlib.sha1(data).hexdigest()) for path, data in found.items()])
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = found
        return commit

    def push_data(
        self, name: str, folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], **features: Any
    ) -> str:
        """Commit labelled rows as the Hub has them, a file of parquet a split; ``features`` by column."""
        import datasets

        for split, rows in splits.items():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            made = datasets.Dataset.from_list(list(rows), features=datasets.Features(features))
            made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return self.push(f"datasets/{name}", folder)

    def weight_bytes(self, name: str) -> int:
        """Bytes sent of a repository's weights since the last :meth:`forget`."""
        return sum(
            sent for key, sent in self.sent.items() if key.startswith(f"{name}/") and key.endswith(LARGE)
        )

    def weight_requests(self, name: str) -> int:
        """Requests for a repository's weights since the last :meth:`forget`."""
        return sum(
            asked
            for key, asked in self.requests.items()
            if key.startswith(f"{name}/") and key.endswith(LARGE)
        )

    def forget(self) -> None:
        """StartingPoint counting anew."""
        self.requests.clear()
        self.sent.clear()


@contextmanager
def serve(hub: FakeHub) -> Iterator[str]:
    """Answer for a Hub on a free port; gives its address."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub, which reads its environment only when imported, at an address and a cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def use_data(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point datasets, which reads its environment likewise, at an address and a cache; after :func:`use`."""
    import datasets

    constants = datasets.config
    monkeypatch.setattr(constants, "HF_ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUB_DATASETS_URL", endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
    )
    monkeypatch.setattr(constants, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "USE_PARQUET_EXPORT", False)  # a service of its own, at another address


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, user = unquote(urlsplit(self.path).path), self._user()
        if asked := re.fullmatch(_API + r"/paths-info/([^/]+)", path):
            wanted = parse_qs(content.decode())["paths"]
            found = self._commit(_repository(asked[1], asked[2]), asked[3])
            if found is not None:
                self._json(200, [entry for entry in _tree(found[1]) if entry["path"] in wanted])
        elif user is None:
            self._json(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            new = json.loads(content)
            name = f"{new.get('organization') or user['name']}/{new['name']}"
            self.server.hub.commits.setdefault(name, {})
            if new.get("visibility") == "private" or new.get("private"):
                self.server.hub.private.add(name)
            self._json(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif asked_for := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [one["path"] for one in json.loads(content)["files"]]
            told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json(200, {"files": [{"path": one, **told} for one in files]})
        elif asked_for := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._take(asked_for[1], content)
        else:
            self._refuse("EntryNotFound")

    def _take(self, name: str, content: bytes) -> None:
        """Keep a commit whose files stand in it, as the Hub takes small ones."""
        if self.server.hub.full:
            self._json(403, {"error": "storage limit reached"})
            return
        lines = [json.loads(line) for line in content.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = hashlib.sha1(content).hexdigest()
        self.server.hub.commits[name][commit] = files
        place = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": place})

    def _user(self) -> dict[str, Any] | None:
        return self.server.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _json(self, status: int, answer: Any) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            user = self._user()
            self._json(*((401, {"error": "Invalid user token."}) if user is None else (200, user)))
        elif api := re.fullmatch(_API + r"(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            self._describe(_repository(api[1], api[2]), api[3], api[4] or "main", api[5] or "")
        elif file := re.fullmatch(r"/(kept/)?((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(file[2], file[3], file[4], kept=file[1] is not None, body=body)
        else:
            self._refuse("EntryNotFound")

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.server.hub.commits.get(name, {})
        commit = list(commits)[-1] if revision == "main" and commits else revision
        if commit not in commits:
            self._refuse("RevisionNotFound" if commits else "RepoNotFound")
            return None
        return commit, commits[commit]

    def _describe(self, name: str, what: str | None, revision: str, folder: str) -> None:
        if (found := self._commit(name, revision)) is None:
            return
        commit, files = found
        answer: Any = {
            "id": name.removeprefix("datasets/"),
            "sha": commit,
            "siblings": [{"rfilename": path} for path in files],
        }
        if what == "tree":
            inside = f"{folder}/" if folder else ""
            below = [entry for entry in _tree(files) if entry["path"].startswith(inside)]
            if folder and not below:
                self._refuse("EntryNotFound")
                return
            if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() != "true":
                below = [entry for entry in below if "/" not in entry["path"].removeprefix(inside)]
            answer = below
        self._json(200, answer)

    def _file(self, name: str, revision: str, path: str, *, kept: bool, body: bool) -> None:
        if (found := self._commit(name, revision)) is None:
            return
        commit, files = found
        if path not in files or (kept and self.server.hub.gone):
            self._refuse("EntryNotFound")
            return
        data = files[path]
        large = path.endswith(LARGE)
        etag = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if large and not kept:
            host = self.headers["Host"]
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            self._send(302, {**headers, "Location": f"http://{host}/kept{self.path}"}, b"")
            return
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        size = len(data)
        if asked is not None and self.server.hub.ranges:
            start, stop = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            status, data = (206, data[start:stop]) if start < size else (416, b"")
            headers["Content-Range"] = (
                f"bytes {start}-{stop - 1}/{size if self.server.hub.sized else '*'}"
                if data
                else f"bytes */{size}"
            )
        if body:
            self.server.hub.requests[f"{name}/{path}"] += 1
        self._send(status, headers, data, body=body, count=f"{name}/{path}")

    def _refuse(self, code: str) -> None:
        self._send(404, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        data: bytes,
        *,
        body: bool = True,
        count: str | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            for start in range(0, len(data) if body else 0, 1 << 16):
                part = data[start : start + (1 << 16)]
                self.wfile.write(part)
                if count is not None:
                    self.server.hub.sent[count] += len(part)
        except ConnectionError:  # the client has read what it wanted
            self.close_connection = True


def _repository(kind: str, name: str) -> str:
    return name if kind == "models" else f"datasets/{name}"


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Every file and folder of a commit, as the Hub lists them."""
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
    return [
        *({"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)),
        *(
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ),
    ]
