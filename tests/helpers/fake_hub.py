"""A Hugging Face Hub in memory: enough of its HTTP interface to push, pull, pin revisions and be refused.

```python
with FakeHub() as hub:
    subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})
    hub.repositories["model", "tester/name"].files("main")      # {"config.json": b"..."}
```

Repositories keep every commit. Files whose suffix is in `LFS_SUFFIXES` must be uploaded by Git LFS, as on the Hub. A
private repository exists only for those who send `TOKEN`; it alone may write, and only to `USER`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"
TOKEN = "hf_test"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".mp4", ".tar")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class Repository:
    """Files by commit, and the commits that branches stand at."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Mapping[str, bytes], title: str) -> str:
        text = f"{len(self.commits)} {title} {sorted(files)}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.titles.append(title)
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch or hash."""
        revision = unquote(revision)
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class HubError(Exception):
    """An answer that is no success: status and the Hub's own code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class FakeHub:
    """The server, from `with` to the end of the block."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables with which a new process talks to this Hub and to no cache but `home`."""
        values = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token or "",
        }
        return {name: value for name, value in values.items() if value or name == "HF_TOKEN"}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        url = urlsplit(self.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {url.path}")
            try:
                self._dispatch(url.path, parse_qs(url.query), body)
            except HubError as error:
                content = json.dumps({"error": str(error)}).encode()
                self._send(content, error.status, {"X-Error-Code": error.code, "X-Error-Message": str(error)})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _chunks(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _dispatch(self, path: str, query: Mapping[str, list[str]], body: bytes) -> None:
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                getattr(self, name)(*match.groups(), query=query, body=body)
                return
        raise HubError(404, "EntryNotFound", f"The fake Hub has no route for {self.command} {path}")

    def _send(self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _check_writer(self, repo_id: str) -> None:
        if not self._is_user():
            raise HubError(401, "", "Invalid username or password.")
        if repo_id.split("/")[0] != USER:
            raise HubError(403, "", f"You don't have the rights to write to {repo_id}.")

    def _repository(self, kind: str, repo_id: str) -> Repository:
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not self._is_user()):
            raise HubError(404 if self._is_user() else 401, "RepoNotFound", "Repository not found")
        return repository

    def _commit_of(self, kind: str, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(kind, repo_id)
        sha = repository.resolve(revision)
        if sha is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        return sha, repository.commits[sha]

    def whoami(self, **_: Any) -> None:
        if not self._is_user():
            raise HubError(401, "", "Invalid username or password.")
        self._json({"name": USER, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self, **_: Any) -> None:
        self._json({"errors": [], "warnings": []})

    def create(self, body: bytes, **_: Any) -> None:
        wanted = json.loads(body)
        kind = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        self._check_writer(repo_id)
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo_id}", "id": repo_id, "name": repo_id}
        if (kind, repo_id) in self.hub.repositories:
            self._json({"error": "You already created this repo", **answer}, 409)
            return
        repository = Repository(private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
        repository.commit("main", {".gitattributes": b""}, "initial commit")
        self.hub.repositories[kind, repo_id] = repository
        self._json(answer)

    def info(self, kinds: str, repo_id: str, revision: str | None = None, **_: Any) -> None:
        sha, files = self._commit_of(KINDS[kinds], repo_id, revision or "main")
        repository = self._repository(KINDS[kinds], repo_id)
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        common = {"id": repo_id, "sha": sha, "private": repository.private, "tags": [], "downloads": 0, "likes": 0}
        times = {"createdAt": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z"}
        self._json({**common, **times, "siblings": siblings, "gated": False, "disabled": False})

    def refs(self, kinds: str, repo_id: str, **_: Any) -> None:
        branches = self._repository(KINDS[kinds], repo_id).branches.items()
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        self._json({"branches": listed, "tags": [], "converts": []})

    def branch(self, kinds: str, repo_id: str, name: str, body: bytes, **_: Any) -> None:
        self._check_writer(repo_id)
        repository = self._repository(KINDS[kinds], repo_id)
        if unquote(name) in repository.branches:
            raise HubError(409, "", "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repository.branches[unquote(name)] = repository.resolve(start)
        self._json({})

    def tree(self, kinds: str, repo_id: str, revision: str, folder: str | None, **_: Any) -> None:
        _, files = self._commit_of(KINDS[kinds], repo_id, revision)
        prefix = f"{unquote(folder)}/" if folder else ""
        inside = {name: content for name, content in files.items() if name.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, "EntryNotFound", f"{prefix} does not exist")
        folders = sorted({name.rpartition("/")[0] for name in inside} - {"", prefix.rstrip("/")})
        entries = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders]
        self._json([*entries, *(_describe(name, content) for name, content in inside.items())])

    def paths_info(self, kinds: str, repo_id: str, revision: str, body: bytes, **_: Any) -> None:
        _, files = self._commit_of(KINDS[kinds], repo_id, revision)
        if "json" in self.headers.get("Content-Type", ""):
            wanted = json.loads(body)["paths"]
        else:
            wanted = parse_qs(body.decode()).get("paths", [])
        self._json([_describe(name, files[name]) for name in wanted if name in files])

    def preupload(self, kinds: str, repo_id: str, revision: str, body: bytes, **_: Any) -> None:
        self._check_writer(repo_id)
        self._commit_of(KINDS[kinds], repo_id, revision)
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = ["lfs" if name.endswith(LFS_SUFFIXES) else "regular" for name in names]
        answers = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in zip(names, modes)]
        self._json({"files": answers})

    def lfs_batch(self, repo_id: str, body: bytes, **_: Any) -> None:
        self._check_writer(repo_id.removeprefix("datasets/"))
        objects = []
        for one in json.loads(body)["objects"]:
            href = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
            known = one["oid"] in self.hub.large_files
            objects.append(one if known else {**one, "actions": {"upload": href}})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, body: bytes, **_: Any) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(422, "", "The content does not have this hash")
        self.hub.large_files[oid] = body
        self._send(b"")

    def commit(self, kinds: str, repo_id: str, revision: str, body: bytes, **_: Any) -> None:
        self._check_writer(repo_id)
        repository = self._repository(KINDS[kinds], repo_id)
        branch = unquote(revision)
        files, title = dict(repository.files(branch)), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                if value["path"].endswith(LFS_SUFFIXES):
                    raise HubError(400, "", f"{value['path']} must be uploaded by LFS")
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(branch, files, title)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"})

    def resolve(self, prefix: str | None, repo_id: str, revision: str, name: str, **_: Any) -> None:
        sha, files = self._commit_of(KINDS[(prefix or "models/").rstrip("/")], repo_id, revision)
        content = files.get(unquote(name))
        if content is None:
            raise HubError(404, "EntryNotFound", f"{unquote(name)} does not exist at {sha}")
        described = _describe(name, content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{described["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in described:
            headers |= {"X-Linked-ETag": f'"{described["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._send(content, 200, headers)
            return
        start, end = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(content[start : end + 1], 206, headers)


def _describe(name: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


_API = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"{_API}/refs", "refs"),
    ("POST", rf"{_API}/branch/(.+)", "branch"),
    ("GET", rf"{_API}/tree/([^/]+)(?:/(.+))?", "tree"),
    ("POST", rf"{_API}/paths-info/([^/]+)", "paths_info"),
    ("POST", rf"{_API}/preupload/([^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/([^/]+)", "commit"),
    ("GET HEAD", rf"{_API}(?:/revision/([^/]+))?", "info"),
    ("POST", r"/((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
    ("GET HEAD", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
]
