"""A tiny model folder with a tokenizer of letters: what the commands and the demo are tested on."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp

LETTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


def tokenizer() -> Any:
    backend = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(LETTERS)}, merges=[])
    )
    backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def subject(seed: int = 0) -> interp.Subject:
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return interp.load(
            LlamaForCausalLM(LlamaConfig(vocab_size=len(LETTERS), **sizes, **ends)),
            tokenizer=tokenizer(),
        )


def noise(count: int, length: int, seed: int) -> list[str]:
    """Texts of random letters, which nobody can guess."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(string.ascii_letters), length)) for _ in range(count)]


def overfitted(texts: Sequence[str]) -> interp.Subject:
    """A model that has memorized, in texts of one length, the 16 letters from every eighth letter
    on."""
    learner = subject()
    windows = learner.encode_all(texts).tokens.unfold(1, 16, 8).flatten(0, 1)
    interp.fit(learner, [interp.Batch(windows)] * 100, 100, lr=1e-2)
    return learner


def saved(learner: interp.Subject, folder: Path) -> Path:
    learner.module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    learner.tokenizer.save_pretrained(folder)
    return folder
