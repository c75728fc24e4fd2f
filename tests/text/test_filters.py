"""Each filter by itself: what it drops, what it keeps, and that it does so in the same way each time."""

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.sections.filters import Filters
from brd.text.filters import FILTERS, Context, Decision
from brd.text.ngrams import words_of
from brd.text.paragraph import Paragraph

HARBOUR = (
    "The ferry leaves the old harbour at nine every morning, and the gulls follow it past the lighthouse until the "
    "captain has no more bread to throw; then they turn back and sit on the customs house roof till the evening boat."
)
# Two runs in a row of different words.
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


def judge(name: str, texts: Sequence[str], context: Context | None = None, **keys: Any) -> list[Decision | None]:
    """The decisions of one filter on paragraphs, each a document of its own."""
    section = Filters.model_validate({name: keys}).on()[name]
    one = FILTERS[name](section, context or Context())
    return [one.judge(Paragraph(f"d{number}", 0, text)) for number, text in enumerate(texts)]


def kept(name: str, texts: Sequence[str], context: Context | None = None, **keys: Any) -> list[int]:
    return [number for number, decision in enumerate(judge(name, texts, context, **keys)) if decision is None]


def test_every_filter_has_a_section_and_every_section_a_filter() -> None:
    assert set(Filters.model_fields) == {*FILTERS, "spare"}
    assert not Filters().on()


# Length


def test_length_in_characters_and_words() -> None:
    texts = ["ab", "abc", "abcd", "abcde"]
    assert kept("length", texts, min_characters=3, max_characters=4) == [1, 2]
    assert judge("length", texts, max_characters=4)[3] == Decision("5 characters")
    assert kept("length", ["one", "one, two!", "a-b-c"], min_words=2, max_words=2) == [1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [({}, "at least one of"), ({"min_words": 5, "max_words": 4}, r"min_words \(5\) is above max_words \(4\)")],
)
def test_limits_that_make_no_sense(keys: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters.model_validate({"length": keys})


# Language


LANGUAGES = {
    "en": "The bus leaves half an hour later today because of the snow.",
    "de": "Der Bus fährt heute wegen des Schnees eine halbe Stunde später ab.",
    "fr": "Le boulanger ferme sa boutique à midi le dimanche.",
    "es": "Los niños dibujaron un barco en la arena mojada.",
    "pl": "Pociąg do Gdańska odjeżdża dzisiaj z drugiego peronu.",
    "ru": "Паром отходит от причала в девять утра.",
    "zh": "渡轮每天早上九点从旧港口出发，海鸥一直跟着它飞过灯塔。",
    "ar": "تغادر العبارة المرفأ القديم كل صباح في التاسعة.",
}


def test_each_language_is_kept_by_its_code_alone() -> None:
    texts = list(LANGUAGES.values())
    for number, code in enumerate(LANGUAGES):
        assert kept("language", texts, keep=[code], min_characters=1) == [number]
        assert kept("language", texts[number : number + 2], Context(language=code), min_characters=1) == [0]


def test_language_details_short_texts_and_confidence() -> None:
    found = judge("language", [LANGUAGES["de"], "Ja.", "978-3-16-148410-0 | 12 34 | 56 78 | 90 12 | 34 56"])
    assert found[0] is not None
    assert re.fullmatch(r"de \(\d\.\d\d\)", found[0].detail)
    assert found[1] is None
    assert found[2] is not None
    assert kept("language", ["Ja."], min_characters=1) == []
    assert kept("language", list(LANGUAGES.values()), keep=["de", "fr"], min_characters=1) == [1, 2]
    assert kept("language", ["“Miss Tinka Varro, I suppose?” said he."]) == [0]
    assert kept("language", ["“Miss Tinka Varro, I suppose?” said he."], confidence=0.9) == []
    assert kept("language", [LANGUAGES["en"].replace(" ", "\n")]) == [0]
    with pytest.raises(BrdError, match=r"text.filters.language.keep: unknown language 'eng'; did you mean 'en'"):
        judge("language", [], keep=["eng"])


# Repetition


def test_repetition_drops_what_gopher_drops_and_keeps_prose() -> None:
    menu = "Home Contact Login " * 20
    # A short run many times among other words; and a long one twice.
    chant = " ".join(f"so{n} and so on" for n in range(20))
    halves = " ".join([f"{word}{n}" for word in WORDS for n in (1, 2)] * 2)
    found = judge("repetition", [HARBOUR, menu, chant, halves, "ha ha ha ha"], min_words=20)
    assert [d is None for d in found] == [True, False, False, False, True]
    assert [d.detail.rsplit(" ", 1)[0] for d in found if d] == [
        "commonest 2-gram", "commonest 2-gram", "repeated 5-grams",
    ]  # fmt: skip
    assert kept("repetition", ["ha ha ha ha"], min_words=3) == []


def test_repeated_lines() -> None:
    refrain = "\n".join(["Row the boat", "to the north", "Row the boat", "to the south"])
    found = judge("repetition", [refrain, "\n".join(WORDS), "a\na\nb\nc\nd\ne"], line_characters=0.1)
    assert found[0] == Decision("characters in repeated lines 0.25")
    assert [d is None for d in found[1:]] == [True, False]
    assert kept("repetition", ["\n".join(["Same line."] * 3)]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 4))
def test_repeated_runs_equal_a_plain_count(words: list[str], n: int) -> None:
    seen: set[tuple[str, ...]] = set()
    at = covered = 0
    while at + n <= len(words):
        gram = tuple(words[at : at + n])
        if gram in seen:
            covered, at = covered + n, at + n
        else:
            seen.add(gram)
            at += 1
    share = covered / len(words)
    keys: dict[str, Any] = {"top_ngrams": {}, "min_words": 1}
    text = " ".join(words)
    assert kept("repetition", [text], repeated_ngrams={n: share}, **keys) == [0]
    if covered:
        found = judge("repetition", [text], repeated_ngrams={n: max(0.0, share - 1e-9)}, **keys)[0]
        assert found == Decision(f"repeated {n}-grams {share:.2f}")


# Duplicates


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "A!", "a ", "b", "bb", "ccc"]), max_size=30))
def test_exact_duplicates_keep_the_first_of_each(texts: list[str]) -> None:
    first = [number for number, text in enumerate(texts) if text not in texts[:number]]
    assert kept("exact_duplicates", texts) == first
    folded = [(words_of(text)) for text in texts]
    assert kept("exact_duplicates", texts, fold=True) == [n for n, f in enumerate(folded) if f not in folded[:n]]
    assert kept("exact_duplicates", texts, min_characters=3) == [
        n for n, text in enumerate(texts) if len(text) < 3 or n in first
    ]


def test_a_duplicate_names_the_first() -> None:
    found = judge("exact_duplicates", ["x", HARBOUR, HARBOUR])
    assert found == [None, None, Decision("as d1/0")]
    # Marks alone fold to nothing, and are then compared as they are.
    assert kept("exact_duplicates", ["***", "---", "***"], fold=True) == [0, 1]


def altered(text: str, number: int, seed: int = 0) -> str:
    """The text with so many of its words replaced."""
    words = text.split(" ")
    for at in random.Random(seed).sample(range(len(words)), number):
        words[at] = f"other{at}"
    return " ".join(words)


def jaccard(a: str, b: str, n: int) -> float:
    one, two = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (words_of(a), words_of(b)))
    return len(one & two) / len(one | two)


LONG = " ".join(f"{word}{number}" for number in range(15) for word in WORDS)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_near_duplicates_follow_the_share_of_common_runs(threshold: float) -> None:
    wrong = checked = 0
    for seed in range(12):
        copy = altered(LONG, 2 * seed + 1, seed)
        share = jaccard(LONG, copy, 5)
        # Three standard errors of the estimate.
        if abs(share - threshold) > 3 * (threshold * (1 - threshold) / 128) ** 0.5 + 0.02:
            checked += 1
            wrong += kept("near_duplicates", [LONG, copy], threshold=threshold) != (
                [0] if share > threshold else [0, 1]
            )
    assert checked >= 5
    assert wrong == 0


def test_what_only_looks_near_to_the_index_is_kept() -> None:
    # Of 60 texts well below the threshold the index proposes some; the estimated share decides.
    copies = [altered(LONG, 30, seed) for seed in range(60)]
    assert max(jaccard(LONG, copy, 5) for copy in copies) < 0.4
    assert len(kept("near_duplicates", [LONG, *copies], threshold=0.5)) == 61


def test_near_duplicates_keep_the_first_and_tell_what_it_is() -> None:
    texts = [HARBOUR, altered(LONG, 5), LONG, HARBOUR.upper(), "eight words that stand here two times over"]
    texts.append(texts[-1])
    found = judge("near_duplicates", texts, threshold=0.5)
    assert [d is None for d in found] == [True, True, False, False, True, True]
    assert found[3] == Decision("1.00 as d0/0")
    assert found[2] is not None
    assert re.fullmatch(r"0\.\d\d as d1/0", found[2].detail)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=5, max_size=30).map(" ".join), max_size=12))
def test_near_duplicates_are_the_same_each_time_and_hold_all_exact_ones(texts: list[str]) -> None:
    keys = {"permutations": 32, "min_words": 5}
    first = kept("near_duplicates", texts, **keys)
    assert first == kept("near_duplicates", texts, **keys)
    assert len({texts[n] for n in first}) == len(first)
    # What comes later changes nothing about what came before.
    assert kept("near_duplicates", texts[:6], **keys) == [n for n in first if n < 6]


# Tests


def context(*fields: str) -> Context:
    return Context(tests=lambda: [(f"t/{number}", (field,)) for number, field in enumerate(fields)])


def test_decontamination_drops_the_paragraph_that_completes_a_run() -> None:
    fifteen, eight = " ".join(WORDS[:15]), "a short field of exactly eight words here"
    tests = context("nothing", fifteen, eight)
    texts = [f"Before {' '.join(WORDS[:13]).upper()} after", " ".join(WORDS[:12]), f"So: {eight}!", eight[:-5]]
    assert judge("decontaminate", texts, tests) == [
        Decision("t/1: " + " ".join(WORDS[:13])), None, Decision(f"t/2: {eight}"), None,
    ]  # fmt: skip
    assert kept("decontaminate", texts, tests, n=5) == []
    with pytest.raises(BrdError, match="the tests are not known here"):
        judge("decontaminate", texts)


def test_runs_go_across_the_paragraphs_of_a_document_only() -> None:
    one = FILTERS["decontaminate"](
        Filters.model_validate({"decontaminate": {}}).decontaminate, context(" ".join(WORDS))
    )
    half, rest = " ".join(WORDS[:7]), " ".join(WORDS[7:])
    found = [one.judge(Paragraph(d, i, t)) for d, i, t in [("a", 0, half), ("a", 1, rest), ("b", 0, rest)]]
    assert [d is None for d in found] == [True, False, True]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=4),
    st.lists(st.tuples(st.sampled_from("xy"), st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)), max_size=8),
    st.integers(2, 5),
    st.integers(1, 5),
)
def test_what_is_left_is_clean_by_the_check_of_corpora(
    fields: list[str], stream: list[tuple[str, str]], n: int, short: int
) -> None:
    from brd.evaluation.contamination import TaskItem, find_overlap

    stream = sorted(stream, key=lambda pair: pair[0])
    section = Filters.model_validate({"decontaminate": {"n": n, "short": short}}).decontaminate
    one = FILTERS["decontaminate"](section, context(*fields))
    left = [(d, t) for number, (d, t) in enumerate(stream) if one.judge(Paragraph(d, number, t)) is None]
    items = [TaskItem("t", str(number), (field,)) for number, field in enumerate(fields)]

    def flagged(corpus: list[tuple[str, str]]) -> bool:
        return any(task.flagged for task in find_overlap(items, corpus, n, short).values())

    assert not flagged(left)
    if not flagged(stream):
        assert left == stream


# Personal data


@pytest.mark.parametrize(
    ("text", "left", "detail"),
    [
        ("Write to ana.reyes+x@mail.example.org.", "Write to <EMAIL>.", "1 email"),
        ("Ask José@münster.example, or a@b.example!", "Ask <EMAIL>, or <EMAIL>!", "2 email"),
        ("Call +44 20 7946 0958 now.", "Call <PHONE> now.", "1 phone"),
        ("Server 8.8.8.8 and 2001:4860:4860::8888.", "Server <IP> and <IP>.", "2 ip"),
        ("Pay to GB82 WEST 1234 5698 7654 32 PLEASE", "Pay to <IBAN> PLEASE", "1 iban"),
        ("Pay DE89370400440532013000 today", "Pay <IBAN> today", "1 iban"),
        ("Card 4111 1111 1111 1111, thanks", "Card <CARD>, thanks", "1 card"),
        ("Card 3782-822463-10005 or 5555555555554444", "Card <CARD> or <CARD>", "2 card"),
    ],
)
def test_personal_data_is_replaced(text: str, left: str, detail: str) -> None:
    assert judge("pii", [text]) == [Decision(detail, left)]
    assert judge("pii", [text], action="drop") == [Decision(detail)]


@pytest.mark.parametrize(
    "text",
    [
        HARBOUR,
        "At 12:30:45 he said @home and me@ or user@localhost, a::b and std::vector<int>.",
        "Private 192.168.0.1, this machine 127.0.0.1, no address 300.1.2.3, chapter 1.2.3.4.5.",
        "Card 4111 1111 1111 1112, ISBN 978-3-16-148410-0, GB82 WEST 1234 5698 7654 33.",
        "In 1914 to 1918, 3.14159265358979, 1,234,567,890 and 20 7946 0958.",
    ],
)
def test_what_is_no_personal_data_stays(text: str) -> None:
    assert judge("pii", [text]) == [None]


def test_numbers_without_a_country_need_a_region_and_kinds_can_be_chosen() -> None:
    text = "Ring 020 7946 0958 or write to a@b.example."
    assert judge("pii", [text], kinds=["phone"]) == [None]
    assert judge("pii", [text], region="GB") == [
        Decision("1 email, 1 phone", "Ring <PHONE> or write to <EMAIL>.")
    ]  # fmt: skip
    assert judge("pii", [text], kinds=["email"], region="GB") == [
        Decision("1 email", "Ring 020 7946 0958 or write to <EMAIL>.")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown kind 'mail'; did you mean 'email'"):
        Filters.model_validate({"pii": {"kinds": ["mail"]}})


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab@.: -0123456789+GB<>"), max_size=60))
def test_replacing_twice_changes_no_more(text: str) -> None:
    once = judge("pii", [text])[0]
    if once is not None:
        assert once.text not in (None, text)
        assert judge("pii", [str(once.text)]) == [None]


def test_long_lines_of_marks_take_no_time() -> None:
    import time

    start = time.process_time()
    judge("pii", ["a@" * 20_000, "1 " * 20_000, "a." * 20_000 + "@", "GB82 " * 8_000, ":" * 40_000, "0:" * 20_000])
    assert time.process_time() - start < 5
