"""A stand-in of the hub's HTTP interface on 127.0.0.1: repositories, commits, large files.

    with Hub() as hub: ...            # hub.url, hub.repositories

It speaks what huggingface_hub asks for a push: whoami, create, preupload, git-lfs's batch, commit.
"""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stub"
LARGE = (".safetensors", ".gguf")


class Hub:
    def __init__(self):
        self.repositories: dict[str, dict] = {}  # name -> private, files, commits
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.tokens: set[str] = set()

    def __enter__(self):
        hub = self

        class Handler(Answers):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def allowed(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.tokens.add(given)
        return given == TOKEN

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            found = self.hub.repositories.get(name)
            if found is None or (found["private"] and not self.allowed()):
                self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
                return
            card = {"license": found["license"]} if "license" in found else {}
            self.answer({"id": name, "private": found["private"], "cardData": card,
                         "tags": [], "downloads": 0, "likes": 0, "siblings": []})  # fmt: skip
        elif not self.allowed():
            self.answer({"error": "Invalid credentials"}, 401)
        else:
            self.answer({"name": "me", "type": "user", "orgs": [], "auth": {}})

    def do_PUT(self):
        self.hub.large[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        body, parts = self.body(), self.path.split("?")[0].strip("/").split("/")
        if not self.allowed():
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization") or "me", asked["name"]]))
            private = asked.get("private") or asked.get("visibility") == "private"
            there = name in self.hub.repositories
            if not there:
                self.hub.repositories[name] = {"private": bool(private), "files": {}}
            self.answer({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)
        elif self.path == "/api/validate-yaml":  # of a model card
            self.answer({"warnings": [], "errors": []})
        elif parts[4:5] == ["preupload"]:
            modes = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"],
                 "actions": {"upload": {"href": f"{self.hub.url}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]  # fmt: skip
            self.answer({"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["commit"]:
            self.commit("/".join(parts[2:4]), body)
        else:
            self.answer({"error": f"unknown: {self.path}"}, 404)

    def commit(self, name: str, body: bytes) -> None:
        files = self.hub.repositories[name]["files"]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        url = f"{self.hub.url}/{name}/commit/1"
        self.answer({"commitUrl": url, "commitOid": "1" * 40, "success": True})
