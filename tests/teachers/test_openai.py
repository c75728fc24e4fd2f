"""The teacher on a server: whatever the server does, nothing is lost, nothing is asked twice beyond the retries."""

import itertools
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brd.errors import BrdError, TeacherUnreachable
from brd.reading.behavior import load_behaviors
from brd.sections.teacher import Teacher as Settings
from brd.teachers import client, connection, openai, reply
from brd.teachers.gate import Gate
from brd.teachers.openai import OpenAI
from brd.teachers.teacher import Answer
from openai_server import MODEL, Asked, Reply, Server, completion, default, error

PREFIX = "Do this.\n\nSentence: A.\nEntities: none\n\nSentence: B.\nEntities: B (other)\n\n"
KEY = "sk-" + "secret" * 5


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(client, "LAST_ANSWERS", 1.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def teacher(server: Server) -> Iterator[Callable[..., OpenAI]]:
    """Makes teachers on the server; keyword arguments are keys of ``teacher.server`` (``chat``: as a conversation)."""
    made: list[OpenAI] = []

    def make(chat: bool = False, key: str | None = None, **keys: Any) -> OpenAI:
        keys = {"base_url": server.url, "concurrency": 8, "retries": 4, "timeout": 30.0, **keys}
        made.append(OpenAI(Settings(kind="openai", model=MODEL, chat_template=chat, server=keys), key))
        return made[-1]

    yield make
    for one in made:
        one.close()


def sentences(count: int) -> list[str]:
    return [f"Sentence number {n}." for n in range(count)]


def suffixes(count: int) -> list[str]:
    return [f"Sentence: {s}\nEntities:" for s in sentences(count)]


def ask(teacher: OpenAI, count: int) -> dict[int, Answer]:
    """All answers, of which none may come twice."""
    found = list(teacher.answer(PREFIX, suffixes(count), stop=("\n",), max_new_tokens=12))
    assert len(dict(found)) == len(found)
    return dict(found)


def until_it_raises(teacher: OpenAI, count: int, kind: type[BrdError]) -> tuple[dict[int, Answer], str]:
    """The answers that come before the error, and the error."""
    found: dict[int, Answer] = {}
    answers = teacher.answer(PREFIX, suffixes(count), stop=("\n",), max_new_tokens=12)
    with pytest.raises(kind) as caught:
        found.update(answers)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return found, str(caught.value)


def complete(found: dict[int, Answer], count: int) -> bool:
    return {n: a.text for n, a in found.items()} == {n: f" about {s}" for n, s in enumerate(sentences(count))}


# What is asked.


def test_a_prompt_is_prefix_and_suffix_greedy_and_counted(server: Server, teacher: Callable[..., OpenAI]) -> None:
    found = ask(teacher(key=KEY), 5)
    assert complete(found, 5)
    assert set(found.values()) == {
        Answer(f" about {s}", prompt_tokens=100, new_tokens=3, finished=True, cached_tokens=80) for s in sentences(5)
    }
    assert sorted(a.body["prompt"] for a in server.asked) == sorted(PREFIX + s for s in suffixes(5))
    for asked in server.asked:
        assert asked.path == "/v1/completions"
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        del asked.body["prompt"]
        assert asked.body == {"model": MODEL, "max_tokens": 12, "temperature": 0, "stop": ["\n"]}


def test_no_key_is_sent_unless_a_variable_is_named(
    server: Server, teacher: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = Settings(kind="openai", model=MODEL, server={"base_url": server.url})
    one = openai.load(settings)
    ask(one, 1)
    one.close()
    assert "authorization" not in server.asked[0].headers


def test_extra_keys_join_and_null_takes_one_away(server: Server, teacher: Callable[..., OpenAI]) -> None:
    ask(teacher(extra={"seed": 7, "max_tokens": None, "max_completion_tokens": 90}), 1)
    del server.asked[0].body["prompt"]
    assert server.asked[0].body == {
        **{"model": MODEL, "temperature": 0, "stop": ["\n"], "seed": 7, "max_completion_tokens": 90}
    }


@pytest.mark.parametrize("name", ["ner", "qra"])
def test_a_conversation_has_the_exemplars_as_turns(server: Server, teacher: Callable[..., OpenAI], name: str) -> None:
    behavior = load_behaviors([name])[name]
    line = {"ner": " Oslo (location)", "qra": " What fell?\nAnswer: Rain."}[name]
    # With the cue and without, with white space before.
    said = {
        0: behavior.cue + line,
        1: line.lstrip(),
        2: f"\n\n{behavior.cue}{line}",
        3: f"{behavior.cue}{line}\n\nMore",
    }
    texts = [f"It rained {n} times." for n in said]
    server.plan = lambda asked: completion(asked, said[texts.index(asked.sentence)] if asked.sentence in texts else ".")
    answers = teacher(chat=True, extra={"stop": None}).answer(
        behavior.prefix, [behavior.suffix(t) for t in texts], stop=behavior.stop, max_new_tokens=12
    )
    assert {n: a.text.strip() for n, a in answers} == dict.fromkeys(said, line.strip())
    trial, *asked = server.asked
    assert trial.sentence == "."
    for one in asked:
        system, *turns = one.body["messages"]
        assert system == {"role": "system", "content": behavior.prefix.split("\n\n")[0]}
        assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert all(m["content"].startswith(behavior.cue) for m in turns[1::2])
        assert turns[-1]["content"] == f"Sentence: {one.sentence}"
        assert "stop" not in one.body


def test_a_template_without_system_gets_the_task_in_the_first_turn(
    server: Server, teacher: Callable[..., OpenAI]
) -> None:
    def plan(asked: Asked) -> Reply:
        if asked.body["messages"][0]["role"] == "system":
            return error(400, "System role not supported")
        return completion(asked, "Entities: none")

    server.plan = plan
    one = teacher(chat=True)
    assert {a.text for a in ask(one, 3).values()} == {" none"}
    assert server.asked[-1].body["messages"][0] == {"role": "user", "content": "Do this.\n\nSentence: A."}
    # Tried once: with a system, then without.
    assert len(server.asked) == 2 + 3
    ask(one, 2)
    assert len(server.asked) == 2 + 3 + 2


def test_answers_come_as_they_are_there(server: Server, teacher: Callable[..., OpenAI]) -> None:
    server.plan = lambda asked: Reply(hang=True) if asked.sentence in sentences(4)[2:3] else default(asked)
    answers = teacher().answer(PREFIX, suffixes(30), stop=("\n",), max_new_tokens=12)
    first = dict(next(answers) for _ in range(29))
    assert 2 not in first
    server.release()
    assert complete(first | dict(answers), 30)


def test_memory_is_bounded_by_how_fast_answers_are_taken(
    server: Server, teacher: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "AHEAD", 6)
    answers = teacher(concurrency=4).answer(PREFIX, suffixes(200), stop=("\n",), max_new_tokens=12)
    found = dict([next(answers)])
    # What another teacher is answered in between says that there was time for more.
    assert complete(ask(teacher(concurrency=1), 50), 50)
    assert len(server.asked) - 50 <= 1 + 6 + 4
    assert complete(found | dict(answers), 200)


def test_nothing_is_asked_where_there_is_nothing_to_ask(server: Server, teacher: Callable[..., OpenAI]) -> None:
    assert ask(teacher(chat=True), 0) == {}
    assert server.asked == []


def test_an_abandoned_call_leaves_the_teacher_usable(server: Server, teacher: Callable[..., OpenAI]) -> None:
    server.plan = lambda asked: Reply(hang=True) if asked.sentence in sentences(9)[1:] else default(asked)
    one = teacher()
    answers = one.answer(PREFIX, suffixes(9), stop=("\n",), max_new_tokens=12)
    assert next(answers)[0] == 0
    answers.close()  # type: ignore[attr-defined]
    server.plan = default
    assert complete(ask(one, 9), 9)
    one.close()
    one.close()


# What a server says.


def test_ends_of_answers(server: Server, teacher: Callable[..., OpenAI]) -> None:
    says = [
        (" cut of", "length"),
        ("", "stop"),
        (" a\n b", "length"),
        (" a", None),
        (" a", "eos_token"),
        ("", "filter"),
    ]
    server.plan = lambda asked: completion(asked, *says[sentences(6).index(asked.sentence)])
    found = ask(teacher(), 6)
    texts = {0: (" cut of", False), 1: ("", True), 2: (" a", True), 3: (" a", True), 4: (" a", True), 5: ("", False)}
    assert {n: (a.text, a.finished) for n, a in found.items()} == texts


def test_what_no_file_can_hold_is_made_harmless(server: Server, teacher: Callable[..., OpenAI]) -> None:
    usages: list[Any] = [
        *({"prompt_tokens": n, "completion_tokens": n} for n in (-1, 2**31, True, 1.5, "9", None)),
        *(None, [], {"prompt_tokens_details": 3}),
    ]
    server.plan = lambda asked: completion(asked, " \ud800 ü", usage=usages[sentences(9).index(asked.sentence)])
    found = ask(teacher(), 9)
    assert set(found.values()) == {Answer(" ? ü", 0, 0, True)}


SHAPES: list[Any] = [
    *(None, [], "text", 7, {}, {"choices": None}, {"choices": []}, {"choices": [7]}, {"choices": [{}]}),
    *({"choices": [{"text": None}]}, {"choices": [{"text": 3}]}, {"error": {"message": "busy"}}),
    *({"choices": [{"text": "a", "finish_reason": "abort"}]}, b"[" * 100_000, b"", b"<html>busy</html>"),
    b'{"choices": [{"text": "a',
]
FAULTS: dict[str, Callable[[Asked], Reply]] = {
    "reset": lambda asked: Reply({"choices": "x" * 1000}, cut=300),
    "reset before a byte": lambda asked: Reply({}, cut=0),
    "429": lambda asked: error(429, "slow down"),
    "429 with seconds": lambda asked: error(429, "slow down", Retry_After="0.01"),
    "429 with a past date": lambda asked: error(429, "slow down", Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"),
    "429 with nonsense": lambda asked: error(429, "slow down", Retry_After="soon"),
    "503": lambda asked: error(503, "loading the model"),
    "500": lambda asked: error(500, "oh"),
    "408": lambda asked: Reply(b"", 408),
    "html": lambda asked: Reply(b"<html>Bad gateway</html>", 502),
    "endless": lambda asked: completion(asked, "x" * 70_000, "length"),
    **{f"shape {n}": lambda asked, shape=shape: Reply(shape) for n, shape in enumerate(SHAPES)},  # type: ignore[misc]
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_one_repetition(
    server: Server, teacher: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(client, "LONGEST_REPLY", 60_000)
    faulty = sentences(12)[::3]
    server.plan = lambda asked: (FAULTS[fault] if asked.sentence in faulty and asked.times == 1 else default)(asked)
    found = ask(teacher(), 12)
    assert complete(found, 12)
    assert server.times == {s: 1 + (s in faulty) for s in sentences(12)}
    assert {n: a.retries for n, a in found.items()} == {n: int(n % 3 == 0) for n in range(12)}


def test_a_burst_of_errors_is_sat_out(server: Server, teacher: Callable[..., OpenAI]) -> None:
    server.plan = lambda asked: error(500, "oh") if 10 <= len(server.asked) < 25 else default(asked)
    found = ask(teacher(), 40)
    assert complete(found, 40)
    assert len(server.asked) == 40 + 15 == 40 + sum(a.retries for a in found.values())


def test_a_hanging_answer_and_one_that_drips_too_slowly_are_asked_again(
    server: Server, teacher: Callable[..., OpenAI]
) -> None:
    quick, hanging, slow = sentences(3)

    def plan(asked: Asked) -> Reply:
        if asked.sentence == hanging and asked.times == 1:
            return Reply(hang=True)
        reply = default(asked)
        reply.drip = {slow: 0.3 if asked.times == 1 else 0.0, quick: 0.001}.get(asked.sentence, 0.0)
        return reply

    server.plan = plan
    assert complete(ask(teacher(timeout=1.0), 3), 3)
    assert server.times == {hanging: 2, slow: 2, quick: 1}


def test_retry_after_holds_all_requests_back(server: Server, teacher: Callable[..., OpenAI]) -> None:
    came: list[float] = []

    def plan(asked: Asked) -> Reply:
        came.append(time.monotonic())
        return error(429, "slow down", Retry_After="0.3") if len(came) == 4 else default(asked)

    server.plan = plan
    assert complete(ask(teacher(concurrency=2), 8), 8)
    assert len(came) == 9
    # One other may have been under way.
    assert sum(moment < came[3] + 0.28 for moment in came) <= 5


def test_a_server_that_wants_too_much_patience_is_left(server: Server, teacher: Callable[..., OpenAI]) -> None:
    server.plan = lambda asked: error(429, "limit", Retry_After="3600") if len(server.asked) > 5 else default(asked)
    found, message = until_it_raises(teacher(concurrency=1), 9, TeacherUnreachable)
    assert complete(found, 5)
    assert "come back in 3600 s" in message


def test_concurrency_is_what_the_server_bears(server: Server, teacher: Callable[..., OpenAI]) -> None:
    def plan(asked: Asked) -> Reply:
        reply = default(asked) if server._at_once <= 6 else error(429, "too many")
        reply.drip = 0.0005
        return reply

    server.plan = plan
    one = teacher(concurrency=64, retries=20)
    assert complete(ask(one, 300), 300)
    # Without adaptation 58 of 64 would be refused again and again.
    assert server.most_at_once <= 32
    assert 3 <= one.client._gate.limit <= 13
    assert len(server.asked) < 1.5 * 300


def test_a_fast_server_gets_as_many_as_the_recipe_allows(server: Server, teacher: Callable[..., OpenAI]) -> None:
    one = teacher(concurrency=16)
    assert complete(ask(one, 100), 100)
    assert one.client._gate.limit == 16
    assert server.most_at_once <= 16


def test_the_gate_doubles_halves_once_a_round_creeps_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("brd.teachers.gate.time.monotonic", lambda: float(next(clock)))
    one = Gate(100)
    for limit in (1, 2, 4, 8, 16):
        assert one.limit == limit
        for _ in range(limit):
            one.answered()
    began = float(next(clock))
    for _ in range(32):
        one.overloaded(began)
    assert one.limit == 16
    for _ in range(16):
        one.answered()
    assert 16.5 < one.limit < 17
    # An outage: no answer between the cuts.
    for _ in range(9):
        one.overloaded(float(next(clock)))
    assert one.limit == 1
    for _ in range(7):
        one.answered()
    assert one.limit == 8
    for _ in range(9):
        one.answered()
    assert 9.5 < one.limit < 10.5


def test_the_gate_lets_in_by_turns_and_forgets_who_goes_away() -> None:
    import asyncio

    async def play() -> None:
        one, came = Gate(2), list[str]()

        async def guest(name: str) -> None:
            await one.enter()
            came.append(name)

        async def settle() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        await guest("a")
        b, c, _ = [asyncio.create_task(guest(name)) for name in "bcd"]
        await settle()
        assert came == ["a"]
        b.cancel()
        await settle()
        # c is let in, and goes away in that moment.
        one.leave()
        c.cancel()
        await settle()
        assert came == ["a", "d"]
        # While it is closed nobody comes, not even who had a place.
        one.close_for(60)
        one.leave()
        f, g = [asyncio.create_task(guest(name)) for name in "fg"]
        await settle()
        f.cancel()
        await settle()
        one._closed_until = -1.0
        g.cancel()
        await settle()
        await guest("h")
        assert came == ["a", "d", "h"]
        assert one._under_way == 1

    asyncio.run(play())


@given(st.text() | st.sampled_from(["-1", "1e9", "٣", "Mon, 99 Jan 0000", "31 Dec 9999 23:59:59", "1 Jan 1 1:1 -9999"]))
def test_retry_after_is_seconds_or_nothing(value: str) -> None:
    found = reply.retry_after({"Retry-After": value, "Date": value[::-1]})
    assert found is None or 0 <= found < 1e12


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("120", 120.0), ("0", 0.0), ("1.5", 1.5), ("", None), ("soon", None), ("-1", None)),
        ("Sun, 06 Nov 1994 08:51:07 GMT", 90.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:51:07 GMT", 90.0),
    ],
)
def test_retry_after_by_the_servers_clock(value: str, seconds: float | None) -> None:
    assert reply.retry_after({"Retry-After": value, "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}) == seconds


def test_retry_after_by_our_own_clock() -> None:
    import email.utils

    later = email.utils.formatdate(time.time() + 50, usegmt=True)
    found = reply.retry_after({"Retry-After": later})
    assert found is not None
    assert 45 < found <= 50


# What cannot heal.


def test_a_server_that_is_not_there(server: Server, teacher: Callable[..., OpenAI]) -> None:
    server.stop()
    found, message = until_it_raises(teacher(retries=100), 3, TeacherUnreachable)
    assert found == {}
    assert TeacherUnreachable.exit_code == 3
    assert f"{server.url}: cannot be reached" in message
    assert "base_url" in message
    server.start()


def test_a_server_that_goes_for_good(server: Server, teacher: Callable[..., OpenAI]) -> None:
    def plan(asked: Asked) -> Reply:
        if len(server.asked) == 20:
            server.go_down()
        return default(asked)

    server.plan = plan
    found, message = until_it_raises(teacher(), 60, TeacherUnreachable)
    # The connections that were reset took what was on them.
    assert 10 <= len(found) < 20
    assert {n: a.text for n, a in found.items()} == {n: f" about {sentences(60)[n]}" for n in found}
    assert "no answer in 5 tries" in message
    assert set(server.times.values()) == {1}
    server.start()


def test_a_server_that_restarts_in_between(
    server: Server, teacher: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.02)

    def plan(asked: Asked) -> Reply:
        if len(server.asked) == 20:
            server.go_down()
            server.come_back()
        return default(asked)

    server.plan = plan
    one = teacher(retries=8)
    found = ask(one, 60)
    assert complete(found, 60)
    again = {s for s, times in server.times.items() if times > 1}
    assert 1 <= len(again) <= 8
    assert len(server.asked) == 60 + len(again)


def test_errors_that_stay_end_it_and_what_was_answered_comes_first(
    server: Server, teacher: Callable[..., OpenAI]
) -> None:
    server.plan = lambda asked: error(500, "oh") if len(server.asked) > 20 else default(asked)
    found, message = until_it_raises(teacher(), 60, TeacherUnreachable)
    assert len(found) == 20
    assert "no answer in 5 tries (500: oh)" in message
    assert max(server.times.values()) <= 5


def test_one_sentence_that_always_fails_does_not_keep_the_others(
    server: Server, teacher: Callable[..., OpenAI]
) -> None:
    bad = sentences(60)[3]
    server.plan = lambda asked: error(500, "poison") if asked.sentence == bad else default(asked)
    found, message = until_it_raises(teacher(), 60, TeacherUnreachable)
    assert set(found) == set(range(60)) - {3}
    assert server.times == {s: 5 if s == bad else 1 for s in sentences(60)}
    assert "1 requests failed 5 times each while others were answered (500: poison)" in message


def test_there_is_an_end_to_what_failures_may_cost(
    server: Server, teacher: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPEATED", 0.0)
    server.plan = lambda asked: error(500, "oh") if asked.times == 1 else default(asked)
    found, message = until_it_raises(teacher(concurrency=2, retries=3), 60, TeacherUnreachable)
    assert "13 failed requests" in message
    assert 11 <= len(found) <= 13
    assert len(server.asked) <= len(found) + 13 + 2
    # Being told to slow down costs nothing, however often.
    server.plan = lambda asked: error(429, "slow") if asked.times % 2 else default(asked)
    server.times.clear()
    assert complete(ask(teacher(concurrency=2, retries=3), 60), 60)


def test_a_wrong_model_is_told_with_the_right_ones(server: Server, teacher: Callable[..., OpenAI]) -> None:
    missing = error(404, "The model `reader-7` does not exist.", "model_not_found")
    server.plan = lambda asked: missing if asked.body.get("model") == "reader-7" else default(asked)
    one = teacher()
    one._settings = one._settings.model_copy(update={"model": "reader-7"})
    found, message = until_it_raises(one, 9, BrdError)
    assert found == {}
    assert "404: The model `reader-7` does not exist." in message
    assert f"did you mean '{MODEL}'" in message
    assert len(server.questions()) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (401, "invalid_api_key", BrdError, "the key in the environment variable READER_KEY is not accepted"),
        (403, None, BrdError, "READER_KEY is not accepted"),
        (402, None, TeacherUnreachable, "what was answered is kept"),
        (429, "insufficient_quota", TeacherUnreachable, "what was answered is kept"),
        (404, None, BrdError, "it has the model, but not in this way: set teacher.chat_template to true"),
        (400, None, BrdError, "it refuses any sentence"),
        (307, None, BrdError, "moved to http://elsewhere/v1; teacher.server.base_url should name that address"),
        (451, None, BrdError, "451"),
    ],
)
def test_a_no_that_stays_ends_it_at_once(
    server: Server,
    teacher: Callable[..., OpenAI],
    status: int,
    code: str | None,
    kind: type[BrdError],
    words: str,
) -> None:
    def plan(asked: Asked) -> Reply:
        if len(server.asked) <= 10 or asked.path == "/v1/models":
            return default(asked)
        return error(status, f"expired\nkey {KEY} {'x' * 500}", code, Location="http://elsewhere/v1")

    server.plan = plan
    found, message = until_it_raises(teacher(key=KEY, key_variable="READER_KEY"), 60, kind)
    assert len(found) == 10
    assert words in message
    if status != 307:
        assert "expired key ***" in message
    assert len(message) < 500
    # No more than were under way, and one that tries whether it is the sentence's fault.
    assert len(server.questions()) <= 10 + 2 * 8


def test_answers_that_are_under_way_when_it_ends_are_waited_for(server: Server, teacher: Callable[..., OpenAI]) -> None:
    slow = sentences(60)[20:24]

    def plan(asked: Asked) -> Reply:
        if len(server.asked) > 30:
            return error(401, "expired")
        reply = default(asked)
        reply.drip = 0.03 if asked.sentence in slow else 0.0
        return reply

    server.plan = plan
    found, _ = until_it_raises(teacher(), 60, BrdError)
    assert {20, 21, 22, 23} <= set(found)
    assert len(found) == 30


def test_who_waits_to_ask_again_when_it_ends_is_not_waited_for(
    server: Server, teacher: Callable[..., OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(client, "LONGEST_WAIT", 60.0)
    monkeypatch.setattr(client, "LAST_ANSWERS", 60.0)
    plans = {sentences(9)[3]: error(500, "oh"), sentences(9)[8]: error(401, "expired")}
    server.plan = lambda asked: plans.get(asked.sentence) or default(asked)
    start = time.monotonic()
    found, _ = until_it_raises(teacher(), 9, BrdError)
    assert sorted(found) == [0, 1, 2, 4, 5, 6, 7]
    assert time.monotonic() - start < 20


def test_a_server_that_wants_a_key(server: Server, teacher: Callable[..., OpenAI]) -> None:
    server.plan = lambda asked: error(401, "no key")
    _, message = until_it_raises(teacher(), 9, BrdError)
    assert "teacher.server.key_variable should name" in message
    assert len(server.asked) == 1


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_sentence_that_is_refused_is_an_unfinished_empty_answer(
    server: Server, teacher: Callable[..., OpenAI], capsys: pytest.CaptureFixture[str], chat: bool, status: int
) -> None:
    long = sentences(20)[::10]
    refusal = error(status, "This model's maximum context length is 64 tokens.", "context_length_exceeded")
    server.plan = lambda asked: refusal if asked.sentence in long else default(asked)
    found = ask(teacher(chat=chat), 20)
    assert [n for n, a in found.items() if not a.finished] == [0, 10]
    assert found[0] == found[10] == Answer("", 0, 0, False)
    assert sum(a.finished for a in found.values()) == 18
    # Each refusal is followed by a trial whether a plain prompt is taken; so is a conversation by one at first.
    assert server.times == {**dict.fromkeys(sentences(20), 1), ".": 2 + chat}
    assert "refused 2 sentences, which count as malformed (This model's maximum" in capsys.readouterr().err


@pytest.mark.parametrize("chat", [False, True])
def test_a_prefix_that_is_too_long_is_no_sentences_fault(
    server: Server, teacher: Callable[..., OpenAI], chat: bool
) -> None:
    server.plan = lambda asked: error(400, "maximum context length is 64 tokens")
    found, message = until_it_raises(teacher(chat=chat), 20, BrdError)
    assert found == {}
    assert "maximum context length is 64 tokens; it refuses any sentence" in message
    # The first sentence, one that was let in when it ended, and a plain prompt.
    assert len(server.asked) <= 3
    assert server.times["."] == 1 + chat


# What the server is asked about itself.

TOLD: dict[str, tuple[dict[str, Any], int]] = {
    "vLLM": ({"/v1/models": {"data": [{"id": "x", "max_model_len": 1}, {"id": MODEL, "max_model_len": 2048}]}}, 2048),
    "llama.cpp": ({"/props": {"default_generation_settings": {"n_ctx": 768}}}, 768),
    "TGI": ({"/info": {"max_total_tokens": 1512}}, 1512),
    "nothing": ({}, openai.CONTEXT_LENGTH),
    "nonsense": ({"/v1/models": [3], "/props": {"default_generation_settings": 3}, "/info": "?"}, 4096),
}


@pytest.mark.parametrize("kind", TOLD)
def test_context_length(server: Server, teacher: Callable[..., OpenAI], kind: str) -> None:
    pages, length = TOLD[kind]
    server.plan = lambda asked: Reply(pages[asked.path]) if asked.path in pages else default(asked)
    assert teacher().context_length == length
    assert teacher(context_length=99).context_length == 99


COUNTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "vLLM": lambda body: {"count": len(body["prompt"].split()), "max_model_len": 9},
    "llama.cpp": lambda body: {"tokens": body["content"].split()},
    "TGI": lambda body: [{"id": 1, "text": w} for w in body["inputs"].split()],
}


@pytest.mark.parametrize("kind", COUNTS)
def test_tokens_are_counted_by_the_server(server: Server, teacher: Callable[..., OpenAI], kind: str) -> None:
    def plan(asked: Asked) -> Reply:
        try:
            return Reply(COUNTS[kind](asked.body))
        except KeyError:
            return error(422, "missing field")

    server.plan = plan
    one = teacher()
    assert one.count_tokens("one two three four") == 4
    before = len(server.asked)
    assert one.count_tokens("one two") == 2
    assert len(server.asked) == before + 1
    assert {asked.path for asked in server.asked} == {"/tokenize"}


def test_tokens_are_estimated_where_the_server_does_not_count(teacher: Callable[..., OpenAI]) -> None:
    one = teacher()
    assert [one.count_tokens(text) for text in ("", "a", "abcd", "ü" * 6, "\ud800")] == [0, 1, 2, 4, 1]


def test_identity_holds_what_can_change_an_answer() -> None:
    base: dict[str, Any] = {"kind": "openai", "model": MODEL, "server": {"base_url": "http://a/v1"}}

    def told(server: dict[str, Any] | None = None, **keys: Any) -> tuple[str, str]:
        made = Settings(**{**base, **keys, "server": {**base["server"], **(server or {})}})
        return json.dumps(openai.identity(made), sort_keys=True), json.dumps(made.answering(), sort_keys=True)

    same = [{"base_url": "https://b:9/v1"}, {"concurrency": 3}, {"timeout": 3}, {"retries": 0}, {"verify_tls": False}]
    same += [{"ca_bundle": "x.pem"}, {"key_variable": "K"}, {"context_length": 9}]
    assert {told(server) for server in same} == {told()} == {told(batch_size=3, dtype="float16")}
    others = [told({"revision": "4 bits"}), told({"extra": {"seed": 1}}), told(model="other"), told(chat_template=True)]
    for kind in zip(told(), *others, strict=True):
        assert len(set(kind)) == 5


# A key and certificates.


def test_a_key_that_is_missing_or_cannot_be_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(kind="openai", model=MODEL, server={"base_url": server.url, "key_variable": "READER_KEY"})
    monkeypatch.delenv("READER_KEY", raising=False)
    with pytest.raises(BrdError, match="the environment variable READER_KEY is not set"):
        openai.load(settings)
    monkeypatch.setenv("READER_KEY", "se\ncret")
    with pytest.raises(BrdError, match=r"READER_KEY holds is no key$"):
        openai.load(settings)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    return paths


def test_a_server_with_its_own_certificate(certificate: tuple[Path, Path]) -> None:
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with Server(tls=tls) as server:

        def make(**keys: Any) -> OpenAI:
            return OpenAI(Settings(kind="openai", model=MODEL, server={"base_url": server.url, **keys}), None)

        for keys in ({"ca_bundle": str(certificate[0])}, {"verify_tls": False}):
            one = make(**keys)
            assert complete(ask(one, 3), 3)
            one.close()
        one = make()
        _, message = until_it_raises(one, 3, TeacherUnreachable)
        one.close()
        assert "teacher.server.ca_bundle should name" in message
    with pytest.raises(BrdError, match=r"teacher\.server\.ca_bundle: .*key\.pem: no file of certificates"):
        make(ca_bundle=str(certificate[1]))


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.example.org/v1", "http://proxy:3128"),
        ("https://inside.example.com/v1", None),
        ("http://api.example.org/v1", None),
        ("https://localhost:8000/v1", None),
        ("https://127.0.0.2/v1", None),
        ("https://[::1]:8000/v1", None),
    ],
)
def test_proxies_are_the_environments_and_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "example.com")
    assert connection.proxy(url) == proxy


# With the rest of the program.


def read(brd: Callable[..., Any], recipe: Path, server: Server, *more: str, command: str = "read") -> Any:
    keys = [
        *("teacher.kind=openai", f"teacher.model={MODEL}", f"teacher.server.base_url={server.url}"),
        *("teacher.server.key_variable=READER_KEY", "teacher.server.concurrency=4", *more),
    ]
    return brd(command, recipe, "--out", "out", *(part for key in keys for part in ("--set", key)))


def test_the_read_step_from_a_key_in_the_environment_to_stored_readings(
    brd_here: Callable[..., Any],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\ntext: {layout: blank_line, held_out: 0.3}\nreading: {sentences: 12, held_out_sentences: 6}\n"
    )
    monkeypatch.delenv("READER_KEY", raising=False)
    for command in ("read", "validate"):
        done = read(brd_here, path, server, command=command)
        assert done.returncode == 2
        assert "the environment variable READER_KEY is not set" in done.stderr

    monkeypatch.setenv("READER_KEY", KEY)
    server.plan = lambda asked: error(401, f"{KEY} has expired") if len(server.asked) > 9 else default(asked)
    done = read(brd_here, path, server)
    assert done.returncode == 2
    assert "*** has expired" in done.stderr
    # An outage, in the middle of the rest.
    server.plan = lambda asked: error(500, "oh") if len(server.asked) > 30 else default(asked)
    stored = server_answers(tmp_path)
    assert sum(stored.values()) == 9
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
    done = read(brd_here, path, server)
    assert done.returncode == 3
    before = Counter(server_answers(tmp_path))
    assert sum(before.values()) > 9

    server.plan, server.asked = default, []
    done = read(brd_here, path, server)
    assert done.returncode == 0, done.stderr
    rest = len(server.asked)
    assert (
        f"asked {rest} times: {100 * rest} prompt tokens ({80 * rest} of them from the server's cache)" in done.stderr
    )
    counts = json.loads((tmp_path / "out" / "steps" / "read.json").read_text())["result"]["counts"]
    assert counts["cached_tokens"] == 80 * rest
    rows = [
        row
        for file in sorted((tmp_path / "out" / "readings").glob("*-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    assert len({row["key"] for row in rows}) == len(rows) == rest + sum(before.values())
    assert all(row["raw"] == f" about {' '.join(row['text'].split())}" for row in rows)

    # Another address, and a server that is gone: there is nothing to ask.
    server.stop()
    done = read(brd_here, path, server, "teacher.server.base_url=http://127.0.0.1:9/v1", "teacher.server.retries=1")
    assert done.returncode == 0, done.stderr
    assert "read: up to date, skipped" in done.stderr
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    assert "READER_KEY" in (tmp_path / "out" / "recipe.yaml").read_text()
    server.start()


def server_answers(folder: Path) -> Counter[str]:
    """The readings in a run folder, by sentence."""
    import pyarrow.parquet as pq

    files = (folder / "out" / "readings").glob("readings-*.parquet")
    return Counter(text for file in files for text in pq.read_table(file)["text"].to_pylist())


def test_a_real_server_gives_the_answers_of_its_own_teacher() -> None:
    """llama.cpp's server, asked over HTTP and in the process."""
    pytest.importorskip("xllamacpp")
    from brd.embedded import smollm2_gguf
    from brd.teachers.llamacpp import LlamaCpp

    asked = [f"Sentence: {s}\nAnimals:" for s in ("A horse and two sheep stood in the rain.", "She ate.")]
    prefix = "Name the animals.\n\nSentence: The dog sees a cat.\nAnimals: dog, cat\n\nSentence: No.\nAnimals: none\n\n"
    theirs = LlamaCpp(smollm2_gguf(), slots=2, threads=1)
    # In one piece, as it comes over HTTP: the last blank line of a prefix alone is other tokens.
    wanted = dict(theirs.answer("", [prefix + a for a in asked], stop=("\n",), max_new_tokens=8))
    settings = {"base_url": theirs._server.listening_address}
    one = OpenAI(Settings(kind="openai", model="any", server=settings), None)
    try:
        found = dict(one.answer(prefix, asked, stop=("\n",), max_new_tokens=8))
        assert {n: (a.text, a.finished, a.prompt_tokens, a.new_tokens) for n, a in found.items()} == {
            n: (a.text, a.finished, a.prompt_tokens, a.new_tokens) for n, a in wanted.items()
        }
        assert max(a.cached_tokens for a in found.values()) >= theirs.count_tokens(prefix) - 1
        assert one.count_tokens(prefix) == theirs.count_tokens(prefix)
        assert one.context_length == theirs._slot_tokens
        refused = dict(one.answer(prefix, [asked[0], "word " * 2000], stop=("\n",), max_new_tokens=8))
        assert refused[0].text == wanted[0].text
        assert refused[1] == Answer("", 0, 0, False)
    finally:
        one.close()
        theirs.close()
