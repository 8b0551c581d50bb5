"""A Hugging Face hub on this machine: as much of its HTTP interface as pushing and loading a model needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories as lists of commits, each a dictionary of files; and what was asked of the server."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        history = self.commits.setdefault(name, {})
        before = list(history.values())[-1] if history else {}
        oid = hashlib.sha1(f"{name} {len(history)}".encode()).hexdigest()
        history[oid] = {**before, **files}
        return oid

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit of a revision; KeyError if there is none."""
        history = self.commits[name]
        oid = list(history)[-1] if revision == "main" else revision
        return oid, history[oid]


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The address of a server for the hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, value: object, status: int = 200, **headers: str) -> None:
            self.answer(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            try:
                if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                    oid, files = hub.find(found[1], found[2] or "main")
                    names = [{"rfilename": name} for name in files]
                    self.say({"id": found[1], "sha": oid, "siblings": names, "private": False, "tags": []})
                elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                    files = hub.find(found[1], found[2])[1]
                    entries = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in files.items()
                    ]
                    self.say(entries)
                elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    oid, files = hub.find(found[1], found[2])
                    content = files[found[3]]
                    etag = f'"{hashlib.sha1(content).hexdigest()}"'
                    self.answer(content, ETag=etag, X_Repo_Commit=oid, Accept_Ranges="bytes")
                else:
                    self.say({"error": f"no such page {path}"}, 404)
            except KeyError:
                self.say({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in hub.commits:
                    self.say({"error": "exists", "url": name}, 409)
                    return
                hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
                hub.commit(name, {".gitattributes": b""})
                self.say({"url": f"http://{self.headers['Host']}/{name}"})
            elif self.path == "/api/validate-yaml":
                self.say({"errors": [], "warnings": []})
            elif found := re.match(r"/api/models/([^/]+/[^/]+)/preupload/", self.path):
                asked = json.loads(body)["files"]
                self.say(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            elif found := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
                lines = [json.loads(line) for line in body.splitlines()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                oid = hub.commit(found[1], {file["path"]: base64.b64decode(file["content"]) for file in files})
                url = f"http://{self.headers['Host']}/{found[1]}/commit/{oid}"
                self.say({"success": True, "commitOid": oid, "commitUrl": url})
            else:
                self.say({"error": f"no such page {self.path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
