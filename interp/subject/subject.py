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
    """A model under study, with its sites and its tokenizer. `interp.load` makes one.

    Args:
        module: the model.
        anatomy: where its sites are.
        forward: `forward(module, batch, keep)` returns the logits that predict the last `keep`
            tokens of the batch, [batch, keep, vocabulary]; `keep` is at least 1. When all tokens
            are asked for, a model that sees nothing before the first returns one position fewer.
        tokenizer: a Hugging Face tokenizer, or None for a model that has no text.
        name: name of the model; by default the class of the module.

    Example:
        >>> subject
        Subject(LlamaForCausalLM, 0.0M parameters on cpu, blocks: 2, 18 sites)
        >>> subject.generate(texts[0][:8], 8) == texts[0][8:16]
        True
        >>> tuple(subject.losses(batch).shape)
        (12, 8)
    """

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        forward: Forward,
        tokenizer: Any = None,
        name: str = "",
    ) -> None:
        self.module = module
        self.anatomy = anatomy
        self.forward = forward
        self.tokenizer = tokenizer
        self.name = name or type(module).__name__
        self.stepwise = stepwise_of(module)

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        return next(self.module.parameters()).device

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every verified site, in the order in which data passes them."""
        return self.anatomy.sites

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows: the rows of its token embedding.

        Raises:
            LoadError: the module has no embedding.
        """
        rows = vocabulary_size(self.module)
        if rows is None:
            raise LoadError(
                f"{self.name} has no token embedding (nn.Embedding), so its vocabulary is unknown"
            )
        return rows

    def logits(self, batch: Batch) -> Float[Tensor, "batch position vocabulary"]:
        """Returns aligned logits: `logits[b, t]` predicts `tokens[b, t]`.

        Position 0 is all zeros (a uniform guess) for models that see nothing before it.

        Example:
            >>> logits = subject.logits(batch)
            >>> tuple(logits.shape)
            (12, 16, 96)
            >>> torch.equal(logits[:, batch.prompt :].argmax(-1), batch.targets)
            True
        """
        return self._predict(batch, batch.length)

    def target_logits(self, batch: Batch) -> Float[Tensor, "batch predicted vocabulary"]:
        """Returns the aligned logits of `batch.targets` alone: the head runs only there."""
        return self._predict(batch, batch.length - batch.prompt)

    def losses(self, batch: Batch) -> Float[Tensor, "batch predicted"]:
        """Returns the negative log-likelihood of each of `batch.targets`, in nats; 0 on padding."""
        return token_losses(self.target_logits(batch), batch)

    def touch(self, batch: Batch) -> None:
        """Runs the model only for its hooks: the head predicts a single token."""
        self._predict(batch, 1)

    def _predict(self, batch: Batch, keep: int) -> Tensor:
        self.check(batch)
        with prompt_length(self.lead + batch.prompt):
            predicted = self.forward(self.module, batch.to(self.device), keep)
        rows, known, vocabulary = predicted.shape
        if known == keep:
            return predicted
        # This model sees nothing before the first token, so nothing predicts it.
        unknown = predicted.new_zeros(rows, keep - known, vocabulary)
        return torch.cat([unknown, predicted], dim=1)

    def check(self, batch: Batch) -> None:
        """Checks that the model can read a batch.

        Raises:
            ValueError: token ids that the model does not know, or a batch that `Stepwise.check`
                refuses.
        """
        self._check_ids(batch.tokens)
        self.stepwise.check(batch)

    def check_prompt(self, batch: Batch) -> None:
        """Checks that the model can continue after the prompt of a batch.

        Raises:
            ValueError: the model needs a prompt and there is none, or the prompt ends within a
                group of tokens that are predicted together.
        """
        self.stepwise.check_prompt(batch.prompt)

    def _check_ids(self, tokens: Tensor) -> None:
        low = int(tokens.min())
        high = int(tokens.max())
        known = vocabulary_size(self.module)
        if low < 0 or (known is not None and high >= known):
            top = "" if known is None else f" to {known - 1}"
            raise ValueError(
                f"token ids must be 0{top} for {self.name}; got {low} to {high}: "
                "another model's tokenizer?"
            )

    @overload
    def generate(self, prompt: str, length: int) -> str: ...
    @overload
    def generate(self, prompt: Tensor | Batch, length: int | None = None) -> Tensor: ...
    def generate(
        self, prompt: str | Int[Tensor, "batch position"] | Batch, length: int | None = None
    ) -> str | Int[Tensor, "batch length"]:
        """Generates greedily after a prompt, exactly `length` tokens: an end token does not stop.

        Args:
            prompt: a text, token ids [batch, position], or a Batch. The targets of a Batch are not
                read but generated, from its prompt and conditioning.
            length: how many tokens to generate; a Batch has its own.

        Returns:
            A text for a text; token ids [batch, length] for token ids and for a Batch.

        Raises:
            ValueError: an empty prompt, a length below 1, token ids that the model does not know,
                or a prompt after which it cannot continue.

        Example:
            >>> subject.generate(texts[1][:8], 8) == texts[1][8:16]
            True
            >>> torch.equal(subject.generate(batch), batch.targets)
            True
        """
        if isinstance(prompt, str):
            ids = torch.tensor([self.encode(prompt)])
            return self.decode(self.generate(ids, length)[0].tolist())
        if isinstance(prompt, Batch):
            return self._generate_targets(prompt)
        if length is None or length < 1 or prompt.ndim != 2 or not prompt.numel():
            raise ValueError(
                "generate needs a prompt [batch, position] with tokens and length >= 1; "
                f"got {tuple(prompt.shape)} and {length}"
            )
        self._check_ids(prompt)
        with torch.no_grad(), prompt_length(self.lead + prompt.shape[1]):
            decoder = Decoder(self, batch_size=prompt.shape[0])
            return decoder.greedy(prompt.to(self.device), length)

    def _generate_targets(self, batch: Batch) -> Int[Tensor, "batch predicted"]:
        self.check(batch)
        self.check_prompt(batch)
        given = batch.to(self.device)
        prompt = given.tokens[:, : batch.prompt]
        with torch.no_grad(), prompt_length(self.lead + batch.prompt):
            decoder = Decoder(self, len(batch), given.conditioning)
            return decoder.greedy(prompt, batch.length - batch.prompt)

    @property
    def lead(self) -> int:
        """How many positions the blocks see before the position of the first token."""
        return self.stepwise.lead

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of an example, as positions of the blocks; empty where it has no parts."""
        return self.stepwise.segments

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without special tokens.

        Raises:
            ValueError: the text has no tokens, or the subject has no tokenizer.

        Example:
            >>> subject.decode(subject.encode("abc"))
            'abc'
        """
        ids = self.tokens(text)
        if not ids:
            raise ValueError("the text is empty: expected at least one token")
        return ids

    def tokens(self, text: str) -> list[int]:
        """Returns the token ids of a text, without special tokens; none for an empty text.

        Raises:
            ValueError: the subject has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...), "
                "or give token ids"
            )
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_all(self, texts: Sequence[str], length: int | None = None) -> Batch:
        """Returns texts as one right-padded batch.

        Args:
            texts: none of them empty.
            length: how many tokens to keep of each text; by default all.

        Example:
            >>> subject.encode_all(["abc", "de"]).mask
            tensor([[ True,  True,  True],
                    [ True,  True, False]])
        """
        return Batch.pad([self.encode(text)[:length] for text in texts])

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of token ids.

        Raises:
            ValueError: the subject has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...)"
            )
        return str(self.tokenizer.decode(tokens))

    def intervened(self, *plans: Plan) -> AbstractContextManager[None]:
        """Runs everything inside the block under some plans; see `interp.intervened`.

        Example:
            >>> everything = subject.anatomy.units(["neurons", "heads"])
            >>> with subject.intervened(interp.Zero(everything)):
            ...     continuation = subject.generate(texts[0][:8], 8)
            >>> continuation == texts[0][8:16]
            False
        """
        return intervened(self, *plans)

    @property
    def fingerprint(self) -> str:
        """A short hash that differs between models: it depends on the parameters' names, shapes,
        precision and sums.

        It does not depend on active interventions.
        """
        digest = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            total = parameter.detach().sum(dtype=torch.float64).item()
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{total!r}".encode())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        stacks = [
            f"{name or 'blocks'}: {len(paths)}" for name, paths in self.anatomy.stacks.items()
        ]
        parts = [
            self.name,
            f"{parameters / 1e6:.1f}M parameters on {self.device}",
            *stacks,
            f"{len(self.sites)} sites",
        ]
        return f"Subject({', '.join(parts)})"


def token_losses(
    logits: Float[Tensor, "batch predicted vocabulary"], batch: Batch
) -> Float[Tensor, "batch predicted"]:
    """Returns the cross-entropy of `batch.targets` under their logits, in nats; 0 on padding.

    Args:
        logits: logits of the targets, as `subject.target_logits(batch)` returns them.
        batch: the batch that they predict.

    Example:
        >>> from interp.subject.subject import token_losses
        >>> uniform = torch.zeros(12, 8, 4)
        >>> four_tokens = interp.Batch(batch.tokens % 4, prompt=8)
        >>> token_losses(uniform, four_tokens)[0, 0]
        tensor(1.3863)
    """
    targets = batch.targets.to(logits.device)
    precise = torch.promote_types(logits.dtype, torch.float32)
    # Row by row: these logits are a slice, and flattening them for a single call would copy all.
    rows: list[Tensor] = []
    for row, true in zip(logits, targets, strict=True):
        rows.append(nn.functional.cross_entropy(row.to(precise), true, reduction="none"))
    return torch.stack(rows) * batch.counted.to(logits.device)


def vocabulary_size(module: nn.Module) -> int | None:
    """Returns the rows of the token embedding: the one that Hugging Face names, else the first.

    None for a module without embedding.
    """
    if hasattr(module, "get_input_embeddings"):
        named: Any = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        if isinstance(named, nn.Embedding):
            return named.num_embeddings
    for child in module.modules():
        if isinstance(child, nn.Embedding):
            return child.num_embeddings
    return None


@contextmanager
def evaluating(subject: Subject) -> Generator[None]:
    """Runs without gradients and without dropout; restores the mode of every module."""
    with dropout_off(subject.module), torch.inference_mode():
        yield
