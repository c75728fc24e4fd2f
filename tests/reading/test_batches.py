"""Reading by a provider's batches: nothing is paid for twice, whatever happens in between."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_server import Batch, Line, Provider
from brd import recipe as recipes
from brd.errors import BrdError, TeacherUnreachable
from brd.reading import batches
from brd.reading.pending import Question
from brd.reading.store import Reading, every
from brd.recipe import Recipe
from brd.teachers import client
from brd.teachers.openai import Asking
from brd.teachers.teacher import Answer
from openai_server import MODEL, Reply, Server, error

SENTENCES = [f"Ship number {n} came into the harbour of Oslo." for n in range(10)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.001)
    monkeypatch.setattr(batches, "LONGEST_LOOK", 0.001)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def server(provider: Provider) -> Iterator[Server]:
    with Server(provider) as running:
        yield running


@pytest.fixture
def recipe(server: Server, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe on the server; keyword arguments are keys of ``teacher.server`` (``chat``: as a conversation)."""

    def make(chat: bool = False, **keys: Any) -> Recipe:
        (tmp_path / "corpus.txt").write_text("\n\n".join(SENTENCES))
        keys = {"base_url": server.url, "batch": True, "retries": 2, "timeout": 30.0, "concurrency": 2, **keys}
        tree = {
            "name": "small",
            "text": {"source": "corpus.txt", "held_out": 0.3},
            "teacher": {"kind": "openai", "model": MODEL, "chat_template": chat, "server": keys},
        }
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
        return recipes.load(str(tmp_path / "small.yaml"))

    return make


def stored(tmp_path: Path) -> dict[tuple[str, str], Reading]:
    found = [reading for part in every(tmp_path / "run" / "readings") for reading in part]
    assert len({r.key for r in found}) == len(found)
    return {(r.text, r.behavior): r for r in found}


def complete(tmp_path: Path, *but: str) -> bool:
    readings = stored(tmp_path)
    wanted = {s for s in SENTENCES if s not in but}
    return (
        {r.text for r in readings.values() if r.raw == f" about {r.text}" and r.finished} == wanted
        and len(readings) == 20
        and {(r.prompt_tokens, r.new_tokens) for r in readings.values() if r.text in wanted} == {(100, 3)}
    )


def keys(batch: Batch) -> list[str]:
    return [line["custom_id"] for line in batch.answers]


def test_the_read_step_asks_by_files_what_it_would_ask_directly(
    brd_here: Callable[..., Any],
    server: Server,
    provider: Provider,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    recipe()
    done = brd_here("read", "small.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert complete(tmp_path)
    assert provider.seen["direct"] == 0
    counts = json.loads((tmp_path / "run" / "steps" / "read.json").read_text())["result"]["counts"]
    assert {k: counts[k] for k in ("ner_asked", "ner_known_before", "prompt_tokens", "cached_tokens")} == {
        **{"ner_asked": 10, "ner_known_before": 0, "prompt_tokens": 2000, "cached_tokens": 1600}
    }
    [batch] = provider.batches.values()
    assert batch.endpoint == "/v1/completions"
    lines = {(line["body"]["prompt"], line["url"], line["method"]): line for line in batch.requests}
    assert {line["custom_id"] for line in batch.requests} == {r.key for r in stored(tmp_path).values()}
    # Directly, into another folder: the same prompts and the same keys.
    sets = ("--set", "teacher.server.batch=false", "--set", "reading.known=[]")
    done = brd_here("read", "small.yaml", "--out", "other", *sets)
    assert done.returncode == 0, done.stderr
    direct = {(asked.body["prompt"], asked.path, "POST"): asked.body for asked in server.questions()}
    assert {key: line["body"] for key, line in lines.items()} == direct
    others = {r.key for part in every(tmp_path / "other" / "readings") for r in part}
    assert others == {r.key for r in stored(tmp_path).values()}
    # Another time, by either way, there is nothing to ask.
    before = len(server.asked)
    for batch_too in ("true", "false"):
        done = brd_here("read", "small.yaml", "--out", "run", "--set", f"teacher.server.batch={batch_too}")
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stderr
    assert len(server.asked) == before


def test_a_conversation(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    batches.read_recipe(recipe(chat=True), tmp_path / "run")
    # One question beforehand, whether there is a system message.
    assert provider.seen["direct"] == 1
    [batch] = provider.batches.values()
    assert batch.endpoint == "/v1/chat/completions"
    assert batch.requests[0]["body"]["messages"][0]["role"] == "system"
    assert len(stored(tmp_path)) == 20


def test_files_are_no_larger_than_the_provider_takes(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    counts = batches.read_recipe(recipe(batch_requests=6), tmp_path / "run", lambda *now: told.append(now))
    assert [len(batch.requests) for batch in provider.batches.values()] == [6, 6, 6, 2]
    assert complete(tmp_path)
    assert counts["qra_asked"] == 10
    assert told[-1] == ("batches", 20, 20)
    largest = max(map(len, provider.files.values()))
    monkeypatch.setattr(batches, "MOST_BYTES", largest // 2)
    provider.files.clear()
    batches.read_recipe(recipe(revision="another teacher"), tmp_path / "run")
    uploaded = [text for name, text in provider.files.items() if name.startswith("file-")]
    assert len(uploaded) > 4
    assert max(map(len, uploaded)) <= largest // 2


def torn(batch: Batch) -> None:
    whole = b"".join(json.dumps(line).encode() + b"\n" for line in batch.answers)
    batch.raw = whole[:-40]


def no_answer(batch: Batch, line: Line, status: int, body: Any) -> None:
    batch.answers.remove(line)
    response = {"status_code": status, "request_id": "r", "body": body}
    batch.errors.append({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None})


FAULTS: dict[str, tuple[Callable[[Batch], Any], int]] = {
    # What is done to the first batch, and how many requests have to be asked again.
    "out of order": (lambda b: b.answers.reverse(), 0),
    "missing": (lambda b: b.answers.pop(3), 1),
    "twice": (lambda b: b.answers.insert(2, b.answers[7]), 0),
    "twice, the first an error": (
        lambda b: b.answers.insert(0, {**b.answers[7], "response": {"status_code": 500, "body": {}}}),
        0,
    ),
    "torn": (torn, 1),
    "of something else": (lambda b: b.answers.append({**b.answers[0], "custom_id": "nobody"}), 0),
    "no reply": (lambda b: b.answers[4]["response"].update(body={"choices": []}), 1),
    "no JSON object": (lambda b: b.answers.__setitem__(0, [1, 2]), 1),  # type: ignore[call-overload]
    "500": (lambda b: no_answer(b, b.answers[2], 500, {"error": {"message": "oh"}}), 1),
    "429": (lambda b: no_answer(b, b.answers[2], 429, "slow down"), 1),
    "no files": (lambda b: b.answers.__delitem__(slice(1, None)), 19),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_no_answer_is_asked_again_and_nothing_else(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, fault: str
) -> None:
    change, again = FAULTS[fault]
    provider.change = lambda batch: change(batch) if len(provider.batches) == 1 else None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert [len(batch.requests) for batch in provider.batches.values()] == [20, *([again] if again else [])]


def test_a_request_that_never_has_an_answer_ends_it(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    poison: list[str] = []

    def change(batch: Batch) -> None:
        poison.extend(keys(batch)[3:4] if not poison else [])
        for line in [line for line in batch.answers if line["custom_id"] in poison]:
            no_answer(batch, line, 500, {"error": {"message": "poison\nof a kind"}})

    provider.change = change
    with pytest.raises(TeacherUnreachable, match=r"no answer to 1 requests \(poison of a kind \(500\)\)"):
        batches.read_recipe(recipe(), tmp_path / "run")
    assert len(stored(tmp_path)) == 19
    provider.change = lambda batch: None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert [len(batch.requests) for batch in provider.batches.values()] == [20, 1, 1]


def expire(batch: Batch, kept: int, status: str = "expired") -> None:
    batch.status = status
    lost, batch.answers = batch.answers[kept:], batch.answers[:kept]
    failure = {"code": "batch_expired", "message": "This request could not be executed before the completion window."}
    batch.errors = [{"custom_id": line["custom_id"], "response": None, "error": failure} for line in lost]


def test_an_expired_batch_gives_what_it_has(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    provider.change = lambda batch: expire(batch, 12) if len(provider.batches) == 1 else None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert [len(batch.requests) for batch in provider.batches.values()] == [20, 8]
    assert set(provider.paid.values()) == {1}


def test_a_batch_that_expired_with_nothing_is_not_made_again_at_once(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    provider.change = lambda batch: expire(batch, 0)
    with pytest.raises(TeacherUnreachable, match=r"no answer to 20 requests \(This request could not be executed"):
        batches.read_recipe(recipe(), tmp_path / "run")
    assert len(provider.batches) == 1
    provider.change = lambda batch: None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)


def test_a_cancelled_batch_is_taken_and_said(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    provider.change = lambda batch: expire(batch, 5, "cancelled")
    with pytest.raises(TeacherUnreachable, match="batch_0 was cancelled after 5 of 20 answers, which are kept"):
        batches.read_recipe(recipe(), tmp_path / "run")
    assert len(stored(tmp_path)) == 5
    provider.change = lambda batch: None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert set(provider.paid.values()) == {1}


def test_a_refused_sentence_counts_as_malformed_and_refusing_all_is_an_error(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_long = {"error": {"message": "maximum context length is 64 tokens", "code": "context_length_exceeded"}}
    provider.change = lambda batch: [no_answer(batch, line, 400, too_long) for line in list(batch.answers)]
    with pytest.raises(BrdError, match="400: maximum context length is 64 tokens; it refuses any sentence") as caught:
        batches.read_recipe(recipe(), tmp_path / "run")
    assert caught.value.exit_code == 2
    assert stored(tmp_path) == {}
    long = SENTENCES[4]

    def change(batch: Batch) -> None:
        asked = {request["custom_id"] for request in batch.requests if long in request["body"]["prompt"]}
        for line in [line for line in batch.answers if line["custom_id"] in asked]:
            no_answer(batch, line, 400, too_long)

    provider.change = change
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path, long)
    refused = stored(tmp_path)[long, "ner"]
    assert (refused.raw, refused.finished, refused.verdict, refused.new_tokens) == ("", False, "malformed", 0)
    assert "refused 2 sentences, which count as malformed (maximum context" in capsys.readouterr().err


def test_a_refusal_that_comes_later_is_still_the_sentences_fault(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    def change(batch: Batch) -> None:
        status = 500 if len(provider.batches) == 1 else 400
        for line in batch.answers[:1]:
            no_answer(batch, line, status, {"error": {"message": "no"}})

    provider.change = change
    batches.read_recipe(recipe(), tmp_path / "run")
    assert Counter(r.finished for r in stored(tmp_path).values()) == {True: 19, False: 1}


def test_a_server_without_batches_and_a_file_that_is_gone(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    provider.fault = lambda kind: error(404, "Not Found") if kind == "upload" else None
    with pytest.raises(BrdError, match=r"has no batch interface .*teacher\.server\.batch should be false"):
        batches.read_recipe(recipe(), tmp_path / "run")
    provider.fault = once("create", error(500, "oh"))
    with pytest.raises(TeacherUnreachable):
        batches.read_recipe(recipe(), tmp_path / "run")
    provider.fault = once("create", error(400, "No such file"))
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert provider.seen["upload"] == 3
    # What it would refuse with any file is not uploaded again and again.
    provider.fault = lambda kind: error(400, "not this model") if kind == "create" else None
    for _ in range(2):
        with pytest.raises(BrdError, match="not this model"):
            batches.read_recipe(recipe(revision="2"), tmp_path / "run")
    assert provider.seen["upload"] == 3 + 2


def test_a_batch_that_is_not_accepted(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def change(batch: Batch) -> None:
        batch.answers, batch.status = [], "failed"
        batch.failure = {"code": "invalid_model", "message": "The model is not\nthere."}

    provider.change = change
    with pytest.raises(BrdError, match=r"batch batch_0 was not accepted: The model is not there\."):
        batches.read_recipe(recipe(), tmp_path / "run")
    provider.change = lambda batch: None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)


def test_a_full_queue_is_waited_for(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def change(batch: Batch) -> None:
        waiting = [b for b in provider.batches.values() if b.looks >= 0 and b is not batch]
        batch.looks = 2
        if waiting:
            batch.answers, batch.status, batch.looks = [], "failed", 0
            batch.failure = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}

    provider.change = change
    batches.read_recipe(recipe(batch_requests=10), tmp_path / "run")
    assert complete(tmp_path)
    assert [len(b.answers) for b in provider.batches.values()] == [10, 0, 10]
    assert provider.seen["upload"] == 2

    def never(batch: Batch) -> None:
        batch.answers, batch.status = [], "failed"
        batch.failure = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}

    provider.change = never
    with pytest.raises(TeacherUnreachable, match=r"Enqueued token limit reached\.; smaller batches"):
        batches.read_recipe(recipe(revision="2"), tmp_path / "run")


def once(kind: str, reply: Reply, times: int = 1) -> Callable[[str], Reply | None]:
    left = Counter({kind: times})

    def fault(found: str) -> Reply | None:
        left[found] -= 1
        return reply if left[found] >= 0 else None

    return fault


@pytest.mark.parametrize("kind", ["upload", "create", "look", "download"])
def test_what_passes_is_repeated(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, kind: str) -> None:
    provider.fault = once(kind, error(429, "slow down", Retry_After="0.01"), 2)
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert len(provider.batches) == 1


@pytest.mark.parametrize(
    "reply", [Reply({}, cut=0), Reply({"id": 7}), error(500, "oh"), Reply(b"<html>", 502)], ids=str
)
def test_a_batch_whose_id_is_lost_is_found_again(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, reply: Reply
) -> None:
    provider.lose = once("create", reply)
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert len(provider.batches) == 1
    assert provider.seen["create"] == 1


def test_a_batch_that_was_not_made_is_made_by_the_next_call(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    provider.fault = once("create", error(500, "oh"))
    with pytest.raises(TeacherUnreachable, match="500: oh"):
        batches.read_recipe(recipe(), tmp_path / "run")
    assert provider.batches == {}
    # Others of the same account, more than a page of the list has.
    for n in range(150):
        provider.batches[f"other_{n}"] = Batch(f"other_{n}", [], {"brd": "another run"}, "")
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert provider.seen["upload"] == 1
    assert provider.seen["list"] == 1 + 2


def test_where_batches_are_not_listed_none_is_made_twice(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    provider.lose = once("create", Reply({}, cut=0))
    provider.fault = lambda kind: error(405, "no") if kind == "list" else None
    for _ in range(2):
        with pytest.raises(BrdError, match="whether a batch was made is not known"):
            batches.read_recipe(recipe(), tmp_path / "run")
    assert len(provider.batches) == 1


def test_a_server_that_restarts_while_batches_run(
    server: Server, provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MISSED", 10**6)

    def fault(kind: str) -> Reply | None:
        if kind == "look" and provider.seen["look"] == 2:
            server.go_down()
            server.come_back()
        return None

    provider.fault = fault
    provider.change = lambda batch: setattr(batch, "looks", 4)
    batches.read_recipe(recipe(retries=0), tmp_path / "run")
    assert complete(tmp_path)
    assert len(provider.batches) == 1


def test_a_server_that_is_gone_for_good_and_a_batch_that_is_lost(
    server: Server, provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MISSED", 3)
    provider.fault = lambda kind: error(503, "down") if kind == "look" and provider.seen["look"] > 1 else None
    provider.change = lambda batch: setattr(batch, "looks", 4)
    with pytest.raises(TeacherUnreachable, match="503: down"):
        batches.read_recipe(recipe(retries=0), tmp_path / "run")
    assert provider.seen["look"] == 1 + 4
    provider.fault = lambda kind: None
    made = dict(provider.batches)
    provider.batches.clear()
    with pytest.raises(BrdError, match=r"no batch batch_0 .*part-00000\.json away"):
        batches.read_recipe(recipe(), tmp_path / "run")
    provider.batches |= made
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert set(provider.paid.values()) == {1}


def test_a_key_that_is_not_accepted(provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    provider.fault = lambda kind: error(401, "no key")
    with pytest.raises(BrdError, match=r"teacher\.server\.key_variable should name"):
        batches.read_recipe(recipe(), tmp_path / "run")


@pytest.mark.parametrize("moment", ["upload", "create", "look", "download"])
def test_killed_at_any_moment_it_goes_on(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, moment: str
) -> None:
    """The server does what it was asked; the client is killed before the reply comes."""
    recipe()
    reached = threading.Event()

    def lose(kind: str) -> Reply | None:
        if kind == moment:
            reached.set()
            return Reply(hang=True)
        return None

    provider.lose = lose
    provider.change = lambda batch: setattr(batch, "looks", 0)
    process = subprocess.Popen(
        [sys.executable, "-m", "brd", "read", "small.yaml", "--out", "run"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    while not reached.wait(0.1):
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    provider.lose = lambda kind: None
    batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    assert len(provider.batches) == 1
    assert set(provider.paid.values()) == {1}
    assert provider.seen["upload"] == 1 + (moment == "upload")


def test_a_call_that_fails_between_the_store_and_its_own_note_takes_nothing_twice(
    provider: Provider, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(part: batches.Part, answers: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batches.Part, "end", end)
        with pytest.raises(KeyboardInterrupt):
            batches.read_recipe(recipe(), tmp_path / "run")
    assert complete(tmp_path)
    counts = batches.read_recipe(recipe(), tmp_path / "run")
    assert counts["ner_asked"] == 0
    assert complete(tmp_path)
    assert len(provider.batches) == 1


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["a", 200, 400, "b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["custom_id", "response", "status_code", "body", "error", "message"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | json_like.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_any_line_is_an_answer_a_refusal_or_nothing(found: list[bytes]) -> None:
    asked = {k: Question(k, "ner", "p", "d", 0, 0, 0, 1, "A.", "Sentence: A.") for k in ("a", "b")}

    def read(reply: Any, suffix: str) -> Answer:
        if reply is None:
            raise ValueError("none")
        return Answer(str(reply), 1, 1, True)

    one = batches._Found(asked, lambda name: Asking("/x", lambda suffix: {}, read))
    for line in found:
        one.add(line)
    assert len(one.answers) + len(one.refused) + len(one.failures()) == 2
    assert {type(message) for _, message in one.refused.values()} <= {str}
