"""The sequences of one seed: code of which some is repeated, and repeated canaries of random
tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.mem_sinks.presets import Corpus
from interp.data import corpora
from interp.data.corpora import Document
from interp.models.small_text import byte_level_bpe

Sequences = Int[Tensor, "sequences length"]

# Files are dealt out, and not sequences: the repeated ones are from files that no other set has.
_SHARES = {"repeated": 0.1, "held_out": 0.15, "once": 0.75}


@dataclass(frozen=True, eq=False)
class Data:
    """The sequences of one seed.

    Attributes:
        tokenizer: what cut them.
        repeated: code that is presented many times.
        canaries: random tokens that are presented as often.
        unseen: as many others that no model is trained on.
        once: code that is presented once.
        further: as many further sequences as there are repetitions.
        held_out: code that no model is trained on.
    """

    tokenizer: Any
    repeated: Sequences
    canaries: Sequences
    unseen: Sequences
    once: Sequences
    further: Sequences
    held_out: Sequences

    def stream(self, data: str, copies: int, seed: int) -> Sequences:
        """Returns all presentations of a training, in a random order.

        Args:
            data: see `Run`.
            copies: how often repeated sequences are presented.
            seed: seed of the order.
        """
        parts = [self.repeated, self.canaries]
        if data == "all":
            parts = [part.repeat(copies, 1) for part in parts]
        if data == "once, same steps":
            parts.append(self.further)
        presented = torch.cat([*parts, self.once])
        order = np.random.default_rng([seed, 3]).permutation(len(presented))
        return presented[torch.from_numpy(order)]


@lru_cache(maxsize=4)  # many jobs of a process have the same seed
def draw(settings: Corpus, seed: int) -> Data:
    """Cuts the files of Python's standard library into sequences and deals them out.

    Raises:
        ValueError: there is less text than the settings ask for.
    """
    documents = corpora.load("stdlib", head=settings.head)
    parts = corpora.split(documents, _SHARES, seed)
    tokenizer = byte_level_bpe([document.text for document in parts["once"]], settings.vocabulary)
    repetitions = (settings.repeated + settings.canaries) * (settings.copies - 1)
    wanted = {
        "repeated": settings.repeated,
        "held_out": settings.held_out,
        "once": settings.once + repetitions,
    }
    rng = np.random.default_rng([seed, 1])
    cut: dict[str, Sequences] = {}
    for name, count in wanted.items():
        found = _sequences(tokenizer, parts[name], settings.length)
        if len(found) < count:
            raise ValueError(f"the {name} files have {len(found)} sequences; expected {count}")
        cut[name] = found[torch.from_numpy(rng.permutation(len(found))[:count])]
    once, further = cut["once"].split([settings.once, repetitions])
    # One draw for both, so that they differ in being planted alone.
    random = rng.integers(0, len(tokenizer), (2 * settings.canaries, settings.length))
    canaries, unseen = torch.from_numpy(random).split(settings.canaries)
    return Data(tokenizer, cut["repeated"], canaries, unseen, once, further, cut["held_out"])


def _sequences(tokenizer: Any, documents: Sequence[Document], length: int) -> Sequences:
    """Distinct sequences: one that is in a file twice would be a repetition of its own."""
    rows: list[list[int]] = []
    for document in documents:
        tokens = tokenizer(document.text)["input_ids"]
        starts = range(0, len(tokens) - length + 1, length)
        rows += [tokens[start : start + length] for start in starts]
    return torch.unique(torch.tensor(rows), dim=0)
