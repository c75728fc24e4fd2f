"""Rendering: what records become under a template, few-shot examples, and every way in which they may not fit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.evaluation.items import CONTENT_FREE, Item, content, content_free, half_of, items
from brd.evaluation.tasks import Task, candidates_problem, context_problem, load_task

Records = list[dict[str, Any]]

MOODS: Records = [
    {"text": "It rains.", "mood": "sad"},
    {"text": "We won.", "mood": "glad"},
    {"text": "I am tired.", "mood": "sad"},
    {"text": "The sun is out.", "mood": "glad"},
]
PLAIN = {"prompt": "Text: {{ text }}\nMood:", "candidates": [" bad", " good"]}
PICK = {"prompt": "Pick one:", "candidates": "choices"}


def build(folder: Path, records: Records, template: dict[str, Any], **changes: Any) -> Task:
    """A task of one template over these records; a key that is None is left out."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    task = {
        "name": "mood",
        "version": 1,
        "about": "Mood of a sentence.",
        "source": {"file": "data.jsonl"},
        "templates": {"plain": template},
        "label": "mood",
        "labels": {"sad": 0, "glad": 1},
        "citation": "None.",
        "licence": "CC0",
        **changes,
    }
    kept = {key: value for key, value in task.items() if value is not None}
    (folder / "mood.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return load_task(folder / "mood.yaml")


def by_credits(folder: Path, records: Records, credits: str = "scores", **template: Any) -> Task:
    return build(folder, records, {**PICK, **template}, label=None, labels=None, credits=credits)


def message(task: Task, **how: Any) -> str:
    with pytest.raises(BrdError) as caught:
        list(items(task, **how))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- What records become


def test_fields_are_filled_in_as_plain_text(tmp_path: Path) -> None:
    records = [{"text": "It rains.", "mood": "sad"}, {"text": "<b>{{ 1 + 1 }}</b>\n&", "mood": "glad"}]
    assert list(items(build(tmp_path, records, PLAIN))) == [
        Item("mood/0", "Text: It rains.\nMood:", (" bad", " good"), (1.0, 0.0)),
        Item("mood/1", "Text: <b>{{ 1 + 1 }}</b>\n&\nMood:", (" bad", " good"), (0.0, 1.0)),
    ]


def test_candidates_per_item(tmp_path: Path) -> None:
    template = {"prompt": "{{ text }} So", "candidates": [" {{ a }}", " {{ b | trim }}"]}
    task = build(tmp_path, [{**MOODS[0], "a": "I cry.", "b": " I dance. "}], template)
    assert next(items(task)).candidates == (" I cry.", " I dance.")


def test_fields_are_made_of_the_records_own_and_of_those_before(tmp_path: Path) -> None:
    fields = {"loud": "{{ text | upper }}", "twice": "{{ loud }} {{ loud }}", "mood": "{{ 'glad' if '!' in text }}"}
    task = build(tmp_path, [{"text": "won!"}], {**PLAIN, "prompt": "{{ twice }}"}, fields=fields)
    assert next(items(task)) == Item("mood/0", "WON! WON!", (" bad", " good"), (0.0, 1.0))


def test_an_expression_gives_each_item_its_own_number_of_candidates(tmp_path: Path) -> None:
    records = [
        {"options": {"text": ["red", " blue "], "name": ["A", "B"]}, "key": "B"},
        {"options": {"text": ["one", "two", 3], "name": [1, 2, 3]}, "key": 3},
    ]
    task = build(tmp_path, records, {**PICK, "candidates": "options.text"}, label="key", labels="options.name")
    assert list(items(task)) == [
        Item("mood/0", "Pick one:", (" red", " blue"), (0.0, 1.0)),
        Item("mood/1", "Pick one:", (" one", " two", " 3"), (0.0, 0.0, 1.0)),
    ]


def test_credits_say_what_each_candidate_earns(tmp_path: Path) -> None:
    records = [{"choices": ["a", "b", "c"], "scores": [1, 0.25, True]}]
    assert next(items(by_credits(tmp_path, records))).credits == (1.0, 0.25, 1.0)
    marked = by_credits(tmp_path, [{"choices": ["a", "b"], "right": "b"}], "[right == choices[0], right == choices[1]]")
    assert next(items(marked)).credits == (0.0, 1.0)


def test_verbatim_candidates_follow_the_prompt_as_they_are(tmp_path: Path) -> None:
    records = [{"choices": ["よい", " 悪い", "\nnone"], "scores": [1, 0, 0], "text": "今日は "}]
    found = next(items(by_credits(tmp_path, records, prompt="{{ text }}", verbatim=True)))
    assert (found.context, found.candidates) == ("今日は ", ("よい", " 悪い", "\nnone"))
    assert "ends in whitespace" in message(by_credits(tmp_path, records, prompt="{{ text }}"))


def test_booleans_and_their_words_are_the_same_label(tmp_path: Path) -> None:
    records = [{"text": "a", "mood": mood} for mood in (True, False, "true")]
    task = build(tmp_path, records, PLAIN, labels={False: 0, True: 1})
    assert [item.credits for item in items(task)] == [(0.0, 1.0), (1.0, 0.0), (0.0, 1.0)]


def test_limit_takes_the_first_items(tmp_path: Path) -> None:
    task = build(tmp_path, MOODS, PLAIN)
    assert list(items(task, limit=2)) == list(items(task))[:2]
    assert len(list(items(task, limit=99))) == 4
    with pytest.raises(BrdError, match="limit should be at least 1"):
        items(task, limit=0)


def test_the_unconditional_prompt_is_there_for_pmi_only(tmp_path: Path) -> None:
    task = build(tmp_path, MOODS, {**PLAIN, "unconditional": "A {{ mood | length }}-letter mood:"})
    assert {item.unconditional for item in items(task)} == {None}
    assert [item.unconditional for item in items(task, pmi=True, limit=2)] == ["A 3-letter mood:", "A 4-letter mood:"]
    with pytest.raises(BrdError, match="template plain: the metric pmi needs the template's key `unconditional`"):
        items(build(tmp_path, MOODS, PLAIN), pmi=True)
    spaced = build(tmp_path, MOODS, {**PLAIN, "unconditional": "{{ ' ' }}"})
    assert "ends in whitespace" in message(spaced)


# --- Few-shot examples


def test_examples_come_first_and_are_not_scored(tmp_path: Path) -> None:
    task = build(tmp_path, MOODS, {**PLAIN, "unconditional": "Mood:"}, few_shot={"count": 2, "separator": "\n---\n"})
    front = "Text: It rains.\nMood: bad\n---\nText: We won.\nMood: good\n---\n"
    third, fourth = items(task, pmi=True)
    assert (third.id, third.context) == ("mood/2", f"{front}Text: I am tired.\nMood:")
    assert (fourth.id, fourth.context) == ("mood/3", f"{front}Text: The sun is out.\nMood:")
    assert third.unconditional == "Mood:"
    assert [item.id for item in items(task, limit=1)] == ["mood/2"]


def test_the_number_of_examples_may_be_chosen(tmp_path: Path) -> None:
    task = build(tmp_path, MOODS, PLAIN, few_shot={"count": 2})
    assert next(items(task, shots=0)).context == "Text: It rains.\nMood:"
    assert next(items(task, shots=1)).context == "Text: It rains.\nMood: bad\n\nText: We won.\nMood:"
    assert next(items(build(tmp_path, MOODS, PLAIN))).id == "mood/0"
    with pytest.raises(BrdError, match="at least 0"):
        items(task, shots=-1)


def test_examples_of_another_source_leave_all_items_to_score(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "Hurray!", "mood": "glad"}\n', encoding="utf-8")
    task = build(tmp_path, MOODS, PLAIN, few_shot={"count": 1, "source": {"file": "more.jsonl"}})
    found = list(items(task))
    assert [item.id for item in found] == ["mood/0", "mood/1", "mood/2", "mood/3"]
    assert all(item.context.startswith("Text: Hurray!\nMood: good\n\nText: ") for item in found)


def test_an_example_shows_the_candidate_that_earns_most(tmp_path: Path) -> None:
    records = [{"choices": ["a", "b", "c"], "scores": [0.5, 1, 1]}, {"choices": ["d", "e"], "scores": [1, 0]}]
    assert next(items(by_credits(tmp_path, records), shots=1)).context == "Pick one: b\n\nPick one:"


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "Hurray!", "mood": "glad"}\n', encoding="utf-8")
    task = build(tmp_path, MOODS, PLAIN, few_shot={"count": 2, "source": {"file": "more.jsonl"}})
    assert "2 examples are asked for, its source of examples holds 1" in message(task)
    assert "5 examples are asked for" in message(build(tmp_path, MOODS, PLAIN), shots=5)
    assert "no records beyond the examples" in message(build(tmp_path, MOODS, PLAIN), shots=4)


# --- Halves


def ids(task: Task, **how: Any) -> list[str]:
    return [item.id for item in items(task, **how)]


def numbered(count: int) -> Records:
    return [{"text": f"Line {number}.", "mood": "sad" if number < count / 2 else "glad"} for number in range(count)]


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["sad", "glad"])), min_size=1, max_size=30), st.randoms())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_halves_partition_the_items_in_any_order(tmp_path: Path, drawn: list[tuple[int, str]], random: Any) -> None:
    records = [{"text": f"Line {number}.", "mood": mood, "spare": None} for number, mood in drawn]

    def halves(records: Records) -> tuple[list[Item], list[Item]]:
        task = build(tmp_path, records, PLAIN)
        whole = list(items(task))
        found = []
        for half in ("a", "b"):
            if any(half_of(task, record) == half for record in records):
                found.append(list(items(task, half=half)))
            else:
                assert f"no records in half {half}" in message(task, half=half)
                found.append([])
        a, b = found
        assert [item for item in whole if item in a] == a
        assert sorted(a + b, key=whole.index) == whole
        return a, b

    before = halves(records)
    random.shuffle(records)
    # Neither another order nor another order of the fields nor an empty field moves an item.
    after = halves([{key: record[key] for key in ("mood", "text")} for record in records])
    for one, other in zip(before, after, strict=True):
        assert sorted((i.context, i.credits) for i in one) == sorted((i.context, i.credits) for i in other)


def test_the_label_does_not_move_an_item(tmp_path: Path) -> None:
    records = numbered(60)
    flipped = [{**record, "mood": "glad" if record["mood"] == "sad" else "sad"} for record in records]
    assert ids(build(tmp_path, records, PLAIN), half="a") == ids(build(tmp_path, flipped, PLAIN), half="a")
    scored = [{"choices": ["a", f"{number}"], "scores": [1, 0]} for number in range(60)]
    other = [{**record, "scores": [0, 1]} for record in scored]
    assert ids(by_credits(tmp_path, scored), half="a") == ids(by_credits(tmp_path, other), half="a")
    # Made by an expression, credits may be of any field: all count.
    task = by_credits(tmp_path, scored, "[scores[0], scores[1]]")
    assert content(task, scored[0]) == '{"choices": ["a", "0"], "scores": [1, 0]}'


def test_the_split_is_the_same_on_every_machine_and_for_every_template(tmp_path: Path) -> None:
    short = {"prompt": "{{ text }} So", "candidates": [" bad", " good"]}
    task = build(tmp_path, numbered(20), PLAIN, templates={"plain": PLAIN, "short": short})
    assert content(task, {"text": "Ø", "mood": "sad", "n": 1, "gone": None}) == '{"n": 1, "text": "\\u00d8"}'
    expected = [n for n in range(20) if hashlib.sha256(f'mood\0{{"text": "Line {n}."}}'.encode()).digest()[0] < 128]
    assert ids(task, half="a") == [f"mood/{n}" for n in expected]
    assert ids(task, template="short", half="a") == ids(task, half="a")


def test_halves_are_about_halves_and_the_sample_of_one_is_spread_out(tmp_path: Path) -> None:
    task = build(tmp_path, numbered(2000), PLAIN)
    for half in ("a", "b"):
        whole = ids(task, half=half)
        assert 900 < len(whole) < 1100
        few, more = (ids(task, half=half, limit=limit) for limit in (100, 200))
        assert (len(few), len(more)) == (100, 200)
        # In the order of the source, of the half only; a larger sample holds the smaller one.
        assert [item for item in whole if item in set(more)] == more
        assert set(few) < set(more)
        # Sorted by label, as these records are, the first hundred would all be sad.
        glad = sum(item.credits == (0.0, 1.0) for item in items(task, half=half, limit=100))
        assert 30 < glad < 70
        assert ids(task, half=half, limit=5000) == whole
    assert ids(task, limit=3) == ["mood/0", "mood/1", "mood/2"]


def test_examples_are_not_split_and_not_scored(tmp_path: Path) -> None:
    task = build(tmp_path, numbered(40), PLAIN)
    front = "Text: Line 0.\nMood: bad\n\nText: Line 1.\nMood: bad\n\n"
    found = [list(items(task, shots=2, half=half)) for half in ("a", "b")]
    assert all(item.context.startswith(front) for half in found for item in half)
    assert {item.id for half in found for item in half} == {f"mood/{n}" for n in range(2, 40)}
    assert len(ids(task, shots=2, half="b", limit=5)) == 5


def test_the_half_of_an_example_of_bigbench_does_not_hang_on_its_place(tmp_path: Path) -> None:
    examples = [{"input": f"{n} + 1?", "target_scores": {f"{n + 1}": 1, f"{n}": 0, "0.5": 0}} for n in range(30)]

    def half(examples: Records) -> set[str]:
        (tmp_path / "sums.json").write_text(json.dumps({"examples": examples}), encoding="utf-8")
        return {item.context.split("?")[0] for item in items(load_task(tmp_path / "sums.json"), half="a")}

    assert half(examples) == half(examples[::-1])


def test_an_unknown_half_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrdError, match=r"task mood: unknown half 'c'; .*a"):
        items(build(tmp_path, MOODS, PLAIN), half="c")  # type: ignore[arg-type]


# --- Content-free inputs


def test_content_free_inputs_fill_the_template_with_nothing(tmp_path: Path) -> None:
    records = [{**MOODS[0], "weight": 3}]
    found = content_free(build(tmp_path, records, {**PLAIN, "prompt": "{{ weight }}. {{ text }}\nMood:"}))
    assert [item.context for item in found] == [f"3. {text}\nMood:" for text in CONTENT_FREE]
    assert {item.candidates for item in found} == {(" bad", " good")}
    assert {item.credits for item in found} == {(0.0, 0.0)}
    assert len({item.id for item in found}) == 3


def test_content_free_inputs_have_the_examples_in_front(tmp_path: Path) -> None:
    first = content_free(build(tmp_path, MOODS, PLAIN), shots=1)[0]
    assert first.context == "Text: It rains.\nMood: bad\n\nText: N/A\nMood:"


def test_content_free_inputs_need_no_label(tmp_path: Path) -> None:
    made = build(tmp_path, [{"text": "won!"}], PLAIN, fields={"mood": "{{ 'glad' if '!' in text else 'sad' }}"})
    assert len(content_free(made)) == 3
    credited = build(tmp_path, [{"text": "a"}], PLAIN, label=None, labels=None, credits="[text == 'a', text == 'b']")
    assert len(content_free(credited)) == 3


def test_content_free_inputs_that_break_a_template_are_left_out(tmp_path: Path) -> None:
    found = content_free(build(tmp_path, MOODS, {**PLAIN, "prompt": "{{ text }}\n{{ text[0] }}:"}))
    assert [item.context for item in found] == ["N/A\nN:", "[MASK]\n[:"]


def test_there_are_no_content_free_inputs_where_candidates_are_an_items_own(tmp_path: Path) -> None:
    assert content_free(build(tmp_path, MOODS, {**PLAIN, "candidates": [" bad", " {{ text }}"]})) == []
    assert content_free(by_credits(tmp_path, [{"choices": ["a", "b"], "scores": [1, 0]}])) == []
    assert content_free(build(tmp_path, [], PLAIN)) == []


# --- Records that do not fit


@pytest.mark.parametrize(
    ("template", "change", "words"),
    [
        ({}, {"mood": "angry"}, "label 'angry' is not among labels (sad, glad)"),
        ({}, {"mood": None}, "no label in field 'mood'; fields with a value: text"),
        ({}, {"text": None}, "'text' is undefined; fields with a value: mood"),
        ({"prompt": "{{ txt }}"}, {}, "'txt' is undefined; fields with a value: text, mood"),
        ({"prompt": "{{ text / 2 }}"}, {}, "cannot be filled in"),
        ({"prompt": "{{ text }}"}, {"text": "a "}, "the context ends in whitespace ('a ')"),
        ({"candidates": [" {{ text }}", " b"]}, {"text": ""}, "candidate 0 is empty"),
        ({"candidates": [" {{ text }}", " b"]}, {"text": " a"}, "exactly one space"),
        ({"candidates": [" {{ text }}", " b"]}, {"text": "b"}, "two candidates are the same (' b')"),
        ({"candidates": "[text, 'b']"}, {"text": " "}, "candidate 0 is empty"),
        ({"candidates": "[text, 'b']"}, {"text": " b "}, "two candidates are the same"),
        ({"candidates": "[text, 'b']", "verbatim": True}, {"text": "b"}, "two candidates are the same"),
        ({"candidates": "[text, none]"}, {}, "with a null"),
        ({"candidates": "text"}, {}, "should give a list, not the text 'a'"),
        ({"candidates": "5"}, {}, "cannot be filled in"),
        ({"candidates": "moods"}, {}, "'moods' is undefined"),
        ({"candidates": "moods"}, {"moods": []}, "it has no candidates"),
        (
            {"candidates": "moods"},
            {"mood": "glad", "moods": ["a"]},
            "label 'glad' is candidate 1, but there are only 1",
        ),
    ],
)
def test_records_that_do_not_fit_are_named(
    tmp_path: Path, template: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    task = build(tmp_path, [{"text": "a", "mood": "sad", **change}], {**PLAIN, **template})
    text = message(task)
    assert text.startswith("task mood, template plain, item 0: ")
    assert words in text


def test_the_item_is_named_by_its_position(tmp_path: Path) -> None:
    task = build(tmp_path, [*MOODS, {"text": "a", "mood": "angry"}], PLAIN)
    assert message(task).startswith("task mood, template plain, item 4: ")
    assert message(task, shots=3).startswith("task mood, template plain, item 4: ")
    assert len(list(items(task, limit=4))) == 4


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("names", "'names' is undefined"),
        ("5", "cannot be filled in"),
        ("text", "should give a list"),
        ("['glad']", "label 'sad' is not among labels (glad)"),
        ("['glad', 'mad', 'sad']", "label 'sad' is candidate 2, but there are only 2"),
    ],
)
def test_labels_by_expression_that_do_not_fit_are_named(tmp_path: Path, labels: str, words: str) -> None:
    text = message(build(tmp_path, MOODS, PLAIN, labels=labels))
    assert text.startswith("task mood, template plain, item 0: ")
    assert words in text


@pytest.mark.parametrize(
    ("credits", "words"),
    [
        ("earned", "'earned' is undefined"),
        ("scores", "2 credits for 3 candidates"),
        ("1", "cannot be filled in"),
        ("['a', 'b', 'c']", "could not convert"),
        ("[1, 0, none]", "with a null"),
        ("['nan', 1, 0]", "finite"),
    ],
)
def test_credits_that_do_not_fit_are_named(tmp_path: Path, credits: str, words: str) -> None:
    text = message(by_credits(tmp_path, [{"choices": ["a", "b", "c"], "scores": [1, 0]}], credits))
    assert text.startswith("task mood, template plain, item 0: ")
    assert words in text


def test_fields_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    task = build(tmp_path, MOODS, PLAIN, fields={"short": "{{ long[:3] }}"})
    assert "'long' is undefined" in message(task)


# --- Whatever the text


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.text(max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_items_keep_the_boundary_rule_or_are_refused(tmp_path: Path, choices: list[str], text: str) -> None:
    record = {"choices": choices, "scores": [1] * len(choices), "text": text}
    task = by_credits(tmp_path, [record], prompt="{{ text }}")
    shown = [choice.strip() for choice in choices]
    fits = text == text.rstrip() and all(shown) and len(set(shown)) == len(shown)
    if not fits:
        message(task)
        return
    (item,) = items(task)
    assert item.context == text
    assert item.candidates == tuple(f" {choice}" for choice in shown)
    assert context_problem(item.context) is None
    assert candidates_problem(item.candidates) is None


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_verbatim_texts_are_not_touched(tmp_path: Path, context: str, answer: str) -> None:
    record = {"choices": [answer, f"{answer}."], "scores": [1, 0], "text": context}
    task = by_credits(tmp_path, [record], prompt="{{ text }}", verbatim=True)
    if not answer.strip():
        assert "candidate 0 is empty" in message(task)
        return
    assert next(items(task)) == Item("mood/0", context, (answer, f"{answer}."), (1.0, 0.0))
