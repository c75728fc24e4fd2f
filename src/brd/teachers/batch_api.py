"""The batch interface of OpenAI-compatible providers: files of requests, answered within a day.

A batch is paid for once it is made, so making one is never repeated blindly: it carries a mark of ours, and where it is
not known whether it came to be, the server's list of batches is searched for the mark.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from brd.errors import BrdError
from brd.teachers.client import Client, GaveUp, Refused

# Pages of the list of batches that are looked through, 100 each.
PAGES = 20
_MARK = "brd"
_ENDED = ("completed", "failed", "expired", "cancelled")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class State:
    """A batch as the server tells of it. ``files`` are those with answers (of requests that failed, too); ``why`` and
    ``code`` are of a batch that failed as a whole; ``done`` requests are through."""

    status: str
    files: tuple[str, ...]
    done: int
    why: str
    code: str

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


class Batches:
    """The files and batches of a server. All raise as ``Client.each`` does, and Refused."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def upload(self, path: Path) -> str:
        """Give the server a file of requests; returns its id there."""
        return self._do(lambda: self._client.upload("/files", path, {"purpose": "batch"}, _id))

    def create(self, file: str, endpoint: str, mark: str, *, perhaps_there: bool) -> str:
        """Make a batch of an uploaded file; returns its id. ``perhaps_there``: it may have been made before."""
        body = {
            "input_file_id": file,
            "endpoint": f"/v1{endpoint}",
            "completion_window": "24h",
            "metadata": {_MARK: mark},
        }

        async def make() -> str:
            if perhaps_there and (found := await self._find(mark)):
                return found
            try:
                return await self._client.ask_once("/batches", body, _id)
            except GaveUp:
                if found := await self._find(mark):
                    return found
                raise

        return self._do(make)

    async def _find(self, mark: str) -> str | None:
        after = ""
        for _ in range(PAGES):
            try:
                page = await self._client.get(f"/batches?limit=100{after}", _page)
            except Refused as refusal:
                raise BrdError(
                    f"{self._client.base}: whether a batch was made is not known, and the server does not list its "
                    f"batches ({refusal}); see what it shows of them elsewhere"
                ) from None
            for batch in page:
                if isinstance(batch.get("metadata"), dict) and batch["metadata"].get(_MARK) == mark:
                    return _id(batch)
            if len(page) < 100:
                return None
            after = f"&after={_id(page[-1])}"
        return None

    def state(self, batch: str) -> State:
        return self._do(lambda: self._client.get(f"/batches/{batch}", _state))

    def download(self, file: str, path: Path) -> None:
        """Write a file of answers to ``path``, which is whole or not there."""
        self._do(lambda: self._client.download(f"/files/{file}/content", path))

    def _do(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        [found] = self._client.each([None], lambda _: work())
        return found


def _id(reply: Any) -> str:
    found = reply.get("id") if isinstance(reply, dict) else None
    if not isinstance(found, str) or not found.replace("-", "").replace("_", "").isalnum():
        raise ValueError("no 'id' in it")
    return found


def _page(reply: Any) -> list[dict[str, Any]]:
    found = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(found, list):
        raise ValueError("no 'data' in it")
    return [batch for batch in found if isinstance(batch, dict)]


def _state(reply: Any) -> State:
    _id(reply)
    if not isinstance(reply.get("status"), str):
        raise ValueError("no 'status' in it")
    files = [reply.get(name) for name in ("output_file_id", "error_file_id")]
    counts, errors = reply.get("request_counts"), reply.get("errors")
    numbers = [counts.get(name) for name in ("completed", "failed")] if isinstance(counts, dict) else []
    data = errors.get("data") if isinstance(errors, dict) else None
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    return State(
        status=reply["status"],
        files=tuple(_id({"id": file}) for file in files if file),
        done=sum(n for n in numbers if isinstance(n, int)),
        why=str(first.get("message") or "no reason given"),
        code=str(first.get("code") or ""),
    )
