import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brd.reading import behavior as known
from brd.reading.behavior import WithTraits, exemplars, find_words, load_behaviors, one_line, prompt_hash

GERMAN = load_behaviors(["ner", "qra"], languages=["de"])
BEHAVIORS = {**load_behaviors(list(known.BEHAVIORS)), **{f"{name}.de": b for name, b in GERMAN.items()}}
NER, QRA = BEHAVIORS["ner"], BEHAVIORS["qra"]
SENTENCE = "Mira Okafor of Lund Press left Oslo on 3 May 2019 because the winters were dark."

# Text that looks like answers, so that the parsers' inner paths are reached too.
pieces = st.sampled_from(
    [
        *" ;:().?|\n\t\xa0",
        *("none", "Answer:", "Question:", "Does not follow:", "\nAnswer: ", "\nDoes not follow: ", " (", ": "),
        *("Mira Okafor", "person", "Oslo", "because", "weil", "the winters", "dark", "left", "é", "\0"),
        *("Mira Okafor (left: Oslo)", "Oslo (location: x)", "Winters in Oslo were dark.", "Nobody stayed in Oslo."),
    ]
)
answers = st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join))


@given(
    name=st.text(alphabet="aA1_. -é\u0301ß²中", min_size=1, max_size=3),
    sentence=st.text(alphabet="aA1_. -é\u0301ß²中", max_size=12),
)
def test_a_name_is_found_where_the_pattern_finds_it(name: str, sentence: str) -> None:
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sentence)
    assert find_words(name, sentence) == (found and found.span())


@pytest.mark.parametrize("name", BEHAVIORS)
@given(raw=answers, sentence=st.one_of(st.text(), st.just(SENTENCE)), finished=st.booleans())
def test_any_text_is_judged_without_an_exception(name: str, raw: str, sentence: str, finished: bool) -> None:
    behavior = BEHAVIORS[name]
    content = behavior.parse(raw)
    if content is not None:
        assert behavior.parse(behavior.render(content)) == content
    judgement = behavior.judge(raw, sentence, finished=finished)
    assert (judgement.verdict == "verified") == (judgement.reason == "")
    assert (judgement.content is None) == (judgement.verdict == "malformed")
    assert 0 <= judgement.parts_verified <= judgement.parts
    if judgement.verdict == "verified" and judgement.content is not None:
        again = behavior.judge(behavior.render(judgement.content), sentence)
        assert (again.verdict, again.content) == ("verified", judgement.content)
        assert isinstance(behavior, WithTraits)
        assert all(trait.about and trait.value != "" for trait in behavior.traits(judgement.content))
        for entity in judgement.content.get("entities", []):
            assert one_line(sentence)[entity["start"] : entity["end"]] == entity["text"]


# What an expression that backtracks, or a comparison of all with all, would choke on.
HOSTILE = [
    lambda n: " (b: " * n,
    lambda n: " (b: " * n + ")",
    lambda n: "a (b" * n + ")",
    lambda n: "Oslo (location: " + "(" * n,
    lambda n: "; ".join(f"Oslo{k} (location: x)" for k in range(n)),
    lambda n: "; ".join(f"Oslo (left{k}: Mira)" for k in range(n)),
    lambda n: "Who left Oslo" + " a'" * n + "?\nAnswer: Oslo",
    lambda n: "Who left " + " ".join(f"w{k}" for k in range(n)) + "?\nAnswer: yes" + "!" * n,
    lambda n: "yes " * n + "\nDoes not follow: " + "Oslo " * n,
    lambda n: "x. " * n,
    lambda n: "\n" * n + "none" + " ." * n,
]


@pytest.mark.parametrize("name", BEHAVIORS)
@pytest.mark.parametrize("make", HOSTILE)
def test_the_time_for_an_answer_grows_with_its_length_only(name: str, make: Any) -> None:
    def seconds(n: int) -> float:
        raw, started = make(n), time.process_time()
        BEHAVIORS[name].judge(raw, SENTENCE)
        return time.process_time() - started

    # Ten times the length takes ten times the time; a hundred times where every piece is set against every other.
    long, longer = min(seconds(2000) for _ in range(3)), min(seconds(20_000) for _ in range(2))
    assert longer < max(0.1, 40 * long)


@pytest.mark.parametrize(
    ("exemplar_set", "name", "expected"),
    [
        ("plain", "ner", "c8f603eb802e9360"),
        ("plain", "qra", "1c55bdd5e774a45f"),
        ("instruct", "ner", "28895d00991c05de"),
        ("instruct", "qra", "d9b3a668b25cfb4b"),
    ],
)
def test_english_prompts_are_those_that_readings_were_paid_for_with(
    exemplar_set: str, name: str, expected: str
) -> None:
    assert prompt_hash(load_behaviors([name], exemplar_set)[name]) == expected
    assert prompt_hash(load_behaviors([name], exemplar_set, ["de", "en"]).of(name, "en")) == expected


@pytest.mark.parametrize("exemplar_set", ["plain", "instruct"])
@pytest.mark.parametrize("name", BEHAVIORS)
def test_every_exemplar_passes_its_own_verifier(name: str, exemplar_set: str) -> None:
    plain, _, code = name.partition(".")
    behavior = load_behaviors([plain], exemplar_set, [code] if code else None)[plain]
    blocks = behavior.prefix.strip().split("\n\n")[1:]
    assert len(blocks) == len(exemplars(plain, exemplar_set, code or "en")["exemplars"]) >= 6
    for block in blocks:
        sentence, _, answer = block.partition("\n")
        assert not any(stop in answer for stop in behavior.stop)
        judgement = behavior.judge(answer.removeprefix(behavior.cue), sentence.removeprefix("Sentence: "))
        assert judgement.verdict == "verified", (block, judgement.reason)
        assert judgement.parts == judgement.parts_verified
    assert len({b.cue for b in BEHAVIORS.values()}) == len(known.BEHAVIORS)


def test_exemplars_cover_the_paper() -> None:
    assert {e["kind"] for e in exemplars("qra")["exemplars"]} == {"content", "structure", "attitude"}
    assert any(not e["entities"] for e in exemplars("ner")["exemplars"])


def entity_texts(content: dict[str, Any] | None) -> list[str]:
    return [e["text"] for e in (content or {}).get("entities", [])]


@pytest.mark.parametrize(
    ("raw", "verdict", "reason", "kept"),
    [
        (" Mira Okafor (person: who left); Oslo (location: a city)", "verified", "", ["Mira Okafor", "Oslo"]),
        (" Oslo (city)", "verified", "", ["Oslo"]),
        (" none", "verified", "", []),
        (" None.", "verified", "", []),
        (" Mira Okafor (person); Bergen (location: a city)", "verified", "", ["Mira Okafor"]),
        (" Oslo (location); Oslo (location: again)", "verified", "", ["Oslo"]),
        (" Bergen (location: a city)", "rejected", "entity not in the sentence", ["Bergen"]),
        (" Osl (location: a city)", "rejected", "entity not in the sentence", ["Osl"]),
        (" winters (other: a season)", "rejected", "not a name", ["winters"]),
        (" because the winters (other)", "rejected", "not a name", ["because the winters"]),
        (" Oslo (town hall: a city)", "rejected", "unknown entity type", ["Oslo"]),
        (" Oslo, Mira Okafor", "malformed", "not of the form 'name (type: description); ...'", []),
        ("", "malformed", "not of the form 'name (type: description); ...'", []),
    ],
)
def test_entities(raw: str, verdict: str, reason: str, kept: list[str]) -> None:
    judgement = NER.judge(raw, SENTENCE)
    assert (judgement.verdict, judgement.reason, entity_texts(judgement.content)) == (verdict, reason, kept)


@pytest.mark.parametrize("text", ["She", "My companion", "Nobody", "the pier"])
def test_pronouns_and_plain_nouns_are_no_names(text: str) -> None:
    sentence = f"{text} saw the ferry leave."
    assert NER.judge(f" {text} (person: who saw it)", sentence).reason == "not a name"


def test_one_bad_entity_rejects_the_reading_where_the_recipe_says_so() -> None:
    raw = " Mira Okafor (person); Bergen (location: a city)"
    judgement = NER.judge(raw, SENTENCE, drop_bad_parts=False)
    assert (judgement.verdict, judgement.parts, judgement.parts_verified) == ("rejected", 2, 1)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Why did Mira Okafor leave Oslo?", "Because the winters were dark.", ""),
        ("Where did she go from?", "From Oslo.", "question not about the sentence"),
        ("Did Mira Okafor leave Oslo?", "Yes, because she left on 3 May 2019.", ""),
        ("Did Mira Okafor leave Oslo?", "Yes.", "yes, no or an attitude without its reason"),
        ("What is the attitude to the winters?", "Negative, because the winters were dark.", ""),
        (
            "What is the attitude to the winters?",
            "Negative, because the summers were wet.",
            "answer not in the sentence",
        ),
        ("Who left Oslo?", "The mayor of Bergen.", "answer not in the sentence"),
        ("Who is Mira Okafor of Lund Press?", "Mira Okafor.", "answer repeats the question"),
        ("Mira Okafor left Oslo", "The winters were dark.", "question does not end as one"),
        ("Is Oslo dark?", "!!!", "answer without words"),
    ],
)
def test_questions(question: str, answer: str, reason: str) -> None:
    judgement = QRA.judge(f" {question}\nAnswer: {answer}", SENTENCE)
    assert judgement.reason == reason
    assert judgement.verdict == ("rejected" if reason else "verified")


@pytest.mark.parametrize(
    "raw", [" Who left?", " Who left? Answer: Mira.", " Who left?\nAnswer:", "\nAnswer: Mira", " A?\nAnswer: b\nc"]
)
def test_malformed_questions(raw: str) -> None:
    assert QRA.judge(raw, SENTENCE).verdict == "malformed"


def test_an_answer_that_ran_out_of_tokens_is_malformed() -> None:
    assert NER.judge(" Oslo (location)", SENTENCE, finished=False).verdict == "malformed"
    assert QRA.judge(" Who left Oslo?\nAnswer: Mira Okafor", SENTENCE, finished=False).verdict == "malformed"


def test_agreement_with_the_teacher() -> None:
    teacher = {"entities": [{"text": "Oslo", "type": "location"}, {"text": "Mira Okafor", "type": "person"}]}
    assert NER.agreement([(" Oslo (location); Mira Okafor (person)", teacher)]) == 1
    assert NER.agreement([(" Oslo (person)", teacher)]) == 0
    assert NER.agreement([(" Oslo (location)", teacher), ("garbage", teacher)]) == pytest.approx(2 / 5)
    assert NER.given({"entities": []}) is None
    reference = {"question": "Who left?", "answer": "Mira Okafor of Lund Press."}
    assert QRA.agreement([(" Mira Okafor", reference)]) == pytest.approx(2 * 2 / 7)
    assert QRA.agreement([]) is None


def test_the_prompt_hash_follows_the_prompt() -> None:
    changed = load_behaviors(["ner"])["ner"]
    changed.prefix += "x"
    assert prompt_hash(changed) != prompt_hash(NER)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Mira Okafor gave up her flat and job with Lund Press in Oslo on 3 May 2019 as the winters lacked light.", ""),
        (SENTENCE, "paraphrase copies the sentence"),
        ("Mira Okafor of Lund Press left Oslo because winters were dark.", "paraphrase copies the sentence"),
        ("Mira Okafor gave up.", "paraphrase far shorter or longer than the sentence"),
        (
            "On 3 May 2019 someone from the firm moved away from the gloom of its cold season.",
            "a name or number is missing",
        ),
        (
            "Mira Okafor, a Dane at Lund Press, moved away from Oslo on 3 May 2019 since it lacked light.",
            "a name or number that the sentence does not have",
        ),
        ("Because the winters were dark, Mira Okafor of Lund Press left Oslo on 3 May 2019.", "not in other words"),
        ("?! ...", "paraphrase without words"),
    ],
)
def test_paraphrases(said: str, reason: str) -> None:
    assert BEHAVIORS["paraphrase"].judge(f" {said}", SENTENCE).reason == reason


def test_a_paraphrase_is_about_the_sentence() -> None:
    judge = BEHAVIORS["paraphrase"].judge
    assert judge(" Cats usually sleep.", "The ferry stopped early.").reason == "not about the sentence"
    assert judge(" The ferry halted before its time.", "The ferry stopped early.").verdict == "verified"


GOOD, OTHER = "Mira Okafor was in Oslo before May 2019.", "Mira Okafor came back to Oslo later."


@pytest.mark.parametrize(
    ("follows", "other", "reason"),
    [
        (GOOD, OTHER, ""),
        (GOOD, GOOD, "both claims are the same"),
        (SENTENCE, OTHER, "what follows repeats the sentence"),
        ("Mira Okafor left Oslo.", OTHER, "what follows repeats the sentence"),
        (GOOD, "Mira Okafor left on 3 May.", "what does not follow repeats the sentence"),
        ("The train was late again.", OTHER, "what follows is not about the sentence"),
        (GOOD, "The train was late again.", "what does not follow is not about the sentence"),
        (GOOD, "Why did she go to Oslo?", "what does not follow is a question"),
        ("Yes.", OTHER, "what follows is no claim"),
        ("It was what it is.", OTHER, "what follows is no claim"),
        (
            "Mira Okafor moved from Oslo to Bergen.",
            OTHER,
            "what follows has a name or number that the sentence does not have",
        ),
    ],
)
def test_implications(follows: str, other: str, reason: str) -> None:
    judgement = BEHAVIORS["implication"].judge(f" {follows}\nDoes not follow: {other}", SENTENCE)
    assert judgement.reason == reason


@pytest.mark.parametrize(
    ("raw", "verdict", "reason", "kept"),
    [
        (" Mira Okafor (left: Oslo); Mira Okafor (of: Lund Press)", "verified", "", 2),
        (" none", "verified", "", 0),
        (" Mira Okafor (left: Oslo) .", "verified", "", 1),
        (" Mira Okafor (left: Oslo); Mira Okafor (left: Bergen)", "verified", "", 1),
        (" Mira Okafor (left: Bergen)", "rejected", "subject or object not in the sentence", 0),
        (" Mira Okafor (liked: Oslo)", "rejected", "relation not in the sentence", 0),
        (" Oslo (left: oslo)", "rejected", "subject and object are the same", 0),
        (" Mira Okafor (of: Okafor)", "rejected", "subject and object overlap", 0),
        (" the (left: Oslo)", "rejected", "subject or object without content", 0),
        (" Mira Okafor (Okafor: Oslo)", "rejected", "relation repeats its subject or object", 0),
        (
            " Mira Okafor (left: Oslo on 3 May 2019 because the winters were dark)",
            "rejected",
            "subject or object too long",
            0,
        ),
        (" Mira Okafor (left: Oslo); Mira Okafor (left: Oslo)", "verified", "", 1),
        (" Mira Okafor left Oslo", "malformed", "not of the form 'subject (relation: object); ...'", 0),
        (" Mira Okafor (left: )", "malformed", "not of the form 'subject (relation: object); ...'", 0),
    ],
)
def test_relations(raw: str, verdict: str, reason: str, kept: int) -> None:
    judgement = BEHAVIORS["relations"].judge(raw, SENTENCE)
    assert (judgement.verdict, judgement.reason) == (verdict, reason)
    if verdict == "verified" and judgement.content is not None:
        assert len(judgement.content["relations"]) == kept


def test_one_bad_relation_rejects_the_reading_where_the_recipe_says_so() -> None:
    raw = " Mira Okafor (left: Oslo); Mira Okafor (left: Bergen)"
    judgement = BEHAVIORS["relations"].judge(raw, SENTENCE, drop_bad_parts=False)
    assert (judgement.verdict, judgement.parts, judgement.parts_verified) == ("rejected", 2, 1)


def test_agreement_of_the_other_behaviors() -> None:
    paraphrase, implication, relations = (BEHAVIORS[name] for name in ("paraphrase", "implication", "relations"))
    assert paraphrase.agreement([(" It was dark.", {"paraphrase": "It was late."})]) == pytest.approx(2 / 3)
    claims = {"follows": "It was late.", "does_not_follow": "x"}
    assert implication.agreement([(" It was late.\nDoes not follow: y", claims)]) == 1
    one = {"subject": "Mira", "relation": "left", "object": "Oslo"}
    assert relations.agreement([(" mira (left: Oslo); Oslo (of: Mira)", {"relations": [one]})]) == pytest.approx(2 / 3)
    assert relations.given({"relations": []}) is None
    assert [b.agreement([]) for b in (paraphrase, implication, relations)] == [None] * 3


DE = "Der Richter und Mira Okafor verließen an einem Montag das alte Haus ihrer Mutter in Oslo."


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (" Mira Okafor (person: eine Frau)", ""),
        (" Oslo (location: eine Stadt)", ""),
        (" Montag (date: wann sie gingen)", ""),
        (" Mutter (person: wem das Haus gehört)", "not a name"),
        (" Richter (person: wer ging)", "not a name"),
        (" Der Richter (person: wer ging)", "not a name"),
        (" alte Haus (location: was sie verließen)", "not a name"),
        (" Haus (date: was?)", "not a name"),
        (" verließen (other: was sie taten)", "not a name"),
        (" Bergen (location: eine Stadt)", "entity not in the sentence"),
    ],
)
def test_a_capital_alone_makes_no_name_in_german(raw: str, reason: str) -> None:
    assert GERMAN["ner"].judge(raw, DE).reason == reason


@pytest.mark.parametrize(
    ("raw", "sentence", "reason"),
    [
        (" der Rhein (location: ein Fluss)", "Hier fließt der Rhein.", ""),
        (" Die alte Brücke (work: ein Roman)", "„Die alte Brücke“ ist ein Roman.", ""),
        (" Störche (person)", "Störche bauen Nester.", "not a name"),
        (" Wassers (event)", "Die Kraft des Wassers war groß.", "not a name"),
        (" Winter (work: ein Film)", "„Winter“ ist ein Film.", ""),
        (" Roter Platz (location)", "Roter Platz heißt der Ort.", ""),
        (" Ein Sommer am Fluss (work: ein Roman)", "Sie las „Ein Sommer am Fluss“ zweimal.", ""),
        (" Ein Sommer (other)", "Ein Sommer am Fluss ist kurz.", "not a name"),
        (" Hoffnung (other: ein Gefühl)", "Die Hoffnung blieb.", "not a name"),
        (" Gesellschaft für alte Musik (organization)", "Die Gesellschaft für alte Musik probt.", ""),
        (" Jahren (date: wann)", "Vor Jahren war das so.", "not a name"),
        (" 1931 (date: wann)", "Es war 1931.", ""),
        (" Winter (other)", "Jeder Winter war lang.", "not a name"),
    ],
)
def test_german_names(raw: str, sentence: str, reason: str) -> None:
    assert GERMAN["ner"].judge(raw, sentence).reason == reason


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Wer verließ das Haus?", "Der Richter und Mira Okafor.", ""),
        ("Wann verließ Mira Okafor das Haus?", "An einem Montag.", ""),
        ("Verließ Mira Okafor das Haus?", "Ja, weil sie es an einem Montag verließ.", ""),
        ("Verließ Mira Okafor das Haus?", "Ja.", "yes, no or an attitude without its reason"),
        ("Wo ging sie denn hin?", "Nach Oslo.", "question not about the sentence"),
        ("Wer verließ das Haus?", "Die Bürgermeisterin von Bergen.", "answer not in the sentence"),
        ("Wem gehörten die alten Häuser?", "Der Mutter.", ""),
    ],
)
def test_german_questions(question: str, answer: str, reason: str) -> None:
    assert GERMAN["qra"].judge(f" {question}\nAnswer: {answer}", DE).reason == reason


def test_german_questions_are_sorted_by_german_words() -> None:
    [begins, about, *_] = GERMAN["qra"].traits({"question": "Wie viele Enten waren da?", "answer": "Drei."})  # type: ignore[attr-defined]
    assert (begins.value, about.value) == ("wie viele", "content")
    [begins, about, *_] = GERMAN["qra"].traits({"question": "Ist seine Haltung positiv?", "answer": "Ja."})  # type: ignore[attr-defined]
    assert (begins.value, about.value) == ("yes or no", "attitude")
