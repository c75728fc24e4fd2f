"""Scoring: the packed path equals the plain one on several architectures, and both equal sums done by hand."""

import math
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from brd.embedded import smollm2_folder
from brd.errors import BrdError
from brd.evaluation.scoring import METRICS, CandidateScore, ItemScores, score, score_reference
from brd.evaluation.tasks import Item

ITEMS = [
    Item("t/0", "The sky is", (" blue", " green"), 0),
    Item("t/1", "Question: How do you boil an egg?\nAnswer:", (" In a pot of hot water", " On the roof, at night"), 0),
    Item("t/2", "She took the umbrella because it", (" was", " was raining", " rained hard all day", " did"), 1),
    Item("t/3", "Is fire cold?\nYes or no:", (" yes", " no", " maybe"), 1),
    Item("t/4", "Two plus two makes four, and three plus three makes six, so five plus five makes", (" ten", " 11"), 0),
]
FAST: Any = PreTrainedTokenizerFast
FAMILIES: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64},
    "gpt_neox": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
    },
    "xglm": {"d_model": 32, "attention_heads": 2, "num_layers": 2, "ffn_dim": 64},
    # Caps its logits after the head, so it shows that what follows the head still happens.
    "gemma2": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "final_logit_softcapping": 2.0,
    },
}


def tiny(family: str, vocabulary: int, **changes: object) -> Any:
    """A random model in float32, its weights scaled up so that its probabilities are far from uniform."""
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **(FAMILIES[family] | special | changes))
    torch.manual_seed(0)
    build: Any = AutoModelForCausalLM
    model = build.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def words(
    *vocabulary: str, bos: str | None = None, eos: str | None = None, wrap: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer of whole words, without a padding token; ``wrap`` puts BOS before and EOS after each text."""
    names = ["<unk>", *vocabulary, *filter(None, (bos, eos))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if wrap and bos and eos:
        specials = [(bos, names.index(bos)), (eos, names.index(eos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=specials)
    tokenized: PreTrainedTokenizerBase = FAST(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="<unk>"
    )
    return tokenized


def by_hand(model: PreTrainedModel, context: list[int], candidate: list[int]) -> float:
    with torch.no_grad():
        logprobs = model(torch.tensor([context + candidate[:-1]])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(context) - 1 + n, token]) for n, token in enumerate(candidate))


def values(scores: list[ItemScores]) -> list[float]:
    return [candidate.logprob for item in scores for candidate in item.candidates]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_folder())


@pytest.fixture(scope="module", params=["smollm2", *FAMILIES])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedModel]:
    if request.param == "smollm2":
        yield AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    else:
        yield tiny(request.param, len(tokenizer))


def test_packed_scores_equal_the_plain_ones_at_any_batch_size(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = [score_reference(model, tokenizer, item) for item in ITEMS]
    for batch_tokens in (1, 48, 4096):
        packed = score(model, tokenizer, ITEMS, batch_tokens=batch_tokens)
        assert values(packed) == pytest.approx(values(plain), abs=1e-4)
        assert [s.id for s in packed] == [item.id for item in ITEMS]
        for metric in METRICS:
            assert [s.prediction(metric) for s in packed] == [s.prediction(metric) for s in plain]


def test_smollm2_knows_the_sky(tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    (sky,) = score(model, tokenizer, ITEMS[:1])
    context = tokenizer(ITEMS[0].context)["input_ids"]
    expected = [by_hand(model, context, tokenizer(text)["input_ids"]) for text in ITEMS[0].candidates]
    assert values([sky]) == pytest.approx(expected, abs=1e-4)
    assert sky.prediction() == 0


def test_candidates_with_the_same_input_share_one_row(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("gpt2", len(tokenizer))
    shapes = []
    model.register_forward_pre_hook(lambda _m, _a, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    score(model, tokenizer, [ITEMS[3]])
    score(model, tokenizer, [ITEMS[2]])
    # " was" and " did" are read off a row that begins with their input; " was raining" and the long one need their own.
    assert [rows for rows, _ in shapes] == [1, 2]


def test_the_head_runs_only_where_candidates_are_predicted(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("gpt2", len(tokenizer))
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, _a, logits: sizes.append(logits.numel() // len(tokenizer)))
    scores = score(model, tokenizer, [ITEMS[1]])
    assert sum(sizes) == sum(candidate.tokens for candidate in scores[0].candidates)


def test_batches_keep_their_limit_and_progress_counts_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("gpt2", len(tokenizer))
    sizes = []
    model.register_forward_pre_hook(lambda _m, _a, given: sizes.append(given["input_ids"].numel()), with_kwargs=True)
    calls: list[tuple[int, int]] = []
    score(model, tokenizer, ITEMS, batch_tokens=48, progress=lambda done, total: calls.append((done, total)))
    assert max(sizes) <= 48
    assert len(calls) == len(sizes) > 1
    assert calls[-1][0] == calls[-1][1]


def test_dropout_is_off_while_scoring_and_the_mode_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("gpt2", len(tokenizer))
    expected = values(score(model, tokenizer, ITEMS[:2]))
    model.train()
    assert values(score(model, tokenizer, ITEMS[:2])) == expected
    assert model.training


def test_the_tokenizers_bos_stands_first_and_its_eos_is_not_scored() -> None:
    tokenizer = words("a", "b", "c", bos="<s>", eos="</s>", wrap=True)
    model = tiny("gpt2", len(tokenizer))
    (found,) = score(model, tokenizer, [Item("t/0", "a b", (" c", " b a"), 0)])
    assert [candidate.tokens for candidate in found.candidates] == [1, 2]
    assert values([found]) == pytest.approx(
        [by_hand(model, [4, 1, 2], [3]), by_hand(model, [4, 1, 2], [2, 1])], abs=1e-5
    )


def test_an_empty_context_is_preceded_by_bos_or_eos_or_refused() -> None:
    item = Item("t/0", "", (" a b", " b"), 0)
    tokenizer = words("a", "b", eos="</s>")
    model = tiny("gpt2", len(tokenizer))
    expected = [by_hand(model, [3], [1, 2]), by_hand(model, [3], [2])]
    assert values(score(model, tokenizer, [item])) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(BrdError, match=r"item t/0: .*no BOS or EOS"):
        score(model, words("a", "b"), [item])


def test_a_token_merged_across_the_boundary_belongs_to_the_candidate() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "c": 3, "d": 4, " ": 5, "b ": 6}
    bpe = Tokenizer(models.BPE(vocabulary, [("b", " ")], unk_token="<unk>"))
    tokenizer = FAST(tokenizer_object=bpe, unk_token="<unk>")
    model = tiny("gpt2", len(vocabulary))
    # Alone, "ab" is [a, b] and " c" is [space, c]; together they are [a, "b ", c].
    item = Item("t/0", "ab", (" c", " d"), 0)
    expected = [by_hand(model, [1], [6, 3]), by_hand(model, [1], [6, 4])]
    for scores in (score(model, tokenizer, [item]), [score_reference(model, tokenizer, item)]):
        assert values(scores) == pytest.approx(expected, abs=1e-5)
        assert [candidate.tokens for candidate in scores[0].candidates] == [2, 2]


def test_candidates_that_share_a_row_may_begin_at_different_tokens() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "d": 3, "e": 4, " ": 5, " d": 6, "b ": 7, "b e": 8}
    bpe = Tokenizer(models.BPE(vocabulary, [(" ", "d"), ("b", " "), ("b ", "e")], unk_token="<unk>"))
    tokenizer = FAST(tokenizer_object=bpe, unk_token="<unk>")
    model = tiny("gpt2", len(vocabulary))
    # "ab d" is [a, b, " d"] but "ab e" is [a, "b e"], whose input [a] begins the other's [a, b].
    scores = score(model, tokenizer, [Item("t/0", "ab", (" d", " e"), 0)])
    assert values(scores) == pytest.approx([by_hand(model, [1, 2], [6]), by_hand(model, [1], [8])], abs=1e-5)


def test_a_candidate_that_the_tokenizer_drops_still_has_one_token() -> None:
    tokenizer = words("a", "b")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("!", "")
    model = tiny("gpt2", len(tokenizer))
    (found,) = score(model, tokenizer, [Item("t/0", "a b", (" !", " a"), 0)])
    assert [candidate.tokens for candidate in found.candidates] == [1, 1]
    assert values([found]) == pytest.approx([by_hand(model, [1], [2]), by_hand(model, [1, 2], [1])], abs=1e-5)


def test_a_long_context_is_cut_from_the_left_alike_for_all_candidates() -> None:
    tokenizer = words(*"abcdef")
    model = tiny("gpt2", len(tokenizer), n_positions=8)
    long = Item("t/0", "a b c d e f " * 4 + "f e", (" a b c", " d"), 0)
    # The longest candidate feeds two of its tokens; six of the 26 context tokens are left.
    short = Item("t/0", "c d e f f e", long.candidates, 0)
    found, kept = score(model, tokenizer, [long, short])
    assert (found.truncated, kept.truncated) == (20, 0)
    assert values([found]) == pytest.approx(values([kept]), abs=1e-5)
    with pytest.raises(BrdError, match=r"item t/0: .*window of 8 tokens"):
        score(model, tokenizer, [Item("t/0", "a", (" a" * 9, " b"), 0)])


def test_a_bos_survives_the_cut() -> None:
    tokenizer = words("a", "b", "c", bos="<s>", eos="</s>", wrap=True)
    model = tiny("gpt2", len(tokenizer), n_positions=4)
    (found,) = score(model, tokenizer, [Item("t/0", "a a a a a b", (" c", " a"), 0)])
    assert found.truncated == 3
    assert values([found])[0] == pytest.approx(by_hand(model, [4, 1, 1, 2], [3]), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_reported_with_the_item(bad: float) -> None:
    tokenizer = words("a", "b")
    model = tiny("gpt2", len(tokenizer))
    # Only the logit of <unk>, which is no candidate.
    model.lm_head.register_forward_hook(lambda _m, _a, logits: logits.index_fill(-1, torch.tensor([0]), bad))
    item = Item("t/7", "a", (" a", " b"), 0)
    for attempt in (lambda: score(model, tokenizer, [item]), lambda: score_reference(model, tokenizer, item)):
        with pytest.raises(BrdError, match="item t/7, candidate"):
            attempt()


def test_lengths_leave_the_leading_space_out() -> None:
    tokenizer = words("é", "ab", "a")
    model = tiny("gpt2", len(tokenizer))
    (found,) = score(model, tokenizer, [Item("t/0", "a", (" é ab", " ab"), 0)])
    assert [(c.tokens, c.characters, c.bytes) for c in found.candidates] == [(2, 4, 5), (1, 2, 2)]
    long = found.candidates[0]
    assert [long.value(metric) * n for metric, n in zip(METRICS, (2, 1, 4, 5), strict=True)] == pytest.approx(
        [long.logprob] * 4
    )


def test_metrics_can_disagree() -> None:
    candidates = (CandidateScore(" abcdefgh", -3.0, 2, 8, 16), CandidateScore(" ab", -2.0, 1, 2, 2))
    scores = ItemScores("t/0", 0, candidates, 0)
    assert [scores.prediction(metric) for metric in METRICS] == [0, 1, 0, 0]


@given(st.text(max_size=8), st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=4))
def test_a_tie_goes_to_the_same_text_wherever_it_stands(name: str, texts: set[str]) -> None:
    tied = [CandidateScore(text, -1.0, 1, 1, 1) for text in sorted(texts)]
    orders = [ItemScores(name, 0, order, 0) for order in permutations(tied)]
    assert len({scores.candidates[scores.prediction()].text for scores in orders}) == 1


def test_ties_favour_no_position() -> None:
    tied = (CandidateScore(" no", -1.0, 1, 2, 2), CandidateScore(" yes", -1.0, 1, 3, 3))
    first = sum(ItemScores(f"t/{n}", 0, tied, 0).prediction() == 0 for n in range(1000))
    assert 400 < first < 600
