"""Everything that a server can do to a read: each fault through the command itself, against a real server that
misbehaves. What was answered is stored once, and the numbers of readings and of requests are exact."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from brd.teachers import client
from openai_server import MODEL, Asked, Reply, Server, completion, error

BrdHere = Callable[..., CompletedProcess[str]]
Plan = Callable[[Server, Asked], Reply]

SENTENCES = [f"Mira sailed to Oslo on day {n}." for n in range(24)]
KEY = "sk-" + "hidden" * 5
# Scripts of this folder find what they import as the tests do.
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
# Those that a fault befalls, if it is one of a sentence.
FAULTY = SENTENCES[::4]
ENDLESS = " Oslo, Oslo" * 9


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.005)
    monkeypatch.setattr(client, "LAST_ANSWERS", 1.0)
    monkeypatch.setattr(client, "LONGEST_REPLY", 60_000)
    monkeypatch.setenv("READER_KEY", KEY)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(good) as running:
        yield running


def good(asked: Asked) -> Reply:
    return (
        completion(asked, " Oslo (location)")
        if "completions" in asked.path
        else Reply({"data": [{"id": MODEL}, {"id": "writer-7b"}]})
    )


@dataclass
class Log:
    """A server in another process, by what it writes down."""

    url: str
    file: Path


class Read:
    """A recipe of sentences, one behavior, on a server; ``call`` gives the command once more."""

    def __init__(self, folder: Path, brd: BrdHere, server: Server | Log, sentences: Sequence[str] = SENTENCES) -> None:
        self._folder, self._brd, self._server, self.sentences = folder, brd, server, sentences
        (folder / "corpus.txt").write_text("\n\n".join(sentences))
        tree = {
            "name": "small",
            "text": {"source": "corpus.txt", "held_out": 0.3},
            "reading": {"behaviors": ["ner"], "shard_rows": 6},
            "teacher": {
                **{"kind": "openai", "model": MODEL},
                "server": {"key_variable": "READER_KEY", "concurrency": 4, "retries": 4},
            },
        }
        (folder / "small.yaml").write_text(yaml.safe_dump(tree))

    def call(self, *keys: str) -> tuple[CompletedProcess[str], Counter[str]]:
        """How it ended, and how often each sentence was asked."""
        if isinstance(self._server, Server):
            self._server.asked.clear()
        sets = [part for key in (f"teacher.server.base_url={self._server.url}", *keys) for part in ("--set", key)]
        done = self._brd("read", "small.yaml", "--out", "run", *sets)
        assert KEY not in done.stderr
        assert "Traceback" not in done.stderr
        if isinstance(self._server, Log):
            return done, Counter(self._server.file.read_text().splitlines())
        return done, Counter(asked.sentence for asked in self._server.questions())

    @property
    def stored(self) -> dict[str, dict[str, Any]]:
        """The readings by sentence, each of which is there once; none is in the journal alone."""
        folder = self._folder / "run" / "readings"
        rows = [row for shard in sorted(folder.glob("readings-*.parquet")) for row in pq.read_table(shard).to_pylist()]
        found = {row["text"]: row for row in rows}
        assert len(found) == len({row["key"] for row in rows}) == len(rows)
        return found

    def counts(self) -> dict[str, int]:
        manifest = json.loads((self._folder / "run" / "steps" / "read.json").read_text())
        return dict(manifest["result"]["counts"])

    def forget(self) -> None:
        """The step is run again; the readings are there."""
        (self._folder / "run" / "steps" / "read.json").unlink()


@pytest.fixture
def read(tmp_path: Path, brd_here: BrdHere, server: Server) -> Read:
    return Read(tmp_path, brd_here, server)


# What passes: the command comes to its end, and each failed request is one request more.


def once(reply: Callable[[Asked], Reply], faulty: Sequence[str] = FAULTY) -> Plan:
    """The fault at the first request for each of the faulty sentences."""
    return lambda server, asked: (reply if asked.sentence in faulty and asked.times == 1 else good)(asked)


def burst(server: Server, asked: Asked) -> Reply:
    return error(500, "oh") if 8 <= len(server.asked) < 18 else good(asked)


def flood(asked: Asked) -> Reply:
    """A body that never ends: as long as one reads, there is more."""
    return Reply(b'{"choices": [{"text": "' + b"x" * 100_000, headers={"Content-Length": str(10**12)})


def slow(asked: Asked) -> Reply:
    reply = good(asked)
    reply.drip = 0.3
    return reply


PASSING: dict[str, tuple[Plan, int]] = {
    "a connection that is reset in the middle": (once(lambda asked: Reply({"choices": "x" * 1000}, cut=300)), 6),
    "one that is reset before a byte": (once(lambda asked: Reply({}, cut=0)), 6),
    "429 without Retry-After": (once(lambda asked: error(429, "slow down")), 6),
    "429 with Retry-After": (once(lambda asked: error(429, "slow down", Retry_After="0.01")), 6),
    "a burst of 500": (burst, 10),
    "503 with Retry-After": (once(lambda asked: error(503, "loading", Retry_After="0.01")), 6),
    "JSON that is cut off": (once(lambda asked: Reply(b'{"choices": [{"text": " Oslo (loca')), 6),
    "JSON of another shape": (once(lambda asked: Reply({"choices": [{"message": ["no", "text"]}]})), 6),
    "an error with status 200": (once(lambda asked: Reply({"error": {"message": "busy"}})), 6),
    "an empty body": (once(lambda asked: Reply(b"")), 6),
    "a page of HTML": (once(lambda asked: Reply(b"<html>Bad gateway</html>", 502)), 6),
    "a body without an end": (once(flood), 6),
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_costs_its_repetitions_and_nothing_else(read: Read, server: Server, fault: str) -> None:
    it_passes(read, server, *PASSING[fault])


@pytest.mark.parametrize("reply", [lambda asked: Reply(hang=True), slow], ids=["hangs", "drips"])
def test_an_answer_that_does_not_come_in_time(read: Read, server: Server, reply: Callable[[Asked], Reply]) -> None:
    it_passes(read, server, once(reply, FAULTY[:1]), 1, "teacher.server.timeout=1")


def it_passes(read: Read, server: Server, plan: Plan, more: int, *keys: str) -> None:
    """All are read, by so many requests more than there are sentences."""
    server.plan = lambda asked: plan(server, asked)
    done, asked = read.call(*keys)
    assert done.returncode == 0, done.stderr
    assert sorted(asked) == sorted(SENTENCES)
    assert asked.total() == len(SENTENCES) + more
    assert {row["raw"] for row in read.stored.values()} == {" Oslo (location)"}
    assert sorted(read.stored) == sorted(SENTENCES)
    counts = read.counts()
    assert (counts["ner_asked"], counts["retries"], counts["prompt_tokens"]) == (24, more, 2400)
    read.forget()
    done, asked = read.call()
    assert (done.returncode, asked.total()) == (0, 0)


def test_a_server_that_is_restarted_costs_what_was_on_its_connections(read: Read, server: Server) -> None:
    def plan(asked: Asked) -> Reply:
        if len(server.asked) in (9, 19):
            server.go_down()
            server.come_back()
        return good(asked)

    server.plan = plan
    done, asked = read.call("teacher.server.retries=12")
    assert done.returncode == 0, done.stderr
    assert sorted(read.stored) == sorted(SENTENCES)
    # Two outages with up to four requests under way each; refused connections reach nobody.
    assert 2 <= asked.total() - len(SENTENCES) <= 8
    assert max(asked.values()) <= 3


# Answers that are answers, though nothing can be made of them: stored as they are, and not asked for again.


def too_long(asked: Asked) -> Reply:
    return error(400, "This model's maximum context length is 64 tokens.", "context_length_exceeded")


USELESS: dict[str, tuple[Callable[[Asked], Reply], int, tuple[str, bool]]] = {
    "an empty answer": (lambda asked: completion(asked, ""), 0, ("", True)),
    "a model that finds no end": (lambda asked: completion(asked, ENDLESS, "length"), 0, (ENDLESS, False)),
    # One request more for each: whether a plain prompt is taken.
    "a sentence that is too long for the context": (too_long, 6, ("", False)),
}  # fmt: skip


@pytest.mark.parametrize("kind", USELESS)
def test_an_answer_of_no_use_is_stored_as_malformed_and_not_asked_for_again(
    read: Read, server: Server, kind: str
) -> None:
    reply, more, (raw, finished) = USELESS[kind]
    server.plan = lambda asked: (reply if asked.sentence in FAULTY else good)(asked)
    for again in (False, True):
        done, asked = read.call()
        assert done.returncode == 0, done.stderr
        assert asked.total() == (0 if again else len(SENTENCES) + more)
        assert len(read.stored) == len(SENTENCES)
        for text, row in read.stored.items():
            if text in FAULTY:
                assert (row["raw"], row["finished"], row["verdict"]) == (raw, finished, "malformed")
            else:
                assert (row["raw"], row["verdict"]) == (" Oslo (location)", "verified")
        read.forget()


# What ends the command: what was answered until then is stored, and the same command asks for exactly the rest.


@dataclass(frozen=True)
class Ending:
    """``plan`` ends a read with ``code`` and ``words`` after so many ``answers`` (None: some, but not all)."""

    plan: Plan
    code: int
    words: str
    answers: int | None


def after(count: int, reply: Callable[[Asked], Reply]) -> Plan:
    return lambda server, asked: (reply if len(server.asked) > count and "completions" in asked.path else good)(asked)


def nobody(server: Server, asked: Asked) -> Reply:
    raise AssertionError("asked, though nobody listens")


def gone(server: Server, asked: Asked) -> Reply:
    if len(server.asked) == 12:
        server.go_down()
    return good(asked)


def poison(server: Server, asked: Asked) -> Reply:
    return error(500, "poison") if asked.sentence == FAULTY[1] else good(asked)


def unknown(server: Server, asked: Asked) -> Reply:
    return error(404, f"no model {MODEL}") if "completions" in asked.path else Reply({"data": [{"id": "reader-8b"}]})


ENDING = {
    "connections that are refused": Ending(nobody, 3, "cannot be reached", 0),
    "a server that goes for good": Ending(gone, 3, "no answer in 5 tries", None),
    "500 for good": Ending(after(10, lambda asked: error(500, "oh")), 3, "no answer in 5 tries (500: oh)", 10),
    "replies that are none, for good": Ending(after(10, lambda asked: Reply({})), 3, "a reply that is no answer", 10),
    "one sentence that always fails": Ending(poison, 3, "1 requests failed 5 times each", 23),
    "an hour of patience": Ending(after(10, lambda a: error(429, "?", Retry_After="3600")), 3, "in 3600 s", 10),
    "no money left": Ending(after(10, lambda a: error(429, "spent", "insufficient_quota")), 3, "429: spent", 10),
    "a key that has expired": Ending(after(10, lambda a: error(401, f"{KEY} expired")), 2, "*** expired", 10),
    "a wrong model name": Ending(unknown, 2, "did you mean 'reader-8b'", 0),
    "a prefix that is too long": Ending(after(0, too_long), 2, "it refuses any sentence", 0),
}


@pytest.mark.parametrize("fault", ENDING)
def test_what_ends_it_loses_nothing_and_the_same_command_asks_for_the_rest(
    read: Read, server: Server, fault: str
) -> None:
    ending = ENDING[fault]
    server.plan = lambda asked: ending.plan(server, asked)
    if ending.plan is nobody:
        server.stop()
    done, asked = read.call()
    assert done.returncode == ending.code, done.stderr
    assert ending.words in done.stderr
    stored = read.stored
    if ending.answers is None:
        # Of twelve requests at most the four that were under way came to nothing.
        assert 8 <= len(stored) < 12
    else:
        assert len(stored) == ending.answers
    assert asked.total() <= len(SENTENCES) + 2 * 4 * 4
    server.stop()
    server.start()
    server.plan = good
    done, again = read.call()
    assert done.returncode == 0, done.stderr
    assert sorted(again) == sorted(set(SENTENCES) - stored.keys())
    assert max(again.values()) == 1
    assert sorted(read.stored) == sorted(SENTENCES)
    assert {text: read.stored[text] for text in stored} == stored


def test_a_full_disk_costs_no_more_than_what_waited_to_be_written(
    read: Read, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "AHEAD", 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def plan(asked: Asked) -> Reply:
        if len(server.asked) == 13:
            # No file can grow beyond this from now on.
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
        return good(asked)

    server.plan = plan
    try:
        done, asked = read.call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    server.plan = good
    done, again = read.call()
    assert done.returncode == 0, done.stderr
    assert sorted(read.stored) == sorted(SENTENCES)
    assert max(again.values()) == 1
    # Two that had come, the one that was to be written, and four under way.
    assert asked.total() + again.total() <= len(SENTENCES) + 2 + 1 + 4


def test_a_reader_that_is_killed_asks_again_what_was_under_way(tmp_path: Path) -> None:
    """The parent: 50 kills of the process that reads, at drawn ones of the calls of both its threads."""
    script, kills = Path(__file__).with_name("killed_reads.py"), 50
    with Server(lambda asked: completion(asked, " Oslo (location)")) as server:
        command = [sys.executable, script, tmp_path, "2", str(kills), server.url.removesuffix("/v1")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=HERE)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert sum(killed) == kills
    asked = Counter(question.path.split("/")[1] for question in server.questions())
    prompts = {question.body["prompt"] for question in server.questions()}
    assert len(prompts) == asked["undisturbed"] == 30
    undisturbed = readings_in(tmp_path / "undisturbed")
    assert len(undisturbed) == 30
    for number, times in enumerate(killed):
        assert readings_in(tmp_path / f"run-{number}") == undisturbed
        # A kill costs what had come and was not written yet, and what was under way: two and two.
        assert 30 <= asked[f"run-{number}"] <= 30 + 4 * times
        assert len({q.body["prompt"] for q in server.questions() if f"/run-{number}/" in q.path}) == 30


def test_a_server_that_is_killed_again_and_again_is_waited_for(
    tmp_path: Path, brd_here: BrdHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server: 50 kills of its process while one read goes on."""
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script, kills = Path(__file__).with_name("killed_servers.py"), 50
    servers = subprocess.Popen(
        [sys.executable, script, tmp_path, str(port), "3", str(kills)], env=HERE, start_new_session=True
    )
    try:
        log = Log(f"http://127.0.0.1:{port}/v1", tmp_path / "asked")
        while not listens(port):
            assert servers.poll() is None
        read = Read(tmp_path, brd_here, log, [f"Mira sailed to Oslo on day {n}." for n in range(200)])
        done, asked = read.call("teacher.server.retries=100")
        assert done.returncode == 0, done.stderr
    finally:
        os.killpg(servers.pid, signal.SIGKILL)
        servers.wait()
    killed = len((tmp_path / "killed").read_text().splitlines())
    assert killed >= 40
    assert sorted(read.stored) == sorted(read.sentences) == sorted(asked)
    assert {row["raw"] for row in read.stored.values()} == {" Oslo (location)"}
    # What was under way when the server died: at most four requests.
    assert asked.total() <= len(read.sentences) + 4 * killed


def readings_in(run: Path) -> dict[str, dict[str, Any]]:
    rows = [row for shard in (run / "readings").glob("readings-*.parquet") for row in pq.read_table(shard).to_pylist()]
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_clock_that_goes_backwards_changes_nothing(
    read: Read, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(2 * 10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    # By a date, which the clock is asked for where the server says no time of its own.
    late = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.plan = lambda asked: once(lambda a: error(429, "slow down", Retry_After=late))(server, asked)
    done, asked = read.call()
    assert done.returncode == 0, done.stderr
    assert (asked.total(), len(read.stored)) == (len(SENTENCES) + len(FAULTY), len(SENTENCES))
