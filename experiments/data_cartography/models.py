"""The models: a small GPT, and an LSTM whose layers `interp.load` reads as blocks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import interp
from experiments.data_cartography.presets import Network
from interp.models.small_text import small_language_model


class _Layer(nn.Module):
    """One layer of an LSTM, which returns its outputs without its state, as a block does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(
        self, inputs: Float[Tensor, "batch position width"]
    ) -> Float[Tensor, "batch position width"]:
        outputs, _ = self.lstm(inputs)
        return outputs


class LSTM(nn.Module):
    """A language model of LSTM layers.

    Args:
        vocabulary: number of tokens.
        width: size of embeddings and states.
        layers: number of layers.
    """

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(
        self, tokens: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Returns the logits of the token after each position."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def untrained(settings: Network, vocabulary: int, length: int, seed: int) -> interp.Subject:
    """Returns a model before training.

    Args:
        settings: which.
        vocabulary: number of tokens.
        length: the most tokens that it reads.
        seed: seed of the weights.
    """
    if settings.name == "GPT":
        module = small_language_model(
            vocabulary,
            width=settings.width,
            layers=settings.layers,
            context=length,
            seed=seed,
            architecture="gpt2",
        )
        return interp.load(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LSTM(vocabulary, settings.width, settings.layers)
    # Its blocks have neither attention nor an MLP to be found by: the layout says where they are.
    return interp.load(module, anatomy=interp.Layout(blocks="layers"))
