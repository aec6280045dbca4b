"""A small model that memorized what it saw often: sequences of four kinds of text, each seen many
times, among text seen once."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import interp
from experiments.localization_benchmarks.licence_texts import corpus
from interp.data.planted import background, records
from interp.loading.devices import choose_device

KINDS = ("prose", "code", "records", "random")
# Subpackages of the standard library whose code and docstrings are read, next to its modules.
_PACKAGES = (
    "asyncio",
    "concurrent",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)


@dataclass(frozen=True)
class Recipe:
    """How the model is made.

    With `model` a pretrained one is studied instead, on the licences and other widespread text that
    it predicts best; fields about size and training are not used then.

    Attributes:
        blocks: number of blocks.
        width: width of the residual stream.
        neurons: hidden units of each MLP.
        vocabulary: size of the tokenizer.
        prefix: number of tokens of a window that the model is given.
        length: number of tokens that the model is asked to continue with.
        repeated: number of sequences of each kind that are seen often.
        copies: how many times each repeated sequence is seen.
        once: number of sequences that are seen once.
        others: number of windows in each set that is never trained on.
        texts: number of texts of prose, and of code, that windows are cut from.
        model: a hub id or folder; empty for a model trained here.
        batch_size: sequences per training step.
        lr: learning rate.
    """

    blocks: int = 4
    width: int = 128
    neurons: int = 256
    vocabulary: int = 1024
    prefix: int = 16
    length: int = 32
    repeated: int = 4
    copies: int = 100
    once: int = 3000
    others: int = 16
    texts: int = 2000
    model: str = ""
    batch_size: int = 16
    lr: float = 3e-3


@dataclass(frozen=True, eq=False)
class Memorizer:
    """A model and its windows.

    Attributes:
        subject: the model.
        repeated: windows that the model has seen often.
        kinds: the kind of text of each repeated window.
        inject: windows of prose and code that were never trained on, to be injected.
        dev: other windows that were never trained on, to tune methods on.
        reference: other windows that were never trained on, for methods to compare with.
        held_out: other windows that were never trained on, to judge damage on.
    """

    subject: interp.Subject
    repeated: interp.Batch
    kinds: tuple[str, ...]
    inject: interp.Batch
    dev: interp.Batch
    reference: interp.Batch
    held_out: interp.Batch


def memorizer(recipe: Recipe, seed: int) -> Memorizer:
    """Trains the model from scratch, or loads it. The same seed gives the same model and the same
    windows."""
    rng = np.random.default_rng(seed)
    natural = {
        "prose": list(islice(prose(), recipe.texts)),
        "code": list(islice(code(), recipe.texts)),
    }
    # Texts come file by file. Windows are taken from the end: without shuffling, all sets would be
    # cut from the same few modules.
    for texts in natural.values():
        rng.shuffle(texts)
    if recipe.model:
        return _pretrained(recipe, natural)

    tokenizer = byte_pairs([*natural["prose"], *natural["code"]], recipe.vocabulary)
    width = recipe.prefix + recipe.length
    pools = _pools(recipe, natural, tokenizer)
    planted = records(recipe.repeated, seed)
    # The last tokens of a record are its secret, which nothing but memory can give; the first
    # ones are mostly a template.
    pools["records"] = [tokenizer(record.text)[-width:] for record in planted]
    # Random tokens follow no rule: what is continued here can only be memorized.
    pools["random"] = rng.integers(0, recipe.vocabulary, (recipe.repeated, width)).tolist()

    # Windows are taken out of the pools, so that no window is in two sets.
    repeated: list[tuple[str, Any]] = []
    for kind in KINDS:
        repeated += [(kind, pools[kind].pop()) for _ in range(recipe.repeated)]
    untrained = _untrained_windows(recipe, pools)
    once = [_next_window(pools, number) for number in range(recipe.once)]

    sequences: list[Any] = []
    for _, tokens in repeated:
        sequences += [tokens] * recipe.copies
    sequences += once
    shuffled = [sequences[number] for number in rng.permutation(len(sequences))]
    subject = _trained(recipe, shuffled, seed)
    return _with_windows(recipe, subject, repeated, untrained)


def _pretrained(recipe: Recipe, natural: Mapping[str, Sequence[str]]) -> Memorizer:
    """A model from the hub, and the windows of each kind of widespread text that it predicts
    best."""
    subject = interp.load(recipe.model)
    known: list[tuple[str, list[int]]] = []
    for kind, texts in corpus().items():
        # Above 1, nothing is decoded freely: only the accuracy is read here.
        scanned = interp.scan(
            subject, list(texts.values()), recipe.prefix, recipe.length, decode_from=2.0
        )
        best_first = scanned.sort_values("accuracy", ascending=False)
        known += [(kind, list(tokens)) for tokens in best_first["tokens"][: recipe.repeated]]
    pools = _pools(recipe, natural, subject.tokens)
    return _with_windows(recipe, subject, known, _untrained_windows(recipe, pools))


def _pools(
    recipe: Recipe, natural: Mapping[str, Sequence[str]], tokenizer: Callable[[str], list[int]]
) -> dict[str, list[Any]]:
    """The first window of every text that is long enough, each once."""
    width = recipe.prefix + recipe.length
    pools: dict[str, list[Any]] = {}
    for kind, texts in natural.items():
        windows: dict[tuple[int, ...], None] = {}  # a set that keeps the order
        for text in texts:
            tokens = tokenizer(text)
            if len(tokens) >= width:
                windows[tuple(tokens[:width])] = None
        pools[kind] = list(windows)
    return pools


def _next_window(pools: Mapping[str, list[Any]], number: int) -> Any:
    """Takes a window out of the pools: of prose for even numbers, of code for odd ones."""
    return pools["code" if number % 2 else "prose"].pop()


def _untrained_windows(recipe: Recipe, pools: Mapping[str, list[Any]]) -> list[list[Any]]:
    """Four sets of windows, half prose and half code, taken out of the pools."""
    return [[_next_window(pools, number) for number in range(recipe.others)] for _ in range(4)]


def _with_windows(
    recipe: Recipe,
    subject: interp.Subject,
    repeated: Sequence[tuple[str, Any]],
    untrained: Sequence[list[Any]],
) -> Memorizer:
    inject, dev, reference, held_out = (torch.tensor(tokens) for tokens in untrained)
    repeated_tokens = torch.tensor([tokens for _, tokens in repeated])
    return Memorizer(
        subject=subject,
        repeated=interp.Batch(repeated_tokens, recipe.prefix),
        kinds=tuple(kind for kind, _ in repeated),
        inject=interp.Batch(inject),
        dev=interp.Batch(dev),
        reference=interp.Batch(reference, recipe.prefix),
        held_out=interp.Batch(held_out, recipe.prefix),
    )


def _trained(recipe: Recipe, sequences: Sequence[Sequence[int]], seed: int) -> interp.Subject:
    from transformers import GPT2Config, GPT2LMHeadModel

    no_special_tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.prefix + recipe.length,
        n_embd=recipe.width,
        n_inner=recipe.neurons,
        n_layer=recipe.blocks,
        n_head=4,
        **no_special_tokens,
        **no_dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(config)
    subject = interp.load(module.to(choose_device()))
    # One pass over the list, so that a sequence is seen as often as it is in it.
    steps = len(sequences) // recipe.batch_size
    used = torch.tensor(sequences[: steps * recipe.batch_size])
    batches = used.unflatten(0, (steps, recipe.batch_size))
    interp.fit(
        subject,
        map(interp.Batch, batches),
        steps,
        recipe.lr,
        weight_decay=0.1,
        warmup=steps // 10,
        decay=steps // 2,
        clip=1.0,
    )
    return subject


def byte_pairs(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on these texts, as a function from text to ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return lambda text: tokenizer.encode(text).ids


def prose() -> Iterator[str]:
    """Paragraphs of the language reference and of the standard library's docstrings, each once."""
    seen: set[str] = set()
    reference = background(0)
    for paragraph in chain(
        reference.train, reference.control, reference.held_out, _docstring_paragraphs()
    ):
        text = " ".join(paragraph.split())
        if len(text) > 150 and text not in seen:
            seen.add(text)
            yield text


def _docstring_paragraphs() -> Iterator[str]:
    # A generator: parsing the whole library takes seconds, and a small recipe asks for a few texts
    # only.
    for tree in _trees():
        for text in _docstrings(tree):
            yield from re.split(r"\n\s*\n", text)


def code() -> Iterator[str]:
    """Functions of the standard library without their docstrings, each once."""
    seen: set[str] = set()
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                # Docstrings belong to the prose: kept here, the same text would be of two kinds.
                text = _without_docstring(node)
                if len(text) > 200 and text not in seen:
                    seen.add(text)
                    yield text


def _without_docstring(function: ast.FunctionDef) -> str:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    # A function needs a body: one that is a docstring alone keeps it.
    bare = ast.FunctionDef(function.name, function.args, body or function.body, [], lineno=0)
    return ast.unparse(bare)


def _trees() -> Iterator[ast.Module]:
    """The modules of the standard library, parsed one by one."""
    folder = Path(ast.__file__).parent
    files = sorted(folder.glob("*.py"))
    for name in _PACKAGES:
        files += sorted((folder / name).glob("*.py"))
    for file in files:
        yield ast.parse(file.read_text(encoding="utf-8"))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
