"""Human annotations: both layouts of entities read back as written, answers that lie in one sentence, the figures."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.evaluation.gold import (
    TYPES,
    GoldAnswer,
    GoldEntities,
    answer_figures,
    entity_figures,
    gold_figures,
    load_answers,
    load_entities,
)
from brd.reading.behavior import load_behaviors, one_line
from brd.teachers.shared_prefix import SharedPrefix
from brd.teachers.teacher import Answer

BEHAVIORS = load_behaviors(["ner", "qra"])
NER, QRA = BEHAVIORS["ner"], BEHAVIORS["qra"]
SEPARATOR = "\n\n"

CONLL = """\
-DOCSTART- -X- O O

Mira NNP I-NP I-PER
Okafor NNP I-NP I-PER
Lund NNP I-NP B-PER
left VBD I-VP O
" " O O
Oslo NNP I-NP I-LOC
Press NNP I-NP I-ORG
" " O O
( ( O O
$ $ O O
5 CD O O
) ) O O
didn NN O O
't RB O O
? . O O

# # O O
Danish JJ I-NP I-MISC
"""
UNER = """\
# newdoc id = a
# sent_id = a-1
# text = New  York’s mayor can't St.Petersburg.
1	New	B-LOC	-	x
2	York	I-LOC	-	x
3	’s	O	-	-
4	mayor	O	-	-
5	ca	O	-	-
6	n't	O	-	-
7	St.	B-LOC	-	x
8	Petersburg	B-PER	-	x
9	.	O	-	-

1	Ada	B-PER
2	!	O
"""
CONTEXT = "Dr. Ada Berg built the mill in 1911. It burnt down in the spring of 1920, and nobody built it again. So."


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "gold") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def squad(*questions: tuple[str, list[str]], context: str = CONTEXT) -> str:
    qas = [
        {"id": f"q{n}", "question": asked, "answers": [{"answer_start": context.find(a), "text": a} for a in answers]}
        for n, (asked, answers) in enumerate(questions)
    ]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]})


class Canned:
    """Stands in for an engine: writes what a function of the prompt's number gives, and keeps what it was asked."""

    def __init__(self, text: Callable[[int], str], finished: bool = True) -> None:
        self.text, self.finished = text, finished
        self.asked: list[tuple[str, list[str], tuple[str, ...]]] = []

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        self.asked.append((prefix, list(suffixes), tuple(stop)))
        for n in reversed(range(len(suffixes))):
            yield n, Answer(self.text(n), 1, 1, self.finished)


def entities(written: Any, gold: list[GoldEntities], prompted: bool = False, **options: Any) -> dict[str, Any]:
    return entity_figures(written, NER, gold, separator=SEPARATOR, prompted=prompted, **options)


def answers(written: Any, gold: list[GoldAnswer], prompted: bool = False) -> dict[str, Any]:
    return answer_figures(written, QRA, gold, separator=SEPARATOR, prompted=prompted)


def perfect(gold: GoldEntities) -> str:
    return NER.render({"entities": [{"text": one_line(t), "type": k, "description": ""} for t, k in gold.entities]})


def test_iob1_starts_an_entity_without_b(written: Callable[..., Path]) -> None:
    first, second = load_entities(written(CONLL))
    assert first.sentence == 'Mira Okafor Lund left "Oslo Press" ($5) didn\'t?'
    names = [("Mira Okafor", "person"), ("Lund", "person"), ("Oslo", "location"), ("Press", "organization")]
    assert list(first.entities) == names
    assert second == GoldEntities("# Danish", (("Danish", "other"),))


def test_iob2_keeps_the_spacing_of_its_text(written: Callable[..., Path]) -> None:
    first, second = load_entities(written("\ufeff" + UNER.replace("\n", "\r\n")))
    assert first.sentence == "New  York’s mayor can't St.Petersburg."
    assert first.entities == (("New  York", "location"), ("St.", "location"), ("Petersburg", "person"))
    assert second == GoldEntities("Ada!", (("Ada", "person"),))


letters = st.characters(exclude_categories=["Z", "C"])
words = st.text(letters, min_size=1).filter(lambda word: not word.startswith("-DOCSTART-"))
tokens = st.one_of(st.sampled_from([*'"#()$.,!', "'s", "n't", "Oslo", "B-PER", "12"]), words)
segments = st.tuples(st.sampled_from([None, *TYPES]), st.lists(tokens, min_size=1, max_size=3))
marked = st.lists(st.lists(segments, min_size=1, max_size=6), min_size=1, max_size=4)


def tagged(sentence: list[tuple[str | None, list[str]]], iob1: bool) -> Iterator[tuple[str, str]]:
    before: str | None = None
    for kind, inside in sentence:
        for n, token in enumerate(inside):
            starts = n == 0 and (not iob1 or kind == before)
            yield token, f"{'B' if starts else 'I'}-{kind}" if kind else "O"
        before = kind


@settings(max_examples=60, deadline=None)
@given(sentences=marked)
def test_conll_entities_come_back(tmp_path_factory: pytest.TempPathFactory, sentences: Any) -> None:
    path = tmp_path_factory.mktemp("gold") / "conll.txt"
    blocks = ["".join(f"{token} NN I-NP {tag}\n" for token, tag in tagged(s, iob1=True)) for s in sentences]
    path.write_text("-DOCSTART- -X- O O\n\n" + "\n".join(blocks), encoding="utf-8", newline="")
    found = load_entities(path)
    for gold, sentence in zip(found, sentences, strict=True):
        assert gold.sentence.replace(" ", "") == "".join("".join(inside) for _, inside in sentence)
        wanted = [("".join(inside), TYPES[kind]) for kind, inside in sentence if kind]
        assert [(text.replace(" ", ""), kind) for text, kind in gold.entities] == wanted
        assert all(text in gold.sentence for text, _ in gold.entities)


@settings(max_examples=60, deadline=None)
@given(sentences=marked, gaps=st.lists(st.sampled_from(["", " ", "  ", "\u00a0"]), min_size=1, max_size=7))
def test_uner_entities_come_back(tmp_path_factory: pytest.TempPathFactory, sentences: Any, gaps: list[str]) -> None:
    path = tmp_path_factory.mktemp("gold") / "uner.iob2"
    blocks: list[str] = []
    wanted: list[GoldEntities] = []
    for sentence in sentences:
        text, rows, names = "", "", []
        pairs, number = list(tagged(sentence, iob1=False)), 0
        for kind, inside in sentence:
            start = len(text)
            for n, token in enumerate(inside):
                gap = gaps[number % len(gaps)] if number else ""
                start += len(gap) if n == 0 else 0
                text += gap + token
                number += 1
                rows += f"{number}\t{token}\t{pairs[number - 1][1]}\t-\t-\n"
            if kind:
                names.append((text[start:], TYPES[kind]))
        blocks.append(f"# sent_id = 1\n# text = {text}\n{rows}")
        wanted.append(GoldEntities(text, tuple(names)))
    path.write_text("\n".join(blocks), encoding="utf-8", newline="")
    assert load_entities(path) == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"gold: no sentence found; the columns should be `token POS chunk tag` \(CoNLL-2003\), or token number"),
        ("-DOCSTART- -X- O O\n\n", r"gold: no sentence found"),
        ("Oslo NNP I-NP I-LOC\nis dull\n", r"gold:2: the columns should be `token POS chunk tag`"),
        ("Oslo NNP I-NP I-PLACE\n", r"gold:1: the tag should be O, or B- or I- with PER, .* \(got 'I-PLACE'\)"),
        ("# text = Oslo!\n1\tOslo\tB-LOC\n2\t!\n", r"gold:3: the columns should be .* token number, token and tag"),
        ("# text = Oslo!\n1\tOslo\tB-LOC\n1-2\t!\tO\n", r"gold:3: the columns"),
        ("# text = Oslo!\n1\tOslo\tLOC\n", r"gold:2: the tag should be O"),
        ("# text = Oslo!\n1\tOslo\tO\n2\t?\tO\n", r"gold:3: the token '\?' should be what comes next in .*there: '!'"),
        (b"Oslo NNP I-NP I-LOC\n\xff NN O O\n", r"gold:2: not UTF-8 text"),
    ],
)
def test_wrong_entities_are_named_by_line(content: str | bytes, message: str, written: Callable[..., Path]) -> None:
    with pytest.raises(BrdError, match=message) as caught:
        load_entities(written(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_entities, load_answers])
def test_a_missing_file_is_named(load: Callable[[Path], Any], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BrdError, match=rf"{path.name}: no such file of annotations"):
            load(path)


def test_a_sample_is_drawn_by_hash(written: Callable[..., Path]) -> None:
    texts = [f"Ada number {n} is here." for n in range(30)]
    lines = [*texts[:20], texts[3], "Too short.", "Ada " * 120 + ".", *texts[20:]]
    path = written("\n".join("".join(f"{w} NN O O\n" for w in line.split()) for line in lines))
    assert [g.sentence for g in load_entities(path)][20:22] == [texts[3], "Too short."]
    assert [g.sentence for g in load_entities(path, 1000)] == texts
    lowest = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())[:7]
    assert [g.sentence for g in load_entities(path, 7)] == [text for text in texts if text in lowest]
    with pytest.raises(BrdError, match=r"short: no sentence of 15 to 400 characters"):
        load_entities(written("Ada NN O O\n", "short"), 5)


def test_an_answer_lies_in_one_sentence(written: Callable[..., Path]) -> None:
    spanning = "in 1911. It burnt down"
    questions = [
        ("Who built  the mill?", ["Ada Berg", "Dr. Ada Berg", "Ada Berg", "nobody"]),
        ("When?", [spanning, "1911"]),
        ("When did it burn down?", ["the spring of 1920"]),
        ("Who asks?", []),
        ("So?", ["So."]),
    ]
    first, second = load_answers(written(squad(*questions)))
    built, burnt = (
        "Dr. Ada Berg built the mill in 1911.",
        "It burnt down in the spring of 1920, and nobody built it again.",
    )
    assert first == GoldAnswer(built, "Who built the mill?", ("Ada Berg", "Dr. Ada Berg"))
    assert second == GoldAnswer(burnt, "When did it burn down?", ("the spring of 1920",))


def test_questions_are_sampled_by_the_hash_of_their_id(written: Callable[..., Path]) -> None:
    path = written(squad(*((f"Who built mill {n}?", ["Ada Berg"]) for n in range(20))))
    lowest = sorted(range(20), key=lambda n: hashlib.sha256(f"q{n}".encode()).hexdigest())[:6]
    assert [g.question for g in load_answers(path, 6)] == [f"Who built mill {n}?" for n in sorted(lowest)]
    assert len(load_answers(path, 100)) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data":\n [}', r"gold:2: not valid JSON"),
        (b'{"data":\n "\xff"}', r"gold:2: not UTF-8 text"),
        ("[]", r"gold: the whole file: .*; it should be as in SQuAD v1.1"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"gold: data.0.paragraphs.0.context: field required; it should"),
        ('{"data": []}', r"gold: no question that one sentence of 15 to 400 characters answers"),
        (squad(("Who?", ["Nobody"])), r"data.0.paragraphs.0.qas.0.answers.0.answer_start: input should be greater"),
        (
            squad(("Who?", ["Ada"])).replace('"Ada"', '"Eva"'),
            r"gold: question 'q0': its answer 'Eva' should stand at .*4",
        ),
    ],
)
def test_wrong_answers_are_named(content: str | bytes, message: str, written: Callable[..., Path]) -> None:
    with pytest.raises(BrdError, match=message) as caught:
        load_answers(written(content))
    assert "\n" not in str(caught.value)


GOLD = [
    GoldEntities("Mira Okafor of Lund Press left Oslo.", (("Mira Okafor", "person"), ("Lund Press", "organization"))),
    GoldEntities("The Danish crew came from Oslo  Bay.", (("Danish", "other"), ("Oslo  Bay", "location"))),
    GoldEntities("Nobody had seen the ferry leave.", ()),
]
ASKED = [
    GoldAnswer("Dr. Ada Berg built the mill in 1911.", "Who built the mill?", ("Ada Berg", "Dr. Ada Berg")),
    GoldAnswer("Dr. Ada Berg built the mill in 1911.", "What was built?", ("the mill",)),
    GoldAnswer("It burnt down in spring.", "When did it burn down?", ("spring",)),
]


@pytest.mark.parametrize("prompted", [False, True])
def test_perfect_entities(prompted: bool) -> None:
    engine = Canned(lambda n: perfect(GOLD[n]))
    assert entities(engine, GOLD, prompted) == {
        "n": 3, "f1": 1.0, "low": 1.0, "high": 1.0, "precision": 1.0, "recall": 1.0, "f1_untyped": 1.0,
        "well_formed": 1.0,
    }  # fmt: skip
    [(prefix, prompts, stop)] = engine.asked
    if prompted:
        assert (prefix, stop) == (NER.prefix, NER.stop)
        assert prompts[1] == NER.suffix(GOLD[1].sentence)
    else:
        assert (prefix, stop) == ("", ("\n", SEPARATOR))
        assert prompts[0] == "Mira Okafor of Lund Press left Oslo.\n\nEntities:"


def test_no_entities() -> None:
    empty = {"n": 3, "f1": 0.0, "low": 0.0, "high": 0.0, "precision": None, "recall": 0.0, "f1_untyped": 0.0}
    assert entities(Canned(lambda n: ""), GOLD) == empty | {"well_formed": 0.0}
    assert entities(Canned(lambda n: " none"), GOLD) == empty | {"well_formed": 1.0}
    assert entities(Canned(lambda n: perfect(GOLD[n]), finished=False), GOLD) == empty | {"well_formed": 0.0}
    nothing = entities(Canned(lambda n: " none"), GOLD[2:])
    assert nothing == dict.fromkeys(empty) | {"n": 1, "well_formed": 1.0}
    assert entities(Canned(lambda n: ""), []) == dict.fromkeys(empty) | {"n": 0, "well_formed": None}


def test_types_count_apart_from_names() -> None:
    written = [
        " Mira Okafor (person); Lund Press (location); Oslo (location: a city)",
        " Danish (event); Oslo Bay (place: where from); Bergen (location)",
        " none",
    ]
    figures = entities(Canned(written.__getitem__), GOLD)
    assert (figures["precision"], figures["recall"]) == (2 / 4, 2 / 3)
    assert figures["f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert figures["f1_untyped"] == pytest.approx(2 * 3 / (4 + 4))
    assert 0 <= figures["low"] < figures["f1"] < figures["high"] <= 1
    # Bergen is not in its sentence.
    whole = entities(Canned(written.__getitem__), GOLD, drop_bad_parts=False)
    assert (whole["precision"], whole["recall"], whole["well_formed"]) == (1 / 3, 1 / 3, 1.0)


def test_names_match_whatever_their_case_and_count_once() -> None:
    gold = [GoldEntities("OSLO, yes, Oslo it is.", (("OSLO", "location"), ("Oslo", "location")))]
    assert entities(Canned(lambda n: " Oslo (location)"), gold)["f1"] == 1


def test_the_interval_covers_what_resampling_gives() -> None:
    gold = [GoldEntities(f"Only Mira{n} left.", ((f"Mira{n}", "person"),)) for n in range(200)]
    figures = entities(Canned(lambda n: f" Mira{n} (person)" if n % 2 else f" Mira{n} (location)"), gold)
    # F1 is then a share of 200 sentences.
    assert figures["f1"] == 0.5
    assert figures["low"] == pytest.approx(0.5 - 1.96 * (0.25 / 200) ** 0.5, abs=0.02)
    assert figures["high"] == pytest.approx(0.5 + 1.96 * (0.25 / 200) ** 0.5, abs=0.02)


@pytest.mark.parametrize("prompted", [False, True])
def test_perfect_and_empty_answers(prompted: bool) -> None:
    engine = Canned(lambda n: f" {ASKED[n].answers[-1]}.\nand more")
    assert answers(engine, ASKED, prompted) == {"n": 3, "f1": 1.0, "low": 1.0, "high": 1.0, "exact_match": 1.0}
    [(prefix, prompts, stop)] = engine.asked
    if prompted:
        assert (prefix, stop) == (QRA.prefix, QRA.stop)
        assert prompts[2] == QRA.suffix(ASKED[2].sentence) + " When did it burn down?\nAnswer:"
    else:
        assert (prefix, stop) == ("", ("\n\n",))
        assert prompts[2] == "It burnt down in spring.\n\nQuestion: When did it burn down?\nAnswer:"
    none = {"n": 3, "f1": 0.0, "low": 0.0, "high": 0.0, "exact_match": 0.0}
    assert answers(Canned(lambda n: ""), ASKED, prompted) == none
    assert answers(engine, []) == dict.fromkeys(none) | {"n": 0}


def test_the_best_answer_counts() -> None:
    written = [" ada-berg", " A MILL!", " in spring"]
    figures = answers(Canned(written.__getitem__), ASKED)
    assert figures["f1"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert figures["exact_match"] == pytest.approx(1 / 3)
    # Two sentences, one of them right in all its questions: resampling them gives nothing beyond these.
    assert figures["low"] == pytest.approx(2 / 3)
    assert figures["high"] == pytest.approx(1)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> SharedPrefix:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return SharedPrefix(model, AutoTokenizer.from_pretrained(tiny_model), batch_size=4)


@pytest.mark.parametrize("prompted", [False, True])
def test_a_model_gets_figures(prompted: bool, engine: SharedPrefix, written: Callable[..., Path]) -> None:
    marked = written(CONLL, "conll")
    asked = written(squad(("Who built the mill?", ["Ada Berg"]), ("When?", ["1911"])), "squad")
    figures = gold_figures(marked, asked, 10, engine, BEHAVIORS, SEPARATOR, prompted)
    assert json.loads(json.dumps(figures)) == figures
    assert figures == gold_figures(marked, asked, 10, engine, BEHAVIORS, SEPARATOR, prompted)
    assert (figures["entities"]["n"], figures["answers"]["n"]) == (1, 2)
    # Random weights.
    assert figures["entities"]["f1"] == 0
    assert 0 <= figures["answers"]["low"] <= figures["answers"]["f1"] <= figures["answers"]["high"] < 0.5


def test_parts_without_file_or_behavior_are_none(written: Callable[..., Path]) -> None:
    marked, asked = written(CONLL, "conll"), written(squad(("Who built the mill?", ["Ada Berg"])), "squad")
    silent: Any = Canned(lambda n: "")
    none = {"entities": None, "answers": None}
    assert gold_figures(None, None, 10, silent, BEHAVIORS, SEPARATOR, False) == none
    assert gold_figures(marked, asked, 10, silent, {}, SEPARATOR, False) == none
    found = gold_figures(marked, asked, 10, silent, {"qra": QRA}, SEPARATOR, True)
    assert (found["entities"], found["answers"]["n"]) == (None, 1)
    found = gold_figures(marked, None, 1, silent, BEHAVIORS, SEPARATOR, True)
    assert (found["entities"]["n"], found["answers"]) == (1, None)
