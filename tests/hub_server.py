"""A server on 127.0.0.1 that speaks as much of the Hub's protocol as huggingface_hub needs to read, create and write models."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

Files = dict[str, bytes]  # content by path in the repository


class HubServer:
    """Models in memory. `requests` lists what was asked: (method, path); `closed` lists the ids that ask for an accepted licence."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}  # model id -> commit -> files
        self.refs: dict[str, dict[str, str]] = {}       # model id -> branch or tag -> commit
        self.closed: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        server = self

        class Handler(_Handler):
            hub = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, repo: str, files: Files | Path, ref: str = "main") -> str:
        """Add a commit with exactly these files (or those of a folder) to a branch or tag; returns its hash."""
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in sorted(files.rglob("*")) if path.is_file()}
        commits = self.commits.setdefault(repo, {})
        commit = hashlib.sha1(repr((repo, len(commits), sorted(files))).encode()).hexdigest()
        commits[commit] = dict(files)
        self.refs.setdefault(repo, {})[ref] = commit
        return commit

    def files(self, repo: str, revision: str = "main") -> Files:
        return self.commits[repo][self.refs[repo].get(revision, revision)]

    @property
    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self._read()

    def do_HEAD(self) -> None:
        self._read()

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers.get("Content-Length", 0))), self._note()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo in self.hub.commits:
                return self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo}"})
            self.hub.add(repo, {".gitattributes": b""})
            return self._answer(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
        if not match or match[1] not in self.hub.commits:
            return self._error(404, "RepoNotFound")
        if match[2] == "preupload":
            return self._answer(200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                                                for file in json.loads(body)["files"]]})
        files = dict(self.hub.files(match[1], match[3]))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                files.pop(line["value"]["path"], None)
        commit = self.hub.add(match[1], files, match[3])
        self._answer(200, {"commitUrl": f"{self.hub.endpoint}/{match[1]}/commit/{commit}", "commitOid": commit})

    def _read(self) -> None:
        path = self._note()
        if path == "/api/whoami-v2":
            return self._answer(200, {"type": "user", "name": "me", "orgs": []})
        match = (re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
                 or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path))
        if not match or match[1] not in self.hub.commits:
            return self._error(401 if match else 404, "RepoNotFound")  # to strangers the Hub does not say whether a model is private
        repo, what, revision = match[1], match[2], match[3] or "main"
        commit = self.hub.refs[repo].get(revision, revision)
        if commit not in self.hub.commits[repo]:
            return self._error(404, "RevisionNotFound")
        files = self.hub.commits[repo][commit]
        if what == "resolve":
            if repo in self.hub.closed:
                return self._error(403, "GatedRepo")
            if match[4] not in files:
                return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
            content = files[match[4]]
            return self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        if what == "tree":
            return self._answer(200, [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                                      for name, content in files.items()])
        self._answer(200, {"id": repo, "modelId": repo, "sha": commit, "private": False, "gated": False, "tags": [], "downloads": 0,
                           "siblings": [{"rfilename": name} for name in files]})

    def _note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        return path

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub without models, which huggingface_hub asks in this process, with an empty cache and a token; for child processes too."""
    from huggingface_hub import constants

    server, cache = HubServer(), tmp_path / "hub-cache"
    for name, value in (("ENDPOINT", server.endpoint), ("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", False),
                        ("HF_HUB_DISABLE_XET", True),
                        ("HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")):
        monkeypatch.setattr(constants, name, value)
    for name, text in (("HF_ENDPOINT", server.endpoint), ("HF_HUB_CACHE", str(cache)), ("HF_HUB_DISABLE_XET", "1"),
                       ("HF_TOKEN", "hf_test")):
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.close()
