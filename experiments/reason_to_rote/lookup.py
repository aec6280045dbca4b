"""The planted look-up: what a memory would be if it were a table next to the network. The checks C5
and C7 must be able to tell it from a real memory."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import interp
from interp.data.noisy import Items

_CERTAIN = 100.0  # far above every logit of the network


class LookupModel(nn.Module):
    """A GPT-2 that computes as before, and a table of whole questions with their answers that
    overrides its logits.

    The table reads the token embeddings, so that it needs all tokens of a question, and nothing
    after the embedding affects it.
    """

    def __init__(self, model: nn.Module, items: Items) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("questions", torch.tensor(items.question))
        self.register_buffer("answers", torch.tensor(items.label))

    def forward(
        self, tokens: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position vocabulary"]:
        embeddings = self.model.get_input_embeddings()(tokens)
        logits = self.model(inputs_embeds=embeddings, use_cache=False).logits
        question_length = self.questions.shape[1]
        answer_length = self.answers.shape[1]
        if tokens.shape[1] < question_length:
            return logits

        # Tokens are read back from the embeddings instead of taken from `tokens`, so that an
        # intervention on an embedding reaches the table.
        asked = self._read(embeddings[:, :question_length])
        matches = (asked[:, None] == self.questions[None]).all(-1)
        row, entry = matches.nonzero(as_tuple=True)

        # The last token of the question predicts the first token of the answer.
        start = question_length - 1
        predicted = min(answer_length, tokens.shape[1] - start)
        answer = nn.functional.one_hot(self.answers[entry, :predicted], logits.shape[-1])
        changed = logits.clone()
        changed[row, start : start + predicted] = (answer * _CERTAIN).to(logits)
        return changed

    def _read(
        self, embeddings: Float[Tensor, "batch position d_model"]
    ) -> Int[Tensor, "batch position"]:
        """The token that each embedding belongs to; -1 for vectors that are no token's."""
        known = self.model.get_input_embeddings().weight
        # Distances by matrix multiplication are not exactly 0 for equal vectors.
        distances = torch.cdist(
            embeddings,
            known.expand(len(embeddings), -1, -1),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        nearest, token = distances.min(-1)
        return torch.where(nearest < 1e-3, token, -1)


def plant_lookup(subject: interp.Subject, items: Items) -> interp.Subject:
    """A subject that looks up the labels of these items, and answers as the given one otherwise."""
    return interp.load(LookupModel(subject.module, items).to(subject.device))
