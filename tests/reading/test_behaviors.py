import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brd.reading.behavior import WithTraits, exemplars, load_behaviors, one_line, prompt_hash
from brd.reading.ner import _as_words

BEHAVIORS = load_behaviors(["ner", "qra"])
NER, QRA = BEHAVIORS["ner"], BEHAVIORS["qra"]
SENTENCE = "Mira Okafor of Lund Press left Oslo on 3 May 2019 because the winters were dark."

# Text that looks like answers, so that the parsers' inner paths are reached too.
pieces = st.sampled_from(
    [*" ;:().?\n", "none", "Answer:", "Question:", "Mira Okafor", "person", "Oslo", "because", "é", "\0"]
)
answers = st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join))


@given(
    name=st.text(alphabet="aA1_. -é\u0301ß²中", min_size=1, max_size=3),
    sentence=st.text(alphabet="aA1_. -é\u0301ß²中", max_size=12),
)
def test_a_name_is_found_where_the_pattern_finds_it(name: str, sentence: str) -> None:
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sentence)
    assert _as_words(name, sentence) == (found and found.span())


@pytest.mark.parametrize("name", BEHAVIORS)
@given(raw=answers, sentence=st.one_of(st.text(), st.just(SENTENCE)), finished=st.booleans())
def test_any_text_is_judged_without_an_exception(name: str, raw: str, sentence: str, finished: bool) -> None:
    behavior = BEHAVIORS[name]
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


@pytest.mark.parametrize("name", BEHAVIORS)
def test_every_exemplar_passes_its_own_verifier(name: str) -> None:
    behavior = BEHAVIORS[name]
    blocks = behavior.prefix.strip().split("\n\n")[1:]
    assert len(blocks) == len(exemplars(name)["exemplars"]) >= 6
    for block in blocks:
        sentence, _, answer = block.partition("\n")
        judgement = behavior.judge(answer.removeprefix(behavior.cue), sentence.removeprefix("Sentence: "))
        assert judgement.verdict == "verified", (block, judgement.reason)
        assert judgement.parts == judgement.parts_verified


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
