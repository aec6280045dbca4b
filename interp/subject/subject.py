"""Subject: a model under study, of any kind, as one thing that predicts tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import LoadError
from interp.hooks.clock import prompt_length
from interp.hooks.hooks import intervened
from interp.hooks.modes import checkpointing_off, dropout_off
from interp.interventions.plan import Plan
from interp.sites.anatomy import Anatomy, Sites
from interp.sites.sharding import is_fully_sharded, unsharded_class
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.batch import Batch, check_integer, check_text
from interp.subject.decoding import Decoder, Decoding, check_finite
from interp.subject.fingerprint import fingerprint, identify
from interp.subject.offloading import device_of
from interp.subject.stepwise import Segment, stepwise_of

Forward = Callable[[nn.Module, Batch, int], Tensor]

# A subject that was not loaded: nothing is known of its cache.
_UNVERIFIED = Decoding(cached=False, reason="its cache was not verified (only interp.load does)")

# Any text will do, as long as the tokenizer knows a token of it. One that knows none of these, such
# as one of whole words, is tried on its own first tokens.
_TEXTS = ("a", "0", "The", " ")
_OWN_TOKENS = 100


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
        decoding: how the model is decoded; by whole forwards by default.
        context: how many tokens the model has positions for; None where there is no such limit.
        lead: how many positions the blocks see before that of the first token; by default what
            `Stepwise` says.

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
        decoding: Decoding = _UNVERIFIED,
        context: int | None = None,
        lead: int | None = None,
    ) -> None:
        self.module = module
        self.anatomy = anatomy
        self.forward = forward
        self.tokenizer = tokenizer
        self.name = name or unsharded_class(type(module)).__name__
        self.stepwise = stepwise_of(module)
        self.decoding = decoding
        self.context = context
        self._lead = self.stepwise.lead if lead is None else lead

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter: the one it is moved to, if it is offloaded."""
        return device_of(self.module)

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

    def units(
        self, sites: Sites | Mapping[str, Iterable[int]], indices: Iterable[int] | None = None
    ) -> Units:
        """Returns units of this model, to change or to compare; see `Anatomy.units`.

        Args:
            sites: a site, a bare point (`neurons`: in every block), a pattern, or several of these;
                or a mapping from sites to indices.
            indices: which units, the same at each of the sites; by default all.

        Raises:
            SiteError: a name or pattern matches no site.
            ValueError: an index outside its site.

        Example:
            >>> subject.units("blocks.1.neurons", [0, 3, 5])
            Units(3 of 48: blocks.1.neurons 3)
            >>> subject.units("heads")
            Units(8 of 8: blocks.0.heads 4, blocks.1.heads 4)
        """
        return self.anatomy.units(sites, indices)

    def logits(self, batch: Batch) -> Float[Tensor, "batch position vocabulary"]:
        """Returns aligned logits: `logits[b, t]` predicts `tokens[b, t]`.

        Position 0 is all zeros (a uniform guess) for models that see nothing before it.

        Raises:
            ValueError: the model cannot read the batch (see `check`), or a logit is NaN or
                infinite; a single logit of -infinity is accepted.

        Example:
            >>> logits = subject.logits(batch)
            >>> tuple(logits.shape)
            (12, 16, 96)
            >>> torch.equal(logits[:, batch.prompt :].argmax(-1), batch.targets)
            True
        """
        return self._predict(batch, batch.length)

    def target_logits(self, batch: Batch) -> Float[Tensor, "batch predicted vocabulary"]:
        """Returns the aligned logits of `batch.targets` alone: the head runs only there.

        Raises:
            ValueError: see `logits`.
        """
        return self._predict(batch, batch.length - batch.prompt)

    def losses(self, batch: Batch) -> Float[Tensor, "batch predicted"]:
        """Returns the negative log-likelihood of each of `batch.targets`, in nats; 0 on padding.

        Raises:
            ValueError: see `logits`.
        """
        return token_losses(self.target_logits(batch), batch)

    def touch(self, batch: Batch) -> None:
        """Runs the model only for its hooks: the head predicts a single token."""
        self._predict(batch, 1)

    def _predict(self, batch: Batch, keep: int) -> Tensor:
        predicted = self.run(batch, keep)
        _check_logits(predicted, batch)
        return predicted

    def run(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep vocabulary"]:
        """Returns the aligned logits of the last `keep` tokens, which may be NaN or infinite: for
        training, where the loss is checked for all processes together.

        Raises:
            ValueError: the model cannot read the batch (see `check`).
        """
        self.check(batch)
        # Plans count positions of the blocks, of which `lead` stand in front of the tokens.
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
            ValueError: token ids that the model does not know, more tokens than it has positions
                for, or a batch that `Stepwise.check` refuses.
        """
        self._check_ids(batch.tokens)
        self._check_length(batch.length)
        self.stepwise.check(batch)

    def check_prompt(self, batch: Batch) -> None:
        """Checks that the model can continue after the prompt of a batch.

        Raises:
            ValueError: the model needs a prompt and there is none, or the prompt ends within a
                group of tokens that are predicted together.
        """
        self.stepwise.check_prompt(batch.prompt)

    def _check_ids(self, tokens: Tensor) -> None:
        check_integer(tokens)
        low = int(tokens.min())
        high = int(tokens.max())
        known = vocabulary_size(self.module)
        if low < 0 or (known is not None and high >= known):
            top = "" if known is None else f" to {known - 1}"
            raise ValueError(
                f"token ids must be 0{top} for {self.name}; got {low} to {high}: "
                "another model's tokenizer?"
            )

    def _check_length(self, tokens: int) -> None:
        if self.context is not None and tokens > self.context:
            raise ValueError(
                f"{tokens} tokens (start tokens included) are more than the {self.context} that "
                f"{self.name} has positions for: take shorter texts, prefixes or lengths"
            )

    @overload
    def generate(self, prompt: str, length: int, *, bos: bool = True) -> str: ...
    @overload
    def generate(
        self, prompt: Tensor | Batch, length: int | None = None, *, bos: bool = True
    ) -> Tensor: ...
    def generate(
        self,
        prompt: str | Int[Tensor, "batch position"] | Batch,
        length: int | None = None,
        *,
        bos: bool = True,
    ) -> str | Int[Tensor, "batch length"]:
        """Generates greedily after a prompt, exactly `length` tokens: an end token does not stop.

        The model evaluates: without dropout and gradient checkpointing, whatever mode it is in.

        Args:
            prompt: a text, token ids [batch, position], or a Batch. The targets of a Batch are not
                read but generated, from its prompt and conditioning. A row whose mask says that
                its prompt is shorter is continued from its own last token. Token ids are all read
                as they are: padding among them cannot be seen, so give prompts of several lengths
                as a Batch with a mask.
            length: how many tokens to generate; a Batch has its own.
            bos: whether a text is put behind the start tokens (see `bos`). Token ids and a Batch
                are what the model sees, start tokens included.

        Returns:
            A text for a text, as it reads after the prompt; token ids [batch, length] for token ids
            and for a Batch.

        Raises:
            ValueError: an empty prompt, a length below 1, token ids that the model does not know,
                a prompt after which it cannot continue, more tokens than it has positions for, or
                a logit that is NaN or infinite.

        Example:
            >>> subject.generate(texts[1][:8], 8) == texts[1][8:16]
            True
            >>> torch.equal(subject.generate(batch), batch.targets)
            True
        """
        if isinstance(prompt, str):
            ids = self.behind_bos(self.encode(prompt), bos=bos)
            rows = self.generate(torch.tensor([ids]), length)
            generated = rows[0].tolist()
            # Cut out of the whole text: decoded alone, the first space of the part would be lost.
            _, text = self.decode_parts([*ids, *generated], [len(ids)])
            return text
        if isinstance(prompt, Batch):
            return self._generate_targets(prompt)
        if not isinstance(prompt, Tensor):
            raise ValueError(
                "a prompt is a text, token ids [batch, position], or a Batch; "
                f"got {type(prompt).__name__}"
            )
        if length is None or length < 1 or prompt.ndim != 2 or not prompt.numel():
            raise ValueError(
                "generate needs a prompt [batch, position] with tokens and length >= 1; "
                f"got {tuple(prompt.shape)} and {length}"
            )
        self._check_ids(prompt)
        # The last token is not read, but a whole forward has a placeholder where it will be.
        not_read = 1 if self.decoding.cached else 0
        self._check_length(prompt.shape[1] + length - not_read)
        return self._continue(prompt.to(self.device), length)

    def _generate_targets(self, batch: Batch) -> Int[Tensor, "batch predicted"]:
        self.check(batch)
        length = batch.length - batch.prompt
        given = batch.to(self.device)
        prompt = given.tokens[:, : batch.prompt]
        if given.mask is None:
            self.stepwise.check_prompt(batch.prompt)
            return self._continue(prompt, length, given.conditioning)

        # Rows whose prompts have the same length are decoded together, from their own last tokens.
        own_lengths = given.mask[:, : batch.prompt].sum(1)
        for own_length in own_lengths.unique().tolist():
            self.stepwise.check_prompt(own_length)
        generated = prompt.new_zeros(len(batch), length)
        for own_length in own_lengths.unique().tolist():
            chosen = (own_lengths == own_length).nonzero()[:, 0]
            rows = given.rows(chosen)
            own_prompt = rows.tokens[:, :own_length]
            generated[chosen] = self._continue(own_prompt, length, rows.conditioning)
        return generated

    def _continue(
        self, prompt: Tensor, length: int, conditioning: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        # Not `evaluating`: tokens made in inference mode could not be used in a training forward.
        with (
            dropout_off(self.module),
            checkpointing_off(self.module),
            torch.no_grad(),
            prompt_length(self.lead + prompt.shape[1]),
        ):
            return Decoder(self, len(prompt), conditioning).greedy(prompt, length)

    @property
    def lead(self) -> int:
        """How many positions the blocks see before the position of the first token."""
        return self._lead

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """The start tokens: what the tokenizer puts in front of a text, which the model was
        trained behind; empty without a tokenizer. What it puts behind a text is not used.

        Raises:
            ValueError: what the tokenizer puts in front cannot be told from what it makes of the
                text.

        Example:
            >>> subject.bos
            ()
        """
        return () if self.tokenizer is None else _start_tokens(self.tokenizer)

    def behind_bos(self, tokens: Sequence[int], *, bos: bool = True) -> list[int]:
        """Returns the token ids of a text behind the start tokens.

        Args:
            tokens: token ids of a text. If they begin with the start tokens already, they do not
                get them twice.
            bos: False leaves the tokens as they are.
        """
        if not bos:
            return list(tokens)
        return [*self.bos, *self.without_bos(tokens)]

    def without_bos(self, tokens: Sequence[int]) -> list[int]:
        """Returns token ids without the start tokens that they may begin with."""
        count = len(self.bos)
        beginning = tuple(tokens[:count])
        if count > 0 and beginning == self.bos:
            return list(tokens[count:])
        return list(tokens)

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
            ValueError: the subject has no tokenizer, or it is not a text: an object of another
                type, or a string with half of a surrogate pair; or the tokenizer cannot write it.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...), "
                "or give token ids"
            )
        check_text(text)
        try:
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception as error:  # what tokenizers raises has no class of its own
            raise ValueError(
                f"the tokenizer cannot write the text ({error}): leave the text out, or pass a "
                "tokenizer with a token for unknown words"
            ) from error

    def encode_all(
        self, texts: Sequence[str], length: int | None = None, *, bos: bool = True
    ) -> Batch:
        """Returns texts as one right-padded batch, each behind the start tokens.

        Args:
            texts: none of them empty.
            length: how many tokens to keep of each text, start tokens not counted; by default all.
            bos: whether texts are put behind the start tokens (see `bos`), which are then the
                prompt.

        Example:
            >>> subject.encode_all(["abc", "de"]).mask
            tensor([[ True,  True,  True],
                    [ True,  True, False]])
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string: expected several texts, such as [text]")
        sequences: list[list[int]] = []
        for text in texts:
            tokens = self.encode(text)
            if bos:
                tokens = self.without_bos(tokens)
            sequences.append(self.behind_bos(tokens[:length], bos=bos))
        start_tokens = len(self.bos) if bos else 0
        # Without start tokens the first token is given: nothing predicts it.
        return Batch.pad(sequences, prompt=max(1, start_tokens))

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

    def decode_parts(self, tokens: Sequence[int], cuts: Sequence[int]) -> list[str]:
        """Returns the texts of the parts of a sequence, as they read in the whole.

        Decoded by itself, a part can lose the space in front of its first word, and show pieces of
        a letter at its ends. Here the parts join to the text of the whole; a letter of which two
        parts have tokens is in the later one.

        Args:
            tokens: token ids.
            cuts: numbers of tokens, ascending: where a part ends and the next one begins.

        Returns:
            One text more than there are cuts.

        Raises:
            ValueError: the subject has no tokenizer.

        Example:
            >>> subject.decode_parts(subject.encode("abcde"), [2, 3])
            ['ab', 'c', 'de']
        """
        ids = list(tokens)
        whole = self.decode(ids)
        parts: list[str] = []
        end = 0
        for cut in cuts:
            # The two differ where the beginning ends with a piece of a letter.
            shared = _shared_letters(self.decode(ids[:cut]), whole)
            next_end = max(end, shared)
            parts.append(whole[end:next_end])
            end = next_end
        return [*parts, whole[end:]]

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
        """A short hash of everything that decides what this subject computes: weights and buffers
        in full, configuration, modules, active adapters, active interventions and hooks (see
        `interp.subject.fingerprint.identify`).

        It does not depend on the device, nor on whether weights are offloaded.
        """
        return fingerprint(identify(self))

    def with_module(self, module: nn.Module) -> Subject:
        """Returns a subject of another module of the same shape, with all else as it is.

        Args:
            module: the module, such as a copy.

        Example:
            >>> subject.with_module(untrained.module).tokenizer is subject.tokenizer
            True
        """
        return Subject(
            module,
            self.anatomy,
            self.forward,
            self.tokenizer,
            self.name,
            self.decoding,
            self.context,
            self.lead,
        )

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        millions = parameters / 1e6
        parts = [self.name, f"{millions:.1f}M parameters on {self.device}"]
        for name, paths in self.anatomy.stacks.items():
            parts.append(f"{name or 'blocks'}: {len(paths)}")
        parts.append(f"{len(self.sites)} sites")
        if not self.decoding.cached:
            parts.append("decoded by whole forwards")
        return f"Subject({', '.join(parts)})"


def _shared_letters(text: str, other: str) -> int:
    """How many letters two texts have in common at their beginning."""
    for number, (letter, other_letter) in enumerate(zip(text, other, strict=False)):
        if letter != other_letter:
            return number
    return min(len(text), len(other))


def token_losses(
    logits: Float[Tensor, "batch predicted vocabulary"], batch: Batch
) -> Float[Tensor, "batch predicted"]:
    """Returns the cross-entropy of `batch.targets` under their logits, in nats; 0 for targets that
    do not count (padding, and what is not scored), whatever their logits are.

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
        losses = nn.functional.cross_entropy(row.to(precise), true, reduction="none")
        rows.append(losses)
    counted = batch.counted.to(logits.device)
    # Not a product: the loss of what does not count may be infinite, and infinity times 0 is NaN.
    return torch.stack(rows).masked_fill(~counted, 0)


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


def _check_logits(predicted: Tensor, batch: Batch) -> None:
    """Raises ValueError for logits of the last tokens of a batch that are NaN or infinite."""
    largest = predicted.detach().amax(-1)  # [batch, known]
    known = largest.shape[1]
    if batch.mask is not None:
        # What is predicted on padding is never used. In a grown forward each row is there several
        # times.
        first_known = batch.length - known
        real = batch.mask[:, first_known:].to(largest.device)
        copies = len(largest) // len(real)
        is_padding = ~real.repeat(copies, 1)
        largest = largest.masked_fill(is_padding, 0)
    check_finite(largest, first=batch.length - known)


def _start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts in front of a text: the tokens before those of the text alone."""
    failure: Exception | None = None
    took_any = False
    for text in _texts_to_try(tokenizer):
        try:
            alone = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception as error:  # noqa: BLE001 - what tokenizers raises for a word without a token
            failure = error
            continue
        took_any = True
        if not alone:
            continue  # the tokenizer knows no token of this text
        presented = list(tokenizer(text, verbose=False)["input_ids"])
        for start in range(len(presented) - len(alone) + 1):
            if presented[start : start + len(alone)] == alone:
                return tuple(presented[:start])
        raise ValueError(
            f"the tokenizer makes {presented} of {text!r}, in which {alone}, its tokens without "
            "special tokens, do not appear: what it puts in front cannot be told; pass bos=False "
            "and put the start tokens in front of token ids by hand"
        )
    # That no text could be written does not mean that nothing is put in front.
    if failure is not None and not took_any:
        raise ValueError(
            f"the tokenizer takes no text ({failure}): what it puts in front cannot be told; pass "
            "bos=False and put the start tokens in front of token ids by hand"
        ) from failure
    return ()


def _texts_to_try(tokenizer: Any) -> Iterator[str]:
    """Texts of which a tokenizer knows at least one: the last are tokens of its own."""
    yield from _TEXTS
    for number in range(min(len(tokenizer), _OWN_TOKENS)):
        yield tokenizer.decode([number], skip_special_tokens=True)


@contextmanager
def evaluating(subject: Subject) -> Generator[None]:
    """Runs without gradients and without dropout; restores the mode of every module."""
    # What FSDP2 gathers weights into in a first forward, it uses in all later ones: made in
    # inference mode, it could not be differentiated.
    sharded = is_fully_sharded(subject.module)
    without_gradients = torch.no_grad() if sharded else torch.inference_mode()
    with dropout_off(subject.module), without_gradients:
        yield
