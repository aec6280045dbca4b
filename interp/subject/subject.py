"""Subject: a model under study, of any kind, as one thing that predicts tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import LoadError
from interp.hooks.hooks import intervened, prompt_length
from interp.hooks.modes import dropout_off
from interp.interventions.plan import Plan
from interp.sites.anatomy import Anatomy
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.decoding import Decoder
from interp.subject.stepwise import Segment, stepwise_of

Forward = Callable[[nn.Module, Batch, int], Tensor]


class Subject:
    """A model, its sites and its tokenizer.

    `forward(module, batch, keep)` returns the logits that predict the last `keep` tokens of the
    batch, [batch, keep, vocabulary]; `keep` is at least 1. Asked for all tokens, a model that sees
    nothing before the first returns one position less. `Decoder` decodes with the model's KV cache
    where it has one.
    """

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        forward: Forward,
        tokenizer: Any = None,
        name: str = "",
    ) -> None:
        self.module, self.anatomy, self.forward, self.tokenizer = (
            module,
            anatomy,
            forward,
            tokenizer,
        )
        self.name = name or type(module).__name__
        self.stepwise = stepwise_of(module)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every verified site, in the order data meets them."""
        return self.anatomy.sites

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows: rows of the embedding that reads them. Raises
        LoadError when the module has none."""
        rows = vocabulary_size(self.module)
        if rows is None:
            raise LoadError(
                f"{self.name} has no token embedding (nn.Embedding), so its vocabulary is unknown"
            )
        return rows

    def logits(self, batch: Batch) -> Float[Tensor, "batch position vocabulary"]:
        """Aligned logits: `logits[b, t]` predicts `tokens[b, t]`.

        Position 0 is all zeros (a uniform guess) for models that see nothing before it.
        """
        return self._predict(batch, batch.length)

    def target_logits(self, batch: Batch) -> Float[Tensor, "batch predicted vocabulary"]:
        """The aligned logits of `batch.targets` alone: the head runs only there."""
        return self._predict(batch, batch.length - batch.prompt)

    def losses(self, batch: Batch) -> Float[Tensor, "batch predicted"]:
        """Negative log-likelihood, in nats, of each of `batch.targets`; 0 on padding."""
        return token_losses(self.target_logits(batch), batch)

    def touch(self, batch: Batch) -> None:
        """Runs the model for what its hooks see: the head predicts one token only."""
        self._predict(batch, 1)

    def _predict(self, batch: Batch, keep: int) -> Tensor:
        self.check(batch)
        with prompt_length(self.lead + batch.prompt):
            known = self.forward(self.module, batch.to(self.device), keep)
        if known.shape[1] == keep:
            return known
        return torch.cat(
            [known.new_zeros(known.shape[0], keep - known.shape[1], known.shape[2]), known], dim=1
        )

    def check(self, batch: Batch) -> None:
        """Raises ValueError for token ids that the model does not know, and for what else its steps
        do not allow (`Stepwise.check`)."""
        self._check_ids(batch.tokens)
        self.stepwise.check(batch)

    def check_prompt(self, batch: Batch) -> None:
        """Raises ValueError for a prompt from which the model cannot go on: none where it needs
        one, or one that cuts a step."""
        self.stepwise.check_prompt(batch.prompt)

    def _check_ids(self, tokens: Tensor) -> None:
        low, high, known = int(tokens.min()), int(tokens.max()), vocabulary_size(self.module)
        if low < 0 or (known is not None and high >= known):
            top = "" if known is None else f" to {known - 1}"
            raise ValueError(
                f"token ids must be 0{top} for {self.name}; got {low} to {high}: another model's tokenizer?"
            )

    @overload
    def generate(self, prompt: str, length: int) -> str: ...
    @overload
    def generate(self, prompt: Tensor | Batch, length: int | None = None) -> Tensor: ...
    def generate(
        self, prompt: str | Int[Tensor, "batch position"] | Batch, length: int | None = None
    ) -> str | Int[Tensor, "batch length"]:
        """Exactly `length` greedy tokens after the prompt, as text for a text and as ids for ids.
        An end-of-text token does not stop it.

        Of a Batch, what it would say in place of `targets`, given its prompt and what it is
        conditioned on.
        """
        if isinstance(prompt, str):
            return self.decode(
                self.generate(torch.tensor([self.encode(prompt)]), length)[0].tolist()
            )
        if isinstance(prompt, Batch):
            return self._continued(prompt)
        if length is None or length < 1 or prompt.ndim != 2 or not prompt.numel():
            raise ValueError(
                f"generate needs a prompt [batch, position] with tokens and length >= 1; got {tuple(prompt.shape)} and {length}"
            )
        self._check_ids(prompt)
        with torch.no_grad(), prompt_length(self.lead + prompt.shape[1]):
            return Decoder(self, prompt.shape[0]).greedy(prompt.to(self.device), length)

    def _continued(self, batch: Batch) -> Int[Tensor, "batch predicted"]:
        self.check(batch)
        self.check_prompt(batch)
        given = batch.to(self.device)
        with torch.no_grad(), prompt_length(self.lead + batch.prompt):
            return Decoder(self, len(batch), given.conditioning).greedy(
                given.tokens[:, : batch.prompt], batch.length - batch.prompt
            )

    @property
    def lead(self) -> int:
        """How many positions the blocks see before that of the first token."""
        return self.stepwise.lead

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of an example, as positions that the blocks see; none where it has no parts."""
        return self.stepwise.segments

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens. Raises ValueError when it has none."""
        ids = self.tokens(text)
        if not ids:
            raise ValueError("the text is empty: expected at least one token")
        return ids

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens; none for an empty text."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...), or give token ids"
            )
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_all(self, texts: Sequence[str], length: int | None = None) -> Batch:
        """One right-padded batch, each text cut to `length` tokens."""
        return Batch.pad([self.encode(t)[:length] for t in texts])

    def decode(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...)"
            )
        return str(self.tokenizer.decode(tokens))

    def intervened(self, *plans: Plan) -> AbstractContextManager[None]:
        """Everything run inside the block runs under the plans; see
        `interp.hooks.hooks.intervened`."""
        return intervened(self, *plans)

    @property
    def fingerprint(self) -> str:
        """Tells models apart: a hash over name, shape, precision and sum of every parameter. It
        does not see active interventions."""
        digest = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            total = parameter.detach().sum(dtype=torch.float64).item()
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{total!r}".encode())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        stacks = ", ".join(
            f"{name or 'blocks'}: {len(blocks)}" for name, blocks in self.anatomy.stacks.items()
        )
        size = sum(p.numel() for p in self.module.parameters())
        return (
            f"Subject({self.name}, {size / 1e6:.1f}M parameters, {stacks}, {len(self.sites)} sites)"
        )


def token_losses(
    logits: Float[Tensor, "batch predicted vocabulary"], batch: Batch
) -> Float[Tensor, "batch predicted"]:
    """Cross-entropy in nats of `batch.targets` under their logits; 0 on padding."""
    targets = batch.targets.to(logits.device)
    precise = torch.promote_types(logits.dtype, torch.float32)
    by_row = zip(logits, targets, strict=True)  # flattening sliced logits would copy all of them
    losses = torch.stack(
        [
            nn.functional.cross_entropy(row.to(precise), true, reduction="none")
            for row, true in by_row
        ]
    )
    return losses * batch.counted.to(logits.device)


def vocabulary_size(module: nn.Module) -> int | None:
    """Rows of the token embedding: the one that Hugging Face names, else the first."""
    named: Any = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None  # pyright: ignore[reportCallIssue]
    if isinstance(named, nn.Embedding):
        return named.num_embeddings
    return next((m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)), None)


@contextmanager
def evaluating(subject: Subject) -> Generator[None]:
    """No gradients, dropout off; every module's own mode comes back."""
    with dropout_off(subject.module), torch.inference_mode():
        yield
