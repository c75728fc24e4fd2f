"""The files and batches of a provider, on the server of ``openai_server``; a test changes what comes of them."""

import email
import email.policy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openai_server import Asked, Reply, completion, default, error

Line = dict[str, Any]


@dataclass
class Batch:
    """``looks``: so often it is looked at before it has ended. ``answers`` go into the output file, ``errors`` into the
    error file, after ``change`` had its way with them."""

    id: str
    requests: list[Line]
    metadata: dict[str, str]
    endpoint: str
    status: str = "completed"
    looks: int = 1
    answers: list[Line] = field(default_factory=list)
    errors: list[Line] = field(default_factory=list)
    failure: dict[str, str] | None = None
    raw: bytes | None = None


class Provider:
    """Answers requests as the server does directly, all of a batch when it is made. ``paid`` counts answered requests
    by custom_id; ``fault`` answers a request of a kind (upload, create, look, list, download) instead, once a call."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Batch] = {}
        self.paid: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.change: Callable[[Batch], None] = lambda batch: None
        self.fault: Callable[[str], Reply | None] = lambda kind: None
        # What happens to a request that is carried out, though its reply is lost.
        self.lose: Callable[[str], Reply | None] = lambda kind: None

    def __call__(self, asked: Asked) -> Reply:
        path, _, query = asked.path.removeprefix("/v1").partition("?")
        kind, work = self._kind(asked, path, query)
        self.seen[kind] += 1
        if reply := self.fault(kind):
            return reply
        done = work()
        return self.lose(kind) or done

    def _kind(self, asked: Asked, path: str, query: str) -> tuple[str, Callable[[], Reply]]:
        match [asked.method, *path.strip("/").split("/")]:
            case ["POST", "files"]:
                return "upload", lambda: self._upload(asked)
            case ["POST", "batches"]:
                return "create", lambda: self._create(asked.body)
            case ["GET", "batches"]:
                return "list", lambda: self._list(query)
            case ["GET", "batches", name]:
                return "look", lambda: self._look(name)
            case ["GET", "files", name, "content"]:
                return "download", lambda: Reply(self.files[name]) if name in self.files else error(404, "no such file")
        return "direct", lambda: default(asked)

    def _upload(self, asked: Asked) -> Reply:
        head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + asked.raw, policy=email.policy.HTTP)
        parts = {p.get_param("name", header="content-disposition"): p for p in form.iter_parts()}  # type: ignore[attr-defined]
        assert parts["purpose"].get_content().strip() == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = parts["file"].get_payload(decode=True)
        return Reply({"id": name, "purpose": "batch"})

    def _create(self, body: dict[str, Any]) -> Reply:
        assert body["completion_window"] == "24h"
        requests = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        batch = Batch(f"batch_{len(self.batches)}", requests, body["metadata"], body["endpoint"])
        for request in requests:
            prompt = request["body"].get("prompt") or request["body"]["messages"][-1]["content"]
            sentence = prompt.rpartition("\n\n")[2].split("\n")[0].removeprefix("Sentence: ")
            one = completion(Asked(request["url"], {}, request["body"], sentence, 1), f" about {sentence}")
            response = {"status_code": 200, "request_id": "r", "body": one.body}
            batch.answers.append({"id": "x", "custom_id": request["custom_id"], "response": response, "error": None})
        self.batches[batch.id] = batch
        self.change(batch)
        lines = [line for line in batch.answers if isinstance(line, dict)]
        self.paid.update({line["custom_id"] for line in lines if line["response"]["status_code"] == 200})
        return Reply({"id": batch.id, "status": "validating"})

    def _look(self, name: str) -> Reply:
        if name not in self.batches:
            return error(404, f"No batch found with id '{name}'.")
        batch = self.batches[name]
        batch.looks -= 1
        counts = {"total": len(batch.requests), "completed": 0, "failed": 0}
        told: dict[str, Any] = {"id": name, "status": "in_progress", "request_counts": counts}
        if batch.looks >= 0:
            return Reply(told)
        told["status"] = batch.status
        for key, lines in (("output_file_id", batch.answers), ("error_file_id", batch.errors)):
            told[key] = f"{name}-{key}" if lines else None
            self.files[f"{name}-{key}"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if batch.raw is not None:
            self.files[f"{name}-output_file_id"] = batch.raw
        if batch.failure:
            told["errors"] = {"object": "list", "data": [batch.failure]}
        return Reply(told)

    def _list(self, query: str) -> Reply:
        names = list(self.batches)[::-1]
        after = dict(part.split("=") for part in query.split("&")).get("after")
        names = names[names.index(after) + 1 :] if after else names
        return Reply({"data": [{"id": n, "metadata": self.batches[n].metadata} for n in names[:100]]})
