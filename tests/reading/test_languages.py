"""Corpora of several languages: whose language is known how, what is asked, judged, taught and counted."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted import a_run

from brd import recipe as recipes
from brd.audit import against_gold, annotations, tables
from brd.audit import audit as audit_run
from brd.composing.documents import lessons, shuffled_answers
from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.reading.audit import audit
from brd.reading.behavior import load_behaviors, prompt_hash
from brd.reading.chosen import choose, in_languages, iter_paragraphs, load_paragraphs
from brd.reading.languages import known_languages, language_code, load_language
from brd.reading.pending import Intake, prompts, questions
from brd.reading.reader import Readings, read, teacher_hash
from brd.reading.store import Store, every
from brd.recipe import Recipe, changed
from brd.run import RunFolder
from brd.teachers.teacher import Answer

ENGLISH = [f"Ada{n} lives in Oslo. Winters are dark there." for n in range(20)]
GERMAN = [f"Ada{n} wohnt in Oslo. Die z. B. langen Winter sind dort dunkel." for n in range(20)]


class Prompted:
    """Answers any sentence, and remembers with which prompt it was asked."""

    context_length = 1000

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def identity(self) -> dict[str, str]:
        return {"model": "prompted"}

    def count_tokens(self, text: str) -> int:
        return len(text)

    def answer(self, prefix: str, suffixes: Any, *, stop: Any, max_new_tokens: int) -> Any:
        for index, suffix in enumerate(suffixes):
            sentence = suffix.removeprefix("Sentence: ").split("\n")[0]
            self.asked.append((prefix, sentence))
            # A noun that is a name by the English rules only.
            yield index, Answer(" Winter (other: x)" if "inter" in sentence else " none", 1, 1, True)

    def close(self) -> None:
        pass


def mixed(folder: Path, reading: dict[str, Any] | None = None, **text: Any) -> Recipe:
    """A recipe over records of both languages and one of a third, whose field ``lang`` says so."""
    folder.mkdir(exist_ok=True)
    rows = [{"text": t, "lang": lang} for lang, texts in (("en", ENGLISH), ("deu", GERMAN)) for t in texts]
    rows.append({"text": "Ada habite à Oslo. Les hivers y sont noirs.", "lang": "fr-FR"})
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Recipe.model_validate(
        {
            "name": "mixed",
            "text": {"source": str(folder / "corpus.jsonl"), "language_field": "lang", "held_out": 0.3, **text},
            "reading": {
                "behaviors": ["ner"],
                "languages": ["en", "de"],
                "sentences": 10**6,
                "held_out_sentences": 10**6,
                **(reading or {}),
            },
        }
    )


def test_each_sentence_is_asked_and_judged_in_its_own_language(tmp_path: Path) -> None:
    recipe, teacher = mixed(tmp_path), Prompted()
    counts = read(recipe, tmp_path / "readings", teacher)
    both = load_behaviors(["ner"], languages=["en", "de"])
    asked = [prefix for prefix, _ in teacher.asked]
    # All of one language together: they share their prompt.
    assert asked == [both.of("ner", "en").prefix] * 21 + [both.of("ner", "de").prefix] * 21
    assert all(("lives" in s or "are" in s) == (prefix == asked[0]) for prefix, s in teacher.asked)
    # Split by German rules, "z. B." ends no sentence.
    assert "Die z. B. langen Winter sind dort dunkel." in [s for _, s in teacher.asked]
    assert counts["paragraphs_other_language_fr"] == counts["paragraphs_other_language"] == 1
    assert counts["ner_asked"] == 42
    assert counts["sentences_train_de"] + counts["sentences_held_out_de"] == 40

    found = [(p.language, r) for part in (False, True) for p, _, r in Readings(recipe, tmp_path / "readings").all(part)]
    verdicts = Counter((code, r.verdict) for code, r in found if "inter" in r.text)
    assert verdicts == {("en", "rejected"): 20, ("de", "rejected"): 20}
    reasons = {(code, r.reason) for code, r in found if "inter" in r.text}
    assert reasons == {("en", "entity not in the sentence"), ("de", "not a name")}
    assert {r.prompt_hash for code, r in found if code == "de"} == {prompt_hash(both.of("ner", "de"))}
    # Nothing is asked twice.
    assert read(recipe, tmp_path / "readings", again := Prompted())["ner_known_before"] == 80
    assert not again.asked


def test_questions_on_their_own_have_the_prompt_of_their_language(tmp_path: Path) -> None:
    recipe, teacher = mixed(tmp_path), Prompted()
    read(recipe, tmp_path / "read" / "readings", teacher)
    wanted = {r.key: r for some in every(tmp_path / "read" / "readings") for r in some}
    with Store(tmp_path / "run" / "readings") as store:
        asked, shared = list(questions(recipe, teacher_hash(teacher), store)), prompts(recipe)
        assert len(shared) == 2
        assert sorted((shared[q.prompt_hash].prefix, q.text) for q in asked) == sorted(teacher.asked)
        intake = Intake(recipe, teacher_hash(teacher), store)
        # As they come back: in any order.
        answers = [(q, Answer(wanted[q.key].raw, 1, 1, True)) for q in reversed(asked)]
        assert intake.take(answers) == len(wanted) == 42
        assert not list(questions(recipe, teacher_hash(teacher), store))
    assert {r.key: r for some in every(tmp_path / "run" / "readings") for r in some} == wanted


@pytest.mark.parametrize("languages", [None, ["de"], ["de", "en"]])
def test_a_batch_asks_what_the_reader_asks(tmp_path: Path, languages: list[str] | None) -> None:
    recipe = mixed(tmp_path, {"languages": languages, "behaviors": ["ner", "qra"]})
    identity = teacher_hash(Prompted())
    shared = prompts(recipe)
    assert len(shared) == 2 * len(languages or [""])
    found = Counter(q.prompt_hash for q in questions(recipe, identity))
    assert set(found) == set(shared)
    assert sum(found.values()) == 2 * {None: 44, 1: 21, 2: 42}[languages and len(languages)]


def test_the_german_rules_judge_german_answers_also_when_they_are_judged_anew(tmp_path: Path) -> None:
    sentence = "Jeder Winter ist dunkel."
    english, german = (load_behaviors(["ner"], languages=[code])["ner"] for code in ("en", "de"))
    assert english.judge(" Winter (other: x)", sentence).verdict == "verified"
    assert german.judge(" Winter (other: x)", sentence).reason == "not a name"
    for languages, verdict in ((None, "verified"), (["de"], "rejected")):
        folder = tmp_path / str(languages)
        folder.mkdir()
        (folder / "a.txt").write_text("\n\n".join([sentence] * 9 + ["Ada wohnt in Oslo."] * 9), encoding="utf-8")
        text = {"source": str(folder / "a.txt"), "language": "de", "held_out": 0.3}
        reading = {"behaviors": ["ner"], "languages": languages, "sentences": 9999, "held_out_sentences": 9999}
        recipe = Recipe.model_validate({"name": "x", "text": text, "reading": reading})
        for _ in range(2):
            read(recipe, folder / "readings", Prompted())
            found = Readings(recipe, folder / "readings").all(False)
            assert {r.verdict for *_, r in found if r.text == sentence} == {verdict}


def test_lessons_audit_and_control_keep_languages_apart(tmp_path: Path) -> None:
    recipe = mixed(tmp_path)
    run = a_run(tmp_path, recipe, Prompted())  # type: ignore[arg-type]
    readings = Readings(recipe, run / "readings")
    taught = [lesson.text for lesson in lessons(recipe, readings) if lesson.part == "ner"]
    assert all("Entities: none" in text for text in taught)
    assert not any("habite" in text for text in taught)
    given = shuffled_answers(changed(recipe, {"composing.shuffle_readings": True}), readings)
    assert all(
        given("ner", p, n) is not None or "inter" in p.sentence(n)
        for p in readings.paragraphs
        if not p.held_out
        for n in p.readable
    )
    found = audit(recipe, run / "readings")
    assert found["language"] == "en, de"
    assert set(found["prompts"]["ner"]) == {"en", "de"}
    rows = found["behaviors"]["ner"]["by_language"]
    assert [(row["language"], row["asked"]) for row in rows] == [("en", 21), ("de", 21)]
    assert found["behaviors"]["ner"]["asked"] == 42
    assert "in de" in tables({"run": "x", "finished": True, "gold": {}, **found})


def test_annotations_are_asked_in_the_first_language_which_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: Prompted())
    (tmp_path / "gold.iob2").write_text("# text = Oslo is dull in May.\n1\tOslo\tB-LOC\n2\tis\tO\n", encoding="utf-8")
    for languages, said in ((["de", "en"], "entities (gold.iob2, asked in de)"), (["de"], "entities (gold.iob2) ")):
        recipe = mixed(tmp_path, {"languages": languages, "behaviors": ["ner"]})
        run = a_run(tmp_path / languages[-1], recipe, Prompted())  # type: ignore[arg-type]
        audit_run(recipe, run, Console())
        against_gold(recipe, run, annotations(recipe, tmp_path / "gold.iob2", None, 5))
        found = json.loads((run / "audit.json").read_text())
        assert said in tables(found)
        assert found["gold"]["entities"].get("asked_in") == ("de" if len(languages) > 1 else None)


def test_without_languages_all_are_asked_as_before(tmp_path: Path) -> None:
    recipe, teacher = mixed(tmp_path, {"languages": None}), Prompted()
    read(recipe, tmp_path / "readings", teacher)
    assert {prefix for prefix, _ in teacher.asked} == {load_behaviors(["ner"])["ner"].prefix}
    assert len(teacher.asked) == 44


def test_whose_language_is_known_how(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "a.txt").write_text("Eins.\n\nZwei.")
    (tmp_path / "b.txt").write_text("One.")
    records = [{"text": "x", "lang": "deu_Latn"}, {"text": "y", "lang": None}, {"text": "z", "lang": "EN"}]
    (tmp_path / "de" / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "d.parquet")
    text = {"source": str(tmp_path), "language": "fr", "language_field": "lang", "language_of": {"de/*": "de"}}
    recipe = Recipe.model_validate({"name": "x", "text": text})
    assert {p.document: code for p, code in in_languages(recipe)} == {
        "b.txt#0": "fr",
        "d.parquet#0": "de",
        "d.parquet#1": "fr",
        "d.parquet#2": "en",
        "de/a.txt#0": "de",
        "de/a.txt#1": "de",
        "de/c.jsonl#0": "de",
        "de/c.jsonl#1": "de",
        "de/c.jsonl#2": "en",
    }
    assert [language_code(tag) for tag in ("de-AT", " DE ", "deu_Latn", "eng", "pt_BR", "xx")] == [
        *("de", "de", "de", "en", "pt", "xx")
    ]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, ["c.jsonl:1", "field 'lang' is missing", "text.language_field"]),
        ({"text": "x", "lang": 3}, ["c.jsonl:1", "field 'lang' should be the code of a language"]),
    ],
)
def test_a_record_without_its_language(tmp_path: Path, record: dict[str, Any], words: list[str]) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(record))
    text = {"source": str(tmp_path / "c.jsonl"), "language_field": "lang"}
    with pytest.raises(BrdError) as caught:
        list(in_languages(Recipe.model_validate({"name": "x", "text": text})))
    assert all(word in str(caught.value) for word in words)


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "c.parquet")
    text = {"source": str(tmp_path / "c.parquet"), "language_field": "lang"}
    with pytest.raises(BrdError, match=r"no column 'lang'.*text.language_field"):
        list(in_languages(Recipe.model_validate({"name": "x", "text": text})))


def test_languages_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: x\nreading:\n  languages: [en, fr]\n")
    with pytest.raises(BrdError, match=r"r.yaml:3: reading.languages: unknown language 'fr'; known: de, en"):
        recipes.load(str(tmp_path / "r.yaml"))
    with pytest.raises(BrdError, match="paraphrase has no exemplars in the language 'de'; there are some in en"):
        load_behaviors(["ner", "paraphrase"], languages=["en", "de"])
    with pytest.raises(BrdError, match="no rules for the language 'fr'"):
        load_language("fr")
    recipe = mixed(tmp_path, language_field=None, language="fr")
    with pytest.raises(BrdError, match=r"reading.languages: no text in en, de \(the corpus has fr\); text.language"):
        read(recipe, tmp_path / "readings", Prompted())


def test_every_language_has_its_lists_and_stems_are_stable() -> None:
    assert known_languages() == ("de", "en")
    for code in known_languages():
        language = load_language(code)
        assert language.code == code
        for name in ("function_words", "framing", "verdicts", "because", "question_words", "auxiliaries", "about"):
            assert getattr(language, name), (code, name)
        assert language.articles <= language.function_words
        assert set(language.about) == {"attitude", "structure"}
    pairs = [("häuser", "haus"), ("zerstörte", "zerstören"), ("gefrieren", "frieren"), ("freundlichem", "freundlich")]
    for one, other in pairs:
        assert load_language("de").stem(one) == load_language("de").stem(other)
    for one, other in (("moved", "moving"), ("cities", "city"), ("stopped", "stop")):
        assert load_language("en").stem(one) == load_language("en").stem(other)


def test_keys_of_recipes_that_use_no_language_are_as_before(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    def prints(**sections: Any) -> str:
        loaded = recipes.load(str(recipe_file(**sections)))
        return Pipeline(loaded, RunFolder(tmp_path / "run", loaded), Console()).read_print()

    text = recipes.load(str(recipe_file())).text
    assert "language_field" not in text.deciding()
    assert "languages" not in recipes.load(str(recipe_file())).reading.asking()
    before = prints()
    assert prints(reading={"languages": ["en"]}) != before
    assert prints(text={"language_of": {"*": "en"}}) != before
    assert prints(text={"language_field": "lang"}) != before


def test_paragraphs_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    recipe = mixed(tmp_path)
    read(recipe, tmp_path / "readings", Prompted())
    file = tmp_path / "readings" / "paragraphs.parquet"
    assert {p.language for p in iter_paragraphs(file.parent)} == {"en", "de"}
    pq.write_table(pq.read_table(file).drop_columns(["language"]), file)
    assert [(p.document, p.spans) for p in load_paragraphs(file.parent)] == [
        (p.document, p.spans) for p in choose(recipe, Counter())
    ]
    assert {p.language for p in load_paragraphs(file.parent)} == {""}
