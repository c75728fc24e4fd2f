"""Reading by a provider's batches: all questions at once, answered within a day, mostly at half the price.

    RUN/batches/<hash>/
      part-00000.parquet    questions, as in a shard
      part-00000.jsonl      the same as requests, until they are answered
      part-00000.json       what the server calls the file and the batch, and how far it has come

What is paid for is written down first: a call that is killed at any moment is followed by one that goes on polling.
When all batches have ended, what has no answer is asked in further ones, as long as that brings any.
"""

import contextlib
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brd.errors import BrdError, TeacherUnreachable
from brd.reading.pending import (
    Intake,
    Question,
    load_questions,
    prompts,
    question_keys,
    questions,
    save_questions,
)
from brd.reading.reader import teacher_hash
from brd.reading.store import Store
from brd.recipe import Recipe
from brd.run import fingerprint, read_json, write_json
from brd.teachers.batch_api import Batches, State
from brd.teachers.client import Refused
from brd.teachers.openai import OF_A_PROMPT, Asking, OpenAI, identity, load
from brd.teachers.teacher import Answer, Prompt
from brd.text.corpus import Corpus

# What providers take as one file, in bytes.
MOST_BYTES = 200_000_000
# Seconds between two looks at the batches: at first, and at most.
FIRST_LOOK, LONGEST_LOOK = 5.0, 60.0
# Looks that may fail one after the other: batches go on while nobody looks.
MISSED = 30
_REFUSED = Answer("", 0, 0, False)
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Part:
    """A file of questions and its batch; ``mark`` finds a batch whose id never arrived, ``answers`` are those that it
    brought, and ``taken`` says that they are in the store."""

    path: Path
    file: str = ""
    mark: str = ""
    batch: str = ""
    answers: int = 0
    taken: bool = False

    @classmethod
    def of(cls, path: Path) -> "Part":
        found = read_json(path.with_suffix(".json"))
        return cls(path, **(found if isinstance(found, dict) else {}))

    def save(self) -> None:
        told = asdict(self)
        del told["path"]
        write_json(self.path.with_suffix(".json"), told)

    def end(self, answers: int = 0) -> None:
        self.answers, self.taken = answers, True
        self.save()


def read_recipe(
    recipe: Recipe, run: Path, progress: Progress | None = None, corpus: Corpus | None = None
) -> Counter[str]:
    """Read what a run does not know yet; returns counts of the read step. Everything is in the store then, so that
    ``reader.read`` has nothing to ask.

    Raises TeacherUnreachable where the server, or further batches, give no answers any more, BrdError where it does
    not accept what is asked; what was answered is kept.
    """
    shared = prompts(recipe)
    about = {"identity": identity(recipe.teacher), "prompts": {mark: asdict(p) for mark, p in shared.items()}}
    folder = run / "batches" / fingerprint("batches", about)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        Store(run / "readings", recipe.reading.shard_rows) as store,
        contextlib.closing(load(recipe.teacher)) as teacher,
    ):
        reader = _Reader(recipe, corpus, folder, shared, store, teacher, progress)
        try:
            reader.read()
        except Refused as refusal:
            raise teacher.explained(refusal) from None
        return reader.intake.counts


class _Reader:
    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus | None,
        folder: Path,
        shared: dict[str, Prompt],
        store: Store,
        teacher: OpenAI,
        progress: Progress | None,
    ) -> None:
        self._recipe, self._corpus, self._folder, self._shared, self._store = recipe, corpus, folder, shared, store
        self._teacher, self._progress = teacher, progress
        self._identity = teacher_hash(teacher)
        self.intake = Intake(recipe, self._identity, store)
        self._server, self._url = Batches(teacher.client), teacher.client.base
        self._forms: dict[str, Asking] = {}
        self._refused: Counter[str] = Counter()
        self._missed: int | None = None
        self._answered = False

    def read(self) -> None:
        while True:
            every = list(map(Part.of, sorted(self._folder.glob("part-*.parquet"))))
            self._answered = any(part.answers for part in every)
            parts = [part for part in every if not part.taken]
            parts += self._write(parts)
            if not parts:
                break
            failed: Counter[str] = Counter()
            if not self._through(parts, failed):
                [(reason, _)] = failed.most_common(1) or [("nothing in its files", 0)]
                raise TeacherUnreachable(
                    f"{self._url}: no answer to {sum(failed.values())} requests ({reason}); what was answered is kept, "
                    "and the same command asks for the rest"
                )
        if self._refused:
            [(reason, _)] = self._refused.most_common(1)
            count = sum(self._refused.values())
            _say(f"{self._url} refused {count} sentences, which count as malformed ({reason})")

    def _asking(self, prompt_hash: str) -> Asking:
        if prompt_hash not in self._forms:
            prompt = self._shared[prompt_hash]
            self._forms[prompt_hash] = self._teacher.asking(prompt.prefix, prompt.stop, prompt.max_new_tokens)
        return self._forms[prompt_hash]

    # Questions to batches.

    def _write(self, there: list[Part]) -> list[Part]:
        """Parts of what is neither in the store nor in a part that is open."""
        numbers = [int(path.stem.removeprefix("part-")) for path in self._folder.glob("part-*.parquet")]
        number, made = max(numbers, default=-1) + 1, []
        for pending in self._files(question_keys(part.path for part in there)):
            path = self._folder / f"part-{number:05d}.parquet"
            save_questions(pending, path)
            made.append(Part(path))
            number += 1
        return made

    def _files(self, known: set[str]) -> Iterator[list[Question]]:
        """Questions that go into one file, by number and by bytes."""
        rows: list[Question] = []
        size = 0
        for question in questions(self._recipe, self._identity, self._store, known, self._corpus):
            length = len(self._request(question))
            if rows and (len(rows) == self._recipe.teacher.server.batch_requests or size + length > MOST_BYTES):
                yield rows
                rows, size = [], 0
            rows.append(question)
            size += length
        if rows:
            yield rows

    def _request(self, question: Question) -> bytes:
        asking = self._asking(question.prompt_hash)
        line = {"custom_id": question.key, "method": "POST", "url": f"/v1{asking.path}"}
        return json.dumps({**line, "body": asking.body(question.suffix)}).encode() + b"\n"

    def _send(self, part: Part) -> None:
        """Have a part's batch made. Each step is written down before the next."""
        asked, uploaded, perhaps_there = load_questions(part.path), bool(part.file), bool(part.mark)
        if not uploaded:
            part.file = self._upload(part.path.with_suffix(".jsonl"), asked)
        part.mark = part.mark or uuid.uuid4().hex
        part.save()
        endpoint = self._asking(asked[0].prompt_hash).path
        try:
            part.batch = self._server.create(part.file, endpoint, part.mark, perhaps_there=perhaps_there)
        except Refused:
            if not uploaded:
                raise
            # The file may have been deleted there since; with a new one it is clear what is refused.
            part.file = part.mark = ""
            self._send(part)
            return
        part.save()
        _say(f"{len(asked)} requests are batch {part.batch} at {self._url}")

    def _upload(self, requests: Path, asked: list[Question]) -> str:
        with requests.open("wb") as file:
            file.writelines(map(self._request, asked))
        try:
            return self._server.upload(requests)
        except Refused as refusal:
            if refusal.status not in (404, 405):
                raise
            raise BrdError(
                f"{self._url}: has no batch interface ({refusal}); teacher.server.batch should be false"
            ) from None
        finally:
            requests.unlink()

    # Batches to answers.

    def _through(self, parts: list[Part], failed: Counter[str]) -> int:
        """Send what is not sent, wait until all have ended, take what they bring; returns how many answers there are.

        ``failed`` is told why others are none.
        """
        waiting, running = [p for p in parts if not p.batch], [p for p in parts if p.batch]
        sizes = {part.path: len(question_keys([part.path])) for part in parts}
        done: dict[Path, int] = {}
        full: list[Part] = []
        answered, wait = 0, FIRST_LOOK
        while waiting or running:
            for part in waiting:
                self._send(part)
            running, waiting = running + waiting, []
            freed = False
            for part, state in [(part, self._look(part)) for part in running]:
                if state is None:
                    continue
                done[part.path] = sizes[part.path] if state.ended else state.done
                if not state.ended:
                    continue
                running.remove(part)
                if state.status == "failed" and "token_limit" in state.code:
                    # The queue of this account is full: the batch is made again when another has left it.
                    part.batch = part.mark = ""
                    part.save()
                    full.append(part)
                    why = state.why
                else:
                    answered += self._take(part, state, failed)
                    freed = True
            if freed:
                waiting, full = full, []
            if self._progress:
                self._progress("batches", sum(done.values()), sum(sizes.values()))
            if full and not running and not waiting:
                raise TeacherUnreachable(
                    f"{self._url}: {why}; smaller batches may find room (teacher.server.batch_requests), or the same "
                    "command later"
                )
            if running and not waiting:
                time.sleep(wait)
                wait = min(LONGEST_LOOK, wait * 1.5)
        return answered

    def _look(self, part: Part) -> State | None:
        """How far a batch is; None where the server cannot be asked for a while."""
        try:
            state = self._server.state(part.batch)
        except Refused as refusal:
            if refusal.status != 404:
                raise
            raise BrdError(
                f"{self._url}: no batch {part.batch} ({refusal.message}); teacher.server.base_url and the key should "
                f"be those that it was made with. Where it is lost, take {part.path.with_suffix('.json')} away, and "
                "its questions are asked again"
            ) from None
        except TeacherUnreachable:
            if self._missed is None or self._missed >= MISSED:
                raise
            self._missed += 1
            return None
        self._missed = 0
        return state

    def _take(self, part: Part, state: State, failed: Counter[str]) -> int:
        """Put the answers of a batch that has ended into the store; returns how many there are."""
        if state.status == "failed":
            part.end()
            raise BrdError(f"{self._url}: batch {part.batch} was not accepted: {self._teacher.client.line(state.why)}")
        found = _Found({question.key: question for question in load_questions(part.path)}, self._asking)
        for number, file in enumerate(state.files):
            path = part.path.with_suffix(f".answers-{number}.jsonl")
            self._server.download(file, path)
            with path.open("rb") as lines:
                for line in lines:
                    found.add(line)
            path.unlink()
        failed.update(self._teacher.client.line(reason) for reason in found.failures())
        self._answered = self._answered or bool(found.answers)
        if found.refused and not self._answered:
            part.end()
            raise self._teacher.explained(Refused(*next(iter(found.refused.values()))))
        self._refused.update(self._teacher.client.line(message) for _, message in found.refused.values())
        answers = found.answers | dict.fromkeys(found.refused, _REFUSED)
        self.intake.take((found.asked[key], answer) for key, answer in answers.items())
        part.end(len(found.answers))
        if state.status == "cancelled":
            raise TeacherUnreachable(
                f"{self._url}: batch {part.batch} was cancelled after {len(answers)} of {len(found.asked)} answers, "
                "which are kept; the same command asks for the rest"
            )
        return len(answers)


class _Found:
    """What stands in the files of a batch: lines in any order, some twice, torn, or of something else."""

    def __init__(self, asked: dict[str, Question], asking: Callable[[str], Asking]) -> None:
        self.asked, self._asking = asked, asking
        self.answers: dict[str, Answer] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self._failed: dict[str, str] = {}

    def failures(self) -> list[str]:
        """Why requests have neither an answer nor a refusal."""
        lacking = self.asked.keys() - self.answers.keys() - self.refused.keys()
        return [self._failed.get(key, "no line in the files of its batch") for key in lacking]

    def add(self, line: bytes) -> None:
        """Of two answers to one request the first is taken."""
        try:
            found = json.loads(line)
            key = found["custom_id"]
            question = self.asked[key]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if key in self.answers:
            return
        response = found.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            try:
                self.answers[key] = self._asking(question.prompt_hash).read(body, question.suffix)
                self.refused.pop(key, None)
            except ValueError as reason:
                self._failed[key] = f"a reply that is no answer: {reason}"
        elif status in OF_A_PROMPT:
            self.refused[key] = (status, _said(body))
        else:
            self._failed[key] = _said(found.get("error") or body) + (f" ({status})" if status else "")


def _said(body: Any) -> str:
    """The message of an error, however it is put."""
    inner = body.get("error") or body if isinstance(body, dict) else body
    message = inner.get("message") or inner.get("code") if isinstance(inner, dict) else inner
    return str(message or "no reason given")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
