"""The rows that models are trained on: help texts of Python, some of them repeated, and canaries of
random tokens, each a known number of times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.data_cartography.presets import Corpus
from interp.data import corpora
from interp.models.small_text import byte_level_bpe
from interp.subject.batch import Batch

TEXT = "text"
CANARY = "canary"


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one seed.

    Attributes:
        vocabulary: number of tokens of the tokenizer.
        sequences: [sequences, length] the distinct rows to train on.
        table: one row per sequence: its `kind`, "text" or "canary", and how many `copies` of it
            there are.
        held_out: [rows, length] text that no model is trained on.
        references: [rows, length] canaries that no model is trained on.
    """

    vocabulary: int
    sequences: Int[Tensor, "sequences length"]
    table: pd.DataFrame
    held_out: Int[Tensor, "rows length"]
    references: Int[Tensor, "rows length"]

    @property
    def numbers(self) -> Int[np.ndarray, " rows"]:
        """[rows] which sequence each training row is a copy of."""
        copies = self.table["copies"].to_numpy()
        return np.repeat(np.arange(len(copies)), copies)

    @property
    def train(self) -> Batch:
        """The rows that models are trained on, copies included."""
        return Batch(self.sequences[torch.from_numpy(self.numbers)])


def draw(settings: Corpus, seed: int) -> Rows:
    """Cuts the help texts of Python into rows, deals them out at random, and adds canaries.

    Raises:
        ValueError: there is less text than the settings ask for.
    """
    text = "\n".join(topic.text for topic in corpora.load("python-docs"))
    tokenizer = byte_level_bpe([text], settings.vocabulary)
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    count = len(tokens) // settings.length
    wanted = settings.once + settings.repeated + settings.held_out
    cut = tokens[: count * settings.length].reshape(count, settings.length)
    # A row that is in the text twice would be a duplicate that the table does not know.
    distinct = torch.unique(cut, dim=0)
    if len(distinct) < wanted:
        raise ValueError(f"the text has {len(distinct)} rows; expected at least {wanted}")
    rng = np.random.default_rng([seed, 1])
    chosen = distinct[torch.from_numpy(rng.permutation(len(distinct))[:wanted])]
    once, repeated, held_out = chosen.split([settings.once, settings.repeated, settings.held_out])

    planted = settings.canaries * len(settings.copies)
    random_tokens = rng.integers(
        0, len(tokenizer), (planted + settings.references, settings.length)
    )
    canaries, references = torch.from_numpy(random_tokens).split([planted, settings.references])
    of_text = [1] * settings.once + [max(settings.copies)] * settings.repeated
    of_canaries = np.repeat(settings.copies, settings.canaries).tolist()
    table = pd.DataFrame(
        {
            "kind": [TEXT] * len(of_text) + [CANARY] * planted,
            "copies": of_text + of_canaries,
        }
    )
    sequences = torch.cat([once, repeated, canaries])
    return Rows(len(tokenizer), sequences, table, held_out, references)
