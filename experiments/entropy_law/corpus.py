"""The corpus of one seed: files that a model sees never, once or twice, and what is planted among
them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.entropy_law.presets import Preset
from interp.data import corpora
from interp.models.small_text import byte_level_bpe
from interp.subject.batch import Batch

Tokens = list[int]
Rows = list[Tokens]  # a document in training rows


@dataclass(frozen=True, eq=False)
class Corpus:
    """What models are trained and scored on, as tokens.

    Attributes:
        tokenizer: what cut it.
        once, twice: documents that stand once or twice in the training rows, each as its own rows.
            What is left at the end of a document and fills no row is nowhere: no model sees it.
        unseen: documents that do not, cut in the same way.
        in_packages: which documents of `twice` are files of a package, not a single module.
        planted: passages as long as a window, by how often they stand in the training rows.
        kinds: strings and passages as long as a window, each of them planted equally often or not
            at all: "gibberish", "code", "gibberish, unseen" and "code, unseen".
        rows: [rows, row] the training data in random order.
    """

    tokenizer: Any
    once: list[Rows]
    twice: list[Rows]
    unseen: list[Rows]
    in_packages: list[bool]
    planted: dict[int, list[Tokens]]
    kinds: dict[str, list[Tokens]]
    rows: Int[Tensor, "rows row"]


def build(preset: Preset, seed: int) -> Corpus:
    """Returns the corpus of a seed.

    Documents are divided among never, once and twice as wholes, none of them alike (see
    `corpora.split`); planted passages come from further documents, which stand nowhere else in the
    training data.
    """
    documents = corpora.load("stdlib", files=preset.files, head=preset.head)
    seen = (1 - preset.held_out) / 2
    # A tenth of the documents that are not held out gives all planted passages.
    shares = {
        "once": 0.9 * seen,
        "twice": 0.9 * seen,
        "passages": 0.2 * seen,
        "unseen": preset.held_out,
    }
    parts = corpora.split(documents, shares, seed=seed)
    training_texts = [document.text for name in ("once", "twice") for document in parts[name]]
    tokenizer = byte_level_bpe(training_texts, preset.vocabulary)
    tokens: dict[str, list[Tokens]] = {}
    for name, part in parts.items():
        tokens[name] = [tokenizer(document.text)["input_ids"] for document in part]

    # A document that is shorter than a row is in no row.
    in_rows: dict[str, dict[str, Rows]] = {}
    for name, part in parts.items():
        cut_up = {
            document.name: cut([own], preset.row)
            for document, own in zip(part, tokens[name], strict=True)
        }
        in_rows[name] = {document: rows for document, rows in cut_up.items() if rows}
    once, twice, unseen = (in_rows[name] for name in ("once", "twice", "unseen"))

    rng = np.random.default_rng([seed, 1])
    width = preset.prefix + preset.length
    passages = cut(tokens["passages"], width)
    rng.shuffle(passages)
    planted: dict[int, list[Tokens]] = {}
    for copies in preset.copies:
        planted[copies] = _take(passages, preset.passages)
    kinds = {
        "gibberish": _gibberish(tokenizer, preset.gibberish, width, rng),
        "gibberish, unseen": _gibberish(tokenizer, preset.gibberish, width, rng),
        "code": _take(passages, preset.gibberish),
        "code, unseen": _take(passages, preset.gibberish),
    }

    in_windows: list[Tokens] = []
    for copies, of_copies in planted.items():
        in_windows += of_copies * copies
    for name in ("gibberish", "code"):
        in_windows += kinds[name] * preset.gibberish_copies
    rng.shuffle(in_windows)
    rows = [
        *chain.from_iterable(once.values()),
        *chain.from_iterable(twice.values()),
        *chain.from_iterable(twice.values()),
        # A row has room for a whole number of passages (see `Preset`), so that none is cut in two.
        *cut([list(chain.from_iterable(in_windows))], preset.row),
    ]
    rng.shuffle(rows)
    return Corpus(
        tokenizer=tokenizer,
        once=list(once.values()),
        twice=list(twice.values()),
        unseen=list(unseen.values()),
        in_packages=["/" in name for name in twice],
        planted=planted,
        kinds=kinds,
        rows=torch.tensor(rows),
    )


def training_batches(corpus: Corpus, batch_size: int) -> list[Batch]:
    """Returns the training rows once, in their order. The last batch may be smaller: a row that was
    left out would count as seen."""
    return [Batch(part) for part in corpus.rows.split(batch_size)]


def cut(texts: Iterable[Tokens], width: int) -> list[Tokens]:
    """Returns texts in pieces of equal width, without what is left at their ends."""
    pieces: list[Tokens] = []
    for tokens in texts:
        starts = range(0, len(tokens) - width + 1, width)
        pieces += [tokens[start : start + width] for start in starts]
    return pieces


def _take(passages: list[Tokens], count: int) -> list[Tokens]:
    """Removes some passages from the end of a list and returns them."""
    if len(passages) < count:
        raise ValueError(
            f"{len(passages)} passages are left; expected at least {count}: lower `passages`"
        )
    taken = passages[-count:]
    del passages[-count:]
    return taken


def _gibberish(tokenizer: Any, count: int, width: int, rng: np.random.Generator) -> list[Tokens]:
    """Random strings, a third each of hexadecimal digits, base64 and UUIDs, cut to a width."""
    strings: list[Tokens] = []
    for number in range(count):
        # More text than `width` tokens take, which is cut below.
        raw = rng.bytes(4 * width)
        if number % 3 == 0:
            text = raw.hex()
        elif number % 3 == 1:
            text = base64.b64encode(raw).decode()
        else:
            digits = raw.hex()
            ids = [digits[start : start + 32] for start in range(0, len(digits) - 31, 32)]
            text = " ".join(f"{i[:8]}-{i[8:12]}-{i[12:16]}-{i[16:20]}-{i[20:]}" for i in ids)
        strings.append(tokenizer(text)["input_ids"][:width])
    return strings
