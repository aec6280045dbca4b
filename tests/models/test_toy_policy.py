"""A model family of one's own costs a module that says its groups, and a reader.

Shown by a policy with two stacks that predicts actions in chunks. Nothing of the core knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

import interp
from interp.loading import readers
from interp.subject.stepwise import Segment, Stepwise

CHUNK, CHUNKS, ACTIONS = 3, 3, 20


class ChunkedPolicy(nn.Module):
    """A camera image to chunks of action tokens: a vision encoder, and a decoder that predicts a
    whole chunk from the image and the chunks before it. Every position of a chunk reads a learned
    slot and the mean of the chunk before."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(12, 16)
        self.vision = nn.ModuleList(tiny.Block(16, 2, causal=False) for _ in range(2))
        self.lift = nn.Linear(16, 32)
        self.embed = nn.Embedding(ACTIONS, 32)
        self.slots = nn.Parameter(torch.randn(CHUNK, 32))
        self.decoder = nn.ModuleList(tiny.Block(32, 4, causal=True) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, ACTIONS)
        self.lead = 0
        self.segments = tuple(
            Segment(f"chunk {n}", n * CHUNK, (n + 1) * CHUNK, n == 0) for n in range(CHUNKS)
        )

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Logits of all actions up to the end of the chunk that follows the tokens read."""
        seen = self.patches(image)
        for block in self.vision:
            seen = block(seen)
        start = self.lift(seen.mean(1, keepdim=True))
        before = (
            self.embed(tokens).unflatten(1, (-1, CHUNK)).mean(2)
            if tokens.shape[1]
            else start[:, :0]
        )
        chunks = torch.cat([start, before], dim=1)
        x = (chunks[:, :, None] + self.slots).flatten(1, 2)
        for block in self.decoder:
            x = block(x)
        return self.head(self.norm(x))

    def groups(self, length: int) -> tuple[tuple[int, int], ...]:
        return tuple((start, start + CHUNK) for start in range(0, length, CHUNK))

    def ahead(self, read: int) -> int:
        return CHUNK

    def positions(self, read: int) -> int:
        return read + CHUNK

    def check(self, batch: interp.Batch) -> None:
        if "image" not in batch.conditioning:
            raise ValueError("conditioning['image'] must hold the camera image; got none")
        self.check_prompt(batch.length)

    def check_prompt(self, prompt: int) -> None:
        if prompt % CHUNK:
            raise ValueError(f"{prompt} actions are not a whole number of chunks of {CHUNK}")

    def predict(self, batch: interp.Batch, keep: int) -> Tensor:
        return self(batch.tokens[:, : batch.length - CHUNK], batch.conditioning["image"])[:, -keep:]

    def new_cache(self) -> None:
        return None

    def feed(
        self, read: Tensor, new: int, cache: Any, conditioning: Mapping[str, Tensor], keep: int
    ) -> Tensor:
        raise AssertionError("without a cache nothing is fed")

    def example(self) -> interp.Batch:
        return batch(seed=99)


def batch(rows: int = 4, seed: int = 0, prompt: int = 0) -> interp.Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, ACTIONS, (rows, CHUNK * CHUNKS), generator=generator)
    groups = tuple((start, start + CHUNK) for start in range(0, CHUNK * CHUNKS, CHUNK))
    return interp.Batch(
        tokens,
        prompt,
        groups=groups,
        conditioning={"image": torch.randn(rows, 5, 12, generator=generator)},
    )


@pytest.fixture(scope="module")
def policy() -> interp.Subject:
    return interp.load(tiny.seeded(ChunkedPolicy))


def test_the_policy_says_its_own_groups(policy):
    assert isinstance(policy.module, Stepwise)
    assert policy.stepwise is policy.module


def test_both_stacks_have_their_sites(policy):
    assert set(policy.anatomy.stacks) == {"vision", "decoder"}
    for site in ("vision.blocks.1.neurons", "decoder.blocks.2.neurons", "decoder.blocks.0.heads"):
        assert interp.Site.parse(site) in policy.sites


def test_greedy_decoding_is_that_of_whole_forwards(policy):
    given = batch()
    said = policy.generate(given)
    read = given.tokens[:, :0]
    with torch.no_grad():
        for _ in range(CHUNKS):
            read = torch.cat(
                [read, policy.module(read, given.conditioning["image"])[:, -CHUNK:].argmax(-1)],
                dim=1,
            )
    assert torch.equal(said, read)


def test_what_it_says_itself_is_extracted_and_nothing_else(policy):
    given = batch()
    own = interp.Batch(
        policy.generate(given), 0, groups=given.groups, conditioning=given.conditioning
    )
    assert interp.scan(policy, own)["exact"].all()
    frame = interp.scan(policy, given, decode_from=0.0)
    assert not frame["exact"].any()
    with torch.no_grad():
        logits = policy.module(given.tokens[:, :-CHUNK], given.conditioning["image"])
    true = logits.log_softmax(-1).gather(2, given.tokens[..., None])[..., 0].sum(1)
    np.testing.assert_allclose(frame["log_p"], true, rtol=1e-5)


def test_a_prompt_within_a_chunk_is_refused(policy):
    with pytest.raises(ValueError, match="not a whole number of chunks"):
        policy.generate(batch(prompt=1))


def test_it_is_localized_and_ablated_as_any_model(policy):
    given = batch(rows=6)
    scores = interp.localize(
        policy, given, method="gradient_x_activation", site="decoder.blocks.*.neurons"
    )
    units = scores.top(0.1)
    before = policy.losses(given)
    with policy.intervened(interp.Zero(units)):
        after = policy.losses(given)
    assert not torch.equal(before, after)
    (swept,) = interp.sweep(policy, given, [interp.Zero(units)], measure=interp.mean_loss)
    np.testing.assert_allclose(float(swept), float(after.detach().mean()), rtol=1e-5)


def test_one_reader_loads_it_from_a_file(tmp_path: Path, policy, monkeypatch):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "toy.policy"
    save_file(policy.module.state_dict(), file)

    def read(source: str | Path, *_: Any) -> nn.Module:
        module = ChunkedPolicy()
        module.load_state_dict(load_file(source))
        return module

    monkeypatch.setitem(
        readers.READERS,
        "policy",
        readers.Reader(lambda source: str(source).endswith(".policy"), read),
    )
    loaded = interp.load(file)
    assert torch.equal(loaded.logits(batch()), policy.logits(batch()))
