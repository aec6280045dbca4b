"""Subject: a model under study, of any kind, as one thing that predicts tokens; `load` makes one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .anatomy import Anatomy, Layout
from .batch import Batch
from .checkpoints import LoadError, read
from .decoding import Decoder
from .discovery import discover, dropout_off
from .hooks import intervened, prompt_length
from .interventions import Plan
from .models.files import is_image_model, read_image_model
from .models.image_model import ImageModel, Segment
from .sites import Site

Forward = Callable[[nn.Module, Batch, int], Tensor]


class Subject:
    """A model, its sites and its tokenizer.

    `forward(module, batch, keep)` returns the logits that predict the last `keep` tokens of the batch, [batch, keep, vocabulary]; `keep` is
    at least 1. Asked for all tokens, a model that sees nothing before the first returns one position less. `Decoder` decodes with the
    model's KV cache where it has one.
    """

    def __init__(self, module: nn.Module, anatomy: Anatomy, forward: Forward, tokenizer: Any = None, name: str = "") -> None:
        self.module, self.anatomy, self.forward, self.tokenizer = module, anatomy, forward, tokenizer
        self.name = name or type(module).__name__
        self.lead = module.lead if isinstance(module, ImageModel) else 0  # positions that the blocks see before the first token's

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every verified site, in the order data meets them."""
        return self.anatomy.sites

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows: rows of the embedding that reads them. Raises LoadError when the module has none."""
        rows = _vocabulary(self.module)
        if rows is None:
            raise LoadError(f"{self.name} has no token embedding (nn.Embedding), so its vocabulary is unknown")
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
        return torch.cat([known.new_zeros(known.shape[0], keep - known.shape[1], known.shape[2]), known], dim=1)

    def check(self, batch: Batch) -> None:
        """Raises ValueError for token ids that the model does not know and, of an image model, for classes and lengths that it has not."""
        self._check_ids(batch.tokens)
        if isinstance(self.module, ImageModel):
            self.module.check(batch)

    def check_prompt(self, batch: Batch) -> None:
        """Raises ValueError for a prompt from which the model cannot go on: none where it needs one, or one that cuts a step."""
        if isinstance(self.module, ImageModel):
            self.module.before(batch.prompt)
        elif batch.prompt < 1:
            raise ValueError("prompt=0: this model sees nothing before the first token; expected at least 1")

    def _check_ids(self, tokens: Tensor) -> None:
        low, high, known = int(tokens.min()), int(tokens.max()), _vocabulary(self.module)
        if low < 0 or (known is not None and high >= known):
            top = "" if known is None else f" to {known - 1}"
            raise ValueError(f"token ids must be 0{top} for {self.name}; got {low} to {high}: another model's tokenizer?")

    @overload
    def generate(self, prompt: str, length: int) -> str: ...
    @overload
    def generate(self, prompt: Tensor | Batch, length: int | None = None) -> Tensor: ...
    def generate(self, prompt: str | Int[Tensor, "batch position"] | Batch, length: int | None = None) -> str | Int[Tensor, "batch length"]:
        """Exactly `length` greedy tokens after the prompt, as text for a text and as ids for ids. An end-of-text token does not stop it.

        Of a Batch, what it would say in place of `targets`, given its prompt and what it is conditioned on.
        """
        if isinstance(prompt, str):
            return self.decode(self.generate(torch.tensor([self.encode(prompt)]), length)[0].tolist())
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
            return Decoder(self, len(batch), given.conditioning).greedy(given.tokens[:, : batch.prompt], batch.length - batch.prompt)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of an image, as positions that the blocks see; none of other models."""
        return self.module.segments if isinstance(self.module, ImageModel) else ()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens. Raises ValueError when it has none."""
        ids = self.tokens(text)
        if not ids:
            raise ValueError("the text is empty: expected at least one token")
        return ids

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens; none for an empty text."""
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...), or give token ids")
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_all(self, texts: Sequence[str], length: int | None = None) -> Batch:
        """One right-padded batch, each text cut to `length` tokens."""
        return Batch.pad([self.encode(t)[:length] for t in texts])

    def decode(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer: pass interp.load(model, tokenizer=...)")
        return str(self.tokenizer.decode(tokens))

    def intervened(self, *plans: Plan) -> AbstractContextManager[None]:
        """Everything run inside the block runs under the plans; see `interp.hooks.intervened`."""
        return intervened(self, *plans)

    @property
    def fingerprint(self) -> str:
        """Tells models apart: a hash over name, shape, precision and sum of every parameter. It does not see active interventions."""
        digest = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            total = parameter.detach().sum(dtype=torch.float64).item()
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{total!r}".encode())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        stacks = ", ".join(f"{name or 'blocks'}: {len(blocks)}" for name, blocks in self.anatomy.stacks.items())
        size = sum(p.numel() for p in self.module.parameters())
        return f"Subject({self.name}, {size / 1e6:.1f}M parameters, {stacks}, {len(self.sites)} sites)"


def token_losses(logits: Float[Tensor, "batch predicted vocabulary"], batch: Batch) -> Float[Tensor, "batch predicted"]:
    """Cross-entropy in nats of `batch.targets` under their logits; 0 on padding."""
    targets = batch.targets.to(logits.device)
    precise = torch.promote_types(logits.dtype, torch.float32)
    by_row = zip(logits, targets, strict=True)  # flattening sliced logits would copy all of them
    losses = torch.stack([nn.functional.cross_entropy(row.to(precise), true, reduction="none") for row, true in by_row])
    return losses * batch.counted.to(logits.device)


def language_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of a Hugging Face causal language model; its head runs on the kept positions only, or on all of them."""
    everything = keep >= batch.length - 1
    return module(batch.tokens, use_cache=False, logits_to_keep=0 if everything else keep + 1).logits[:, -keep - 1 : -1]


def image_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of VAR and RAR, which predict every token from the class and what they have said."""
    assert isinstance(module, ImageModel)
    return module.predicted(batch, keep)


def plain_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of any module that maps token ids to next-token logits [batch, position, vocabulary]."""
    output = module(batch.tokens, **batch.conditioning)
    return getattr(output, "logits", output)[:, -keep - 1 : -1]


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    anatomy: Layout | None = None,
    forward: Forward | None = None,
    example: Batch | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """A Subject from a hub id, a folder, a GGUF file, an installed package with a GGUF, the weights of a VAR or a RAR, or a model you hold:
    Hugging Face, nnsight, one of interp.models, any.

    Weights are neither copied nor changed, nor is the kind of attention. Sites are found structurally, and verified on a forward of a few
    tokens.

    Args:
        tokenizer: for models that come without one; of an image model the file of its tokenizer, where it does not stand beside it.
        anatomy: where the sites are, for modules whose structure does not tell (see Layout).
        forward: how to get logits from a plain module that is not called as `module(tokens)`; see Subject.
        example: a tiny batch for the first forward, for modules that need more than tokens.
        dtype: of the weights when read from files; as stored by default.
        trust_remote_code: whether code that a checkpoint brings may run.

    Raises:
        LoadError: unreadable files, NaN weights, a tokenizer larger than the embedding, an object that is no model.
        SiteError: no blocks found.
    """
    if isinstance(source, Subject):
        return source
    name = str(source) if isinstance(source, (str, Path)) else ""
    if isinstance(source, (str, Path)) and is_image_model(source):
        source, tokenizer = read_image_model(source, tokenizer, _dtype(dtype)), None
    elif isinstance(source, (str, Path)):
        source, found = read(source, _dtype(dtype), trust_remote_code)
        tokenizer = found if tokenizer is None else tokenizer
    module, tokenizer = _unwrapped(source, tokenizer)
    _check_weights(module, tokenizer)
    forward = forward or _forward_of(module)
    batch = (_example(module) if example is None else example).to(next(module.parameters()).device)
    found_anatomy = discover(module, lambda: forward(module, batch, batch.length - 1), anatomy)
    return Subject(module, found_anatomy, forward, tokenizer, Path(name).name)


def _forward_of(module: nn.Module) -> Forward:
    if isinstance(module, ImageModel):
        return image_forward
    return language_forward if hasattr(module, "prepare_inputs_for_generation") else plain_forward


def _example(module: nn.Module) -> Batch:
    """A few tokens that every embedding of the module knows; of an image model, whole images of its first class."""
    if isinstance(module, ImageModel):
        tokens = torch.arange(2 * module.length).reshape(2, -1) % module.tokenizer.codes
        return Batch(tokens, 0, conditioning={"label": torch.zeros(2, dtype=torch.long)})
    sizes = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    if not sizes:
        raise LoadError(f"{type(module).__name__} has no token embedding (nn.Embedding): pass example= and forward= to interp.load")
    return Batch(torch.arange(22).reshape(2, 11) % min(sizes))


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise LoadError(f"dtype={given!r}: expected one of float32, bfloat16, float16, float64")
    return found


def _unwrapped(source: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    """The torch module behind what a user holds; refuses what cannot be read without changing it."""
    library = type(source).__module__.partition(".")[0]
    if library == "nnsight":
        return source._module, getattr(source, "tokenizer", None) if tokenizer is None else tokenizer
    if library != "transformer_lens" and not isinstance(source, nn.Module):
        raise LoadError(f"cannot study a {type(source).__name__}: expected a hub id, a folder, a .gguf file, or a torch module")
    if library == "transformer_lens" or any(type(m).__module__.startswith("transformer_lens.model_bridge") for m in source.modules()):
        raise LoadError(
            "a TransformerBridge rewrites the model in place (other modules, other attention), so its numbers are not its own: load "
            "the original checkpoint again and pass that; to run a plan on the bridge use interp.adapters.transformer_lens"
        )
    if getattr(getattr(source, "config", None), "is_encoder_decoder", False):
        raise LoadError(f"{type(source).__name__} is an encoder-decoder: expected an autoregressive model over one sequence")
    return source, tokenizer


def _check_weights(module: nn.Module, tokenizer: Any) -> None:
    named = list(module.named_parameters())
    if not named:
        raise LoadError(f"{type(module).__name__} has no parameters: expected a model with weights")
    if any(p.is_meta for _, p in named):
        raise LoadError(f"{type(module).__name__} has no weights yet (meta device): load them first; with nnsight, pass dispatch=True")
    broken = [name for name, p in named if p.is_floating_point() and not bool(torch.isfinite(p.detach()).all())]
    if broken:
        raise LoadError(f"{len(broken)} of {len(named)} weights hold NaN or infinity: {', '.join(broken[:3])}; expected finite weights")
    rows = _vocabulary(module)
    known = (
        None if tokenizer is None else getattr(tokenizer, "vocab_size", len(tokenizer))
    )  # without added tokens, which need not be embedded
    if known is not None and rows is not None and known > rows:
        raise LoadError(f"the tokenizer has {known} tokens but the model embeds {rows}: another model's tokenizer")


def _vocabulary(module: nn.Module) -> int | None:
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
