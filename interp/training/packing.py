"""Several documents in one row, each of which sees itself alone.

Packed rows waste no positions on padding. What must not happen is that a document attends to
another one, or that its positions begin where another one ended: the model would then be trained
and measured on something else. `packed` makes the forward that keeps documents apart, and verifies
on the model that it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import LoadError
from interp.subject.batch import Batch, token_ids
from interp.subject.decoding import Decoding
from interp.subject.subject import Subject, evaluating

_DOCUMENTS = "documents"

# As a share of the spread of the logits. Rounding is below 1e-5 in float32; what another document
# or another position does is 0.1 and more, also in models that are not trained.
_ROUNDING = 1e-3
_PROBED = 6  # tokens of each document that the forward is verified on


def pack(documents: Iterable[Sequence[int]], length: int) -> Batch:
    """Returns documents in rows, one behind the other in their order.

    The first token of a document is never predicted, and padding fills the end of a row.

    Args:
        documents: token ids of each document.
        length: number of tokens of a row.

    Raises:
        ValueError: no documents, an empty one, or one that is longer than a row.

    Example:
        >>> from interp.training.packing import documents_of, pack
        >>> rows = pack([[5, 6, 7], [8, 9], [3, 4]], length=6)
        >>> rows.tokens.tolist()
        [[5, 6, 7, 8, 9, 0], [3, 4, 0, 0, 0, 0]]
        >>> documents_of(rows).tolist()
        [[0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]]
    """
    rows: list[list[list[int]]] = []
    # As if there were a full row already: the first document begins one.
    used = length
    for number, document in enumerate(documents):
        tokens = token_ids(document)
        if not 0 < len(tokens) <= length:
            raise ValueError(
                f"document {number} has {len(tokens)} tokens: expected 1 to {length}, the length "
                "of a row; cut it into parts, or leave it out"
            )
        if used + len(tokens) > length:
            rows.append([])
            used = 0
        rows[-1].append(tokens)
        used += len(tokens)
    if not rows:
        raise ValueError("there are no documents: expected at least one")

    flat = [[token for tokens in row for token in tokens] for row in rows]
    batch = Batch.pad([*flat, [0] * length])  # a row of full length, so that all get it
    batch = batch.rows(slice(len(flat)))
    numbers = torch.zeros_like(batch.tokens)
    begins = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, documents_of_row in enumerate(rows):
        start = 0
        # Each takes all that is left of the row, and the next one takes its part of that. The last,
        # which has no tokens, is the padding.
        for number, tokens in enumerate([*documents_of_row, []]):
            numbers[row, start:] = number
            if start < length:
                begins[row, start] = True
            start += len(tokens)
    return replace(batch, scored=~begins, conditioning={_DOCUMENTS: numbers})


def documents_of(batch: Batch) -> Int[Tensor, "batch position"] | None:
    """Returns the number of each token's document within its row, padding being one more document;
    None for rows that are not packed."""
    return batch.conditioning.get(_DOCUMENTS)


def packed(subject: Subject) -> Subject:
    """Returns a subject with the same module that reads rows of `pack`, and keeps documents apart.

    Args:
        subject: a causal language model whose forward takes `position_ids`.

    Raises:
        LoadError: its forward does not, it puts something in front of a row, or a document's logits
            are not those of the document alone.

    Example:
        >>> from interp.training.packing import pack, packed
        >>> rows = pack([[5, 6, 7], [8, 9]], length=5)
        >>> alone = subject.logits(interp.Batch(torch.tensor([[8, 9]])))
        >>> torch.allclose(packed(subject).logits(rows)[:, 4], alone[:, 1], atol=1e-5)
        True
    """
    if subject.lead:
        raise LoadError(
            f"{subject.name} puts {subject.lead} positions in front of what it reads: in a packed "
            "row only the first document would be behind them; put one document into each row"
        )
    reads_packed = Subject(
        subject.module,
        subject.anatomy,
        _forward,
        subject.tokenizer,
        subject.name,
        Decoding(cached=False, reason="packed rows are not decoded"),
        subject.context,
        subject.lead,
    )
    _verify(subject, reads_packed)
    return reads_packed


def _forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    documents = documents_of(batch)
    if documents is None:
        raise ValueError("the batch is not packed: make it with interp.training.packing.pack")
    # Models of transformers keep apart what positions that begin again show to be several texts,
    # as long as neither a mask nor a cache is given.
    positions = _positions(documents)
    output = module(batch.tokens, position_ids=positions, use_cache=False)
    logits = getattr(output, "logits", output)
    # The logits at a token predict the next one: those wanted lie one position to the left.
    return logits[:, -keep - 1 : -1]


def _positions(documents: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """The position of each token in its own document."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    # A first token has its place here and every other one 0: the largest so far is where the
    # document of a token begins.
    starts = (places * begins).cummax(1).values
    return places - starts


def _verify(subject: Subject, reads_packed: Subject) -> None:
    """Compares documents in one row with each of them alone."""
    name = subject.name
    tokens = torch.arange(3 * _PROBED) % subject.vocabulary
    parts = tokens.split(_PROBED)
    rows = pack([part.tolist() for part in parts], 3 * _PROBED)
    with evaluating(subject):
        try:
            together = reads_packed.logits(rows)
        except TypeError as error:
            raise LoadError(
                f"{name} cannot read packed rows ({error}): expected a model whose forward takes "
                "position_ids; put one document into each row"
            ) from error
        alone = subject.logits(Batch(torch.stack(list(parts))))
    for number, part in enumerate(alone):
        # Nothing predicts the first token of a document.
        start = number * _PROBED + 1
        own = together[0, start : start + _PROBED - 1]
        difference = float((own - part[1:]).abs().max() / part[1:].std())
        if not difference < _ROUNDING:
            raise LoadError(
                f"{name} does not keep documents in one row apart: the logits of document {number} "
                f"differ by {difference:.2g} of their spread from those of the document alone; put "
                "one document into each row"
            )
