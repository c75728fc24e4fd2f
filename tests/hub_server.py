"""A stand-in for the Hub: takes what huggingface_hub sends when it makes a repository and commits files to it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_" + "secretsecret"


class Hub(ThreadingHTTPServer):
    """What was ``created``, the ``files`` of commits, the ``card`` that was checked, the ``tokens`` that came along."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse: tuple[int, str] | None = None
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.card = ""
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuse:
            return self._answer({"error": self.server.refuse[1]}, self.server.refuse[0])
        if self.path == "/api/repos/create":
            made = self.server.created = json.loads(body)
            kind = "datasets/" if made.get("type") == "dataset" else ""
            return self._answer({"url": f"{self.server.address}/{kind}{made['organization']}/{made['name']}"})
        if self.path == "/api/validate-yaml":
            self.server.card = json.loads(body)["content"]
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        assert "/commit/" in self.path, self.path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self._answer({"commitUrl": f"{self.server.address}/me/x/commit/1", "commitOid": "1" * 40})

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in in place of the Hub, with a token to log in."""
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
