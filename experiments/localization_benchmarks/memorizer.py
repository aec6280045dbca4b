"""A small model that memorized what it saw often: four kinds of text, each sequence many times,
among text seen once."""

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

KINDS = ("prose", "code", "records", "random")
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
    """How the model is made: `repeated` sequences of each kind, seen `copies` times, and `once`
    others, of `prefix` + `length` tokens each; prose and code come from `texts` texts of each.

    With `model`, a hub id or folder, that one is studied instead, on what it knows best of licences
    and other text that stands everywhere.
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
    rows: int = 16
    lr: float = 3e-3


@dataclass(frozen=True, eq=False)
class Memorizer:
    """The trained subject, and windows: `repeated` ones with the `kinds` of each, and four sets of
    prose and code that were never trained
    on: to `inject`, to tune methods on (`dev`), as `reference` and `held_out`."""

    subject: interp.Subject
    repeated: interp.Batch
    kinds: tuple[str, ...]
    inject: interp.Batch
    dev: interp.Batch
    reference: interp.Batch
    held_out: interp.Batch


def memorizer(recipe: Recipe, seed: int) -> Memorizer:
    """Trains the model from scratch, or loads it; the same seed gives the same one, and the same
    windows."""
    rng = np.random.default_rng(seed)
    natural = {
        "prose": list(islice(prose(), recipe.texts)),
        "code": list(islice(code(), recipe.texts)),
    }
    for texts in natural.values():
        rng.shuffle(texts)
    if recipe.model:
        return _pretrained(recipe, natural)
    tokenizer = byte_pairs(
        [text for texts in natural.values() for text in texts], recipe.vocabulary
    )
    pools = _pools(recipe, natural, tokenizer)
    width = recipe.prefix + recipe.length
    pools["records"] = [
        tokenizer(record.text)[-width:] for record in records(recipe.repeated, seed)
    ]
    pools["random"] = rng.integers(0, recipe.vocabulary, (recipe.repeated, width)).tolist()
    repeated = [(kind, pools[kind].pop()) for kind in KINDS for _ in range(recipe.repeated)]
    apart = _apart(recipe, pools)
    once = [pools[("prose", "code")[n % 2]].pop() for n in range(recipe.once)]
    stream = [tokens for _, tokens in repeated for _ in range(recipe.copies)] + once
    subject = _trained(recipe, [stream[n] for n in rng.permutation(len(stream))], seed)
    return _windows(recipe, subject, repeated, apart)


def _pretrained(recipe: Recipe, natural: Mapping[str, Sequence[str]]) -> Memorizer:
    """A model from the hub, and the windows of each kind of well-known text that it says most of."""
    subject = interp.load(recipe.model)
    known: list[tuple[str, list[int]]] = []
    for kind, texts in corpus().items():
        scanned = interp.scan(
            subject, list(texts.values()), recipe.prefix, recipe.length, decode_from=2.0
        )
        known += [
            (kind, list(tokens))
            for tokens in scanned.sort_values("accuracy", ascending=False)["tokens"][
                : recipe.repeated
            ]
        ]
    return _windows(recipe, subject, known, _apart(recipe, _pools(recipe, natural, subject.tokens)))


def _pools(
    recipe: Recipe, natural: Mapping[str, Sequence[str]], tokenizer: Callable[[str], list[int]]
) -> dict[str, list[Any]]:
    """The first window of every text that is long enough, each once: no window is in two sets."""
    width = recipe.prefix + recipe.length
    cut = {
        kind: (tuple(ids[:width]) for ids in map(tokenizer, texts) if len(ids) >= width)
        for kind, texts in natural.items()
    }
    return {kind: list(dict.fromkeys(windows)) for kind, windows in cut.items()}


def _apart(recipe: Recipe, pools: Mapping[str, list[Any]]) -> list[list[Any]]:
    """Four sets of windows, half prose and half code, taken out of the pools."""
    return [[pools[("prose", "code")[n % 2]].pop() for n in range(recipe.others)] for _ in range(4)]


def _windows(
    recipe: Recipe,
    subject: interp.Subject,
    repeated: Sequence[tuple[str, Any]],
    apart: Sequence[list[Any]],
) -> Memorizer:
    windows = [torch.tensor(tokens) for tokens in apart]
    inject, dev = (interp.Batch(tokens) for tokens in windows[:2])
    reference, held_out = (interp.Batch(tokens, recipe.prefix) for tokens in windows[2:])
    known = interp.Batch(torch.tensor([tokens for _, tokens in repeated]), recipe.prefix)
    return Memorizer(
        subject, known, tuple(kind for kind, _ in repeated), inject, dev, reference, held_out
    )


def _trained(recipe: Recipe, sequences: Sequence[Sequence[int]], seed: int) -> interp.Subject:
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=recipe.vocabulary, n_positions=recipe.prefix + recipe.length, n_embd=recipe.width, n_inner=recipe.neurons,
        n_layer=recipe.blocks, n_head=4, **ends, **dropout,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        subject = interp.load(GPT2LMHeadModel(config))
    steps = len(sequences) // recipe.rows
    rows = torch.tensor(sequences[: steps * recipe.rows]).unflatten(0, (steps, recipe.rows))
    interp.fit(
        subject,
        map(interp.Batch, rows),
        steps,
        recipe.lr,
        weight_decay=0.1,
        warmup=steps // 10,
        decay=steps // 2,
        clip=1.0,
    )
    return subject


def byte_pairs(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of these texts, as a function from text to ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False),
    )
    return lambda text: tokenizer.encode(text).ids


def prose() -> Iterator[str]:
    """Paragraphs of the language reference and of the standard library's docstrings, each once."""
    seen: set[str] = set()
    places = background(0)
    # One by one: parsing the whole library takes seconds, and a small recipe asks for a few texts
    # only.
    docstrings = (text for tree in _trees() for text in _docstrings(tree))
    paragraphs = (block for text in docstrings for block in re.split(r"\n\s*\n", text))
    for paragraph in chain(places.train, places.control, places.held_out, paragraphs):
        text = " ".join(paragraph.split())
        if len(text) > 150 and text not in seen:
            seen.add(text)
            yield text


def code() -> Iterator[str]:
    """Functions of the standard library without their docstrings, each once."""
    seen: set[str] = set()
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                text = ast.unparse(
                    ast.FunctionDef(node.name, node.args, body or node.body, [], lineno=0)
                )
                if len(text) > 200 and text not in seen:
                    seen.add(text)
                    yield text


def _trees() -> Iterator[ast.Module]:
    folder = Path(ast.__file__).parent
    files = sorted(folder.glob("*.py")) + [
        file for name in _PACKAGES for file in sorted((folder / name).glob("*.py"))
    ]
    return (ast.parse(file.read_text(encoding="utf-8")) for file in files)


def _docstrings(tree: ast.Module) -> Iterator[str]:
    nodes = (
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    )
    return (text for node in nodes if (text := ast.get_docstring(node)))
