"""Rows as a model is given them: with the documents of a row in sight of each other, or kept apart.

Kept apart, each document starts at position 0 and sees only itself, and no document's first token is predicted from
the one before. transformers makes the mask from the positions that start again, where it is given neither mask nor
cache; but some of its models (XGLM and OPT among them) do not hand the positions on, and their documents would see
each other without a word. So a model is asked, not believed: what keeps its documents apart is found by running it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from brd.composing.packing import TokenRows, tokenizer_mark
from brd.errors import BrdError
from brd.training.loss import IGNORED

Apart = Literal["positions", "mask"]
"""What keeps documents apart: positions that start again, or a mask besides."""

# What a row kept apart brings along, for whatever runs a model on it.
_BESIDE = ("position_ids", "attention_mask")
# Tokens of the document that is asked about, and of its neighbour.
_ASKED = 16
# Of what a neighbour does to a document in its sight, so much may be left.
_LEFT = 0.01
# Weights of 16 bits: the other kernel that a masked row may take rounds otherwise than that of a document alone, while
# two masked rows are rounded alike.
_ROUNDED = 0.25


def row_inputs(rows: TokenRows, index: int, apart: Apart | None = None) -> dict[str, torch.Tensor]:
    """Inputs of a causal LM for one row: ``input_ids`` and ``labels`` [tokens], with ``apart`` also ``position_ids``
    [tokens] and, where that is what keeps documents apart, ``attention_mask`` [1, tokens, tokens] to be added.

    Padding is no label. Neither is a document's first token when documents are kept apart.
    """
    ids = torch.from_numpy(rows[index])
    filled = int(rows.filled[index])
    labels = ids
    if apart is None:
        if filled < len(ids):
            labels = ids.clone()
            labels[filled:] = IGNORED
        return {"input_ids": ids, "labels": labels}
    # What is behind the last document is one more, which nothing is learned from.
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.from_numpy(rows.ends(index))])
    starts = starts[starts < len(ids)]
    labels = ids.clone()
    labels[starts] = IGNORED
    labels[filled:] = IGNORED
    return {"input_ids": ids, "labels": labels, **_kept_apart(starts, len(ids), apart)}


def _kept_apart(starts: torch.Tensor, length: int, apart: Apart) -> dict[str, torch.Tensor]:
    places = torch.arange(length)
    document = torch.bucketize(places, starts, right=True) - 1
    inputs = {"position_ids": places - starts[document]}
    if apart == "mask":
        seen = (document[:, None] == document[None]) & (places[:, None] >= places[None])
        # Added to the scores, which models of every attention take; one that is to be true or false is not.
        mask = torch.full((length, length), torch.finfo(torch.float32).min).masked_fill_(seen, 0.0)
        inputs["attention_mask"] = mask[None]
    return inputs


def beside_ids(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model is given beside the ids of a batch of ``row_inputs``: nothing, where it is not to keep the
    documents of a row apart."""
    return {name: batch[name] for name in _BESIDE if name in batch}


@torch.no_grad()
def what_keeps_apart(model: Any, who: str = "a") -> Apart:
    """What keeps the documents of a row apart in this model, found by its logits of a document behind two different
    neighbours, which must be the same, and those of the document alone.

    Raises BrdError, with ``who`` before the model's class, when nothing does. Asked without autocast, in the weights'
    own dtype.
    """
    device, size = model.device, model.get_input_embeddings().num_embeddings
    document = torch.arange(1, _ASKED + 1) % size
    neighbours = [(document * factor + 3) % size for factor in (5, 11)]
    starts = torch.tensor([0, _ASKED])

    def logits(neighbour: torch.Tensor | None, apart: Apart | None) -> torch.Tensor:
        ids = document if neighbour is None else torch.cat([neighbour, document])
        inputs = {} if apart is None else _kept_apart(starts, len(ids), apart)
        batch = {name: tensor[None].to(device) for name, tensor in {"input_ids": ids, **inputs}.items()}
        found: torch.Tensor = model(**batch, use_cache=False).logits[0, -_ASKED:].float()
        return found

    training = model.training
    model.eval()
    try:
        alone = logits(None, None)

        def moved(apart: Apart | None) -> tuple[float, float]:
            """By another neighbour, and by having one."""
            one, other = (logits(neighbour, apart) for neighbour in neighbours)
            return _distance(one, other), max(_distance(one, alone), _distance(other, alone))

        seen, rounded = moved(None), _ROUNDED if torch.finfo(model.dtype).bits == 16 else _LEFT
        ways: tuple[Apart, ...] = ("positions", "mask")
        for way in ways:
            try:
                left = moved(way)
            # Whatever a model's code raises on such inputs means that they do not keep its documents apart.
            except Exception:
                continue
            if left[0] <= _LEFT * seen[0] and left[1] <= rounded * seen[1]:
                return way
    finally:
        model.train(training)
    raise BrdError(
        f"training.attention: {who} {type(model).__name__} lets the documents of a row see each other, whatever it is "
        "told about where they begin; use training.attention: row"
    )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt())


def check_tokenizer(rows: TokenRows, folder: Path, tokenizer: Any) -> None:
    """BrdError when the tokens in a folder are another tokenizer's."""
    made_by = rows.meta.get("tokenizer")
    # Files of earlier versions do not say.
    if made_by is not None and made_by != (own := tokenizer_mark(tokenizer)):
        raise BrdError(
            f"{folder}: these are the tokens of another tokenizer than the student's ({made_by}, not {own}); "
            "run `brd compose` again, or name the student that they were made for"
        )


def check_vocabulary(rows: TokenRows, folder: Path, model: Any) -> None:
    """BrdError when the tokens in a folder are more kinds than a model has embeddings for."""
    vocabulary, known = rows.meta.get("vocabulary", 0), model.get_input_embeddings().num_embeddings
    if vocabulary > known:
        raise BrdError(
            f"{folder}: the tokens are of a vocabulary of {vocabulary}, the student's embedding has {known}; "
            "save the model with the tokenizer that it was trained with"
        )


def trained_tokens(rows: TokenRows, order: list[int]) -> int:
    """Tokens of the rows in ``order``, padding not counted."""
    return int(rows.filled[order].sum())
