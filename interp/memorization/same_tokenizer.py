"""Whether two models, or a model and the counts of a corpus, read the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.data.corpus_counts import Counts
from interp.subject.subject import Subject

# What tokenizers with the same words can still cut differently: capitals, accents, numbers, spaces.
_PROBE = "The 1st naïve test, in 2026:\n\tdef f(x): return x**2  # ünïcode"


def check_same_tokenizer(subject: Subject, references: Sequence[Subject], *, bos: bool) -> None:
    """Checks that models read the same tokens, so that they can be compared token by token.

    Where a model has no tokenizer this cannot be seen: that two image models have the same codebook
    is for the caller to know.

    Raises:
        ValueError: with the first token, or the start tokens, in which two models differ.
    """
    for reference in references:
        known = subject.tokenizer is not None and reference.tokenizer is not None
        if not known:
            continue
        difference = _first_difference(subject.tokenizer, reference.tokenizer)
        if difference is None and bos and subject.bos != reference.bos:
            difference = f"start tokens {subject.bos} and {reference.bos}"
        if difference is not None:
            raise ValueError(
                f"the reference model {reference.name} reads other tokens than {subject.name} "
                f"({difference}): token by token, only models with the same tokenizer can be "
                "compared"
            )


def check_counted_tokens(subject: Subject, counts: Counts) -> None:
    """Checks that a corpus was counted in the tokens that a model reads.

    Where model or counts have no tokenizer this cannot be seen.

    Raises:
        ValueError: with the first token in which the two differ.
    """
    if subject.tokenizer is None or counts.tokenizer is None:
        return
    difference = _first_difference(subject.tokenizer, counts.tokenizer)
    if difference is not None:
        raise ValueError(
            f"counts are of other tokens than {subject.name} reads ({difference}): count the "
            "corpus with this model, interp.data.corpus_counts.counts(subject, texts)"
        )


def _first_difference(tokenizer: Any, other: Any) -> str | None:
    if tokenizer is other:
        return None
    words = tokenizer.get_vocab()
    other_words = other.get_vocab()
    # By number: a tokenizer gives its words in an order that changes from one call to the next.
    for word, number in sorted(words.items(), key=lambda item: item[1]):
        if other_words.get(word) != number:
            return f"{word!r} is token {number} and {other_words.get(word)}"
    if len(words) != len(other_words):
        return f"{len(words)} and {len(other_words)} words"
    # The same words may be put together by other rules.
    options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    if tokenizer(_PROBE, **options)["input_ids"] != other(_PROBE, **options)["input_ids"]:
        return "they cut a text into other tokens"
    return None
