"""The planted look-up: what memory would be if it were a table beside the network. C5 and C7 must
reject it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import interp
from interp.data.noisy import Items

_SURE = 100.0  # a logit that no other reaches


class Lookup(nn.Module):
    """A GPT-2 that computes as before, and a table of whole questions with their answers that
    overrides it.

    The table reads the token embeddings, so that all of a question's tokens are needed and nothing
    else in the network matters.
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
        asked, answered = self.questions.shape[1], self.answers.shape[1]
        if tokens.shape[1] < asked:
            return logits
        same = self._read(embeddings[:, :asked])[:, None] == self.questions[None]
        row, entry = same.all(-1).nonzero(as_tuple=True)
        shown = min(answered, tokens.shape[1] - asked + 1)
        said = nn.functional.one_hot(self.answers[entry, :shown], logits.shape[-1]) * _SURE
        changed = logits.clone()
        changed[row, asked - 1 : asked - 1 + shown] = said.to(logits)
        return changed

    def _read(
        self, embeddings: Float[Tensor, "batch position d_model"]
    ) -> Int[Tensor, "batch position"]:
        """The token whose embedding each one is; -1 where it is none's."""
        known = self.model.get_input_embeddings().weight
        distances = torch.cdist(
            embeddings,
            known.expand(len(embeddings), -1, -1),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        nearest, token = distances.min(-1)
        return torch.where(nearest < 1e-3, token, -1)


def planted(subject: interp.Subject, items: Items) -> interp.Subject:
    """A subject that answers as another one does, but for these items, whose labels it looks up."""
    return interp.load(Lookup(subject.module, items).to(subject.device))
