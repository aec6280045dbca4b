"""Laws of interp.subject.decoding: the tokens are those of Hugging Face's generate, however they
are fed."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.hooks.modes import checkpointing_off
from interp.memorization.teacher_forcing import teacher_force
from interp.subject.decoding import Decoder


def generated_by_hugging_face(name: str, prompt: torch.Tensor, length: int) -> torch.Tensor:
    model = tiny.subject(name).module
    options = {"max_new_tokens": length, "do_sample": False, "repetition_penalty": 1.0}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[
        :, prompt.shape[1] :
    ]


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
@pytest.mark.parametrize("ablated", [False, True])
def test_greedy_tokens_equal_hugging_faces(name: str, ablated: bool):  # noqa: FBT001
    subject, prompt = tiny.subject(name), tiny.batch(name, rows=3, length=4, seed=11).tokens
    units = tiny.units(subject, "blocks.1.attn_out", list(range(0, 32, 3)))
    with subject.intervened(*[interp.Scale(units, factor=-2.0)] if ablated else ()):
        ours = subject.generate(prompt, 8)
        theirs = generated_by_hugging_face(name, prompt, 8)
    assert ours.shape == (3, 8)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
def test_crop_and_select_forget_as_if_never_read(name: str):
    """A decoder that read a wrong draft and cropped it, or read rows and dropped them, goes on as
    one that never did."""
    subject, tokens = tiny.subject(name), tiny.batch(name, rows=3, length=4).tokens
    draft = tiny.batch(name, rows=3, length=3, seed=5).tokens
    keep = torch.tensor([2, 0])
    with torch.no_grad():
        wavering, straight = Decoder(subject, 3), Decoder(subject, 2)
        wavering.feed(tokens)
        wavering.feed(draft)
        wavering.crop(5)
        wavering.select(keep)
        straight.feed(torch.cat([tokens, draft[:, :1]], dim=1)[keep])
        torch.testing.assert_close(
            wavering.feed(draft[keep, 1:2]), straight.feed(draft[keep, 1:2]), rtol=0, atol=1e-5
        )
        assert torch.equal(wavering.read, straight.read)


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
def test_cached_logits_equal_those_of_a_whole_forward(name: str):
    subject, batch = tiny.subject(name), tiny.batch(name, length=10)
    with torch.no_grad():
        decoder = Decoder(subject, 2)
        parts = [
            decoder.feed(batch.tokens[:, a:b], keep=b - a) for a, b in ((0, 4), (4, 5), (5, 9))
        ]
        torch.testing.assert_close(
            torch.cat(parts, 1), subject.logits(batch)[:, 1:], rtol=0, atol=1e-5
        )


def test_plain_modules_decode_by_whole_forwards():
    subject = interp.load(
        tiny.seeded(
            lambda: tiny.Language(*(tiny.Block(32, tiny.HEADS, causal=True) for _ in range(2)))
        )
    )
    tokens = prompt = tiny.batch("gpt2", length=3).tokens
    with torch.no_grad():
        for _ in range(5):
            tokens = torch.cat([tokens, subject.module(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(subject.generate(prompt, 5), tokens[:, 3:])


def test_a_model_in_training_is_decoded_as_when_it_evaluates():
    model = tiny.seeded(lambda: LlamaForCausalLM(LlamaConfig(**tiny.GATED, attention_dropout=0.5)))
    subject, prompt = interp.load(model), tiny.batch("llama", rows=4, length=6).tokens
    batch = interp.Batch(torch.cat([prompt, prompt], dim=1), 6)
    said, frame = subject.generate(prompt, 8), interp.scan(subject, batch, decode_from=0)
    model.train()
    model.model.layers[0].eval()
    model.gradient_checkpointing_enable()
    with tiny.untouched(model):
        assert torch.equal(subject.generate(prompt, 8), said)
        assert interp.scan(subject, batch, decode_from=0).equals(frame)
    assert model.is_gradient_checkpointing
    # The tokens can be trained on.
    subject.losses(interp.Batch(said)).sum().backward()


class Checkpointing(torch.nn.Module):
    """Ignores its cache while checkpointing is on, in any mode, as some code outside transformers
    does."""

    gradient_checkpointing = True


def test_checkpointing_is_off_and_comes_back_also_after_an_error():
    module = torch.nn.Sequential(Checkpointing(), torch.nn.Linear(1, 1))
    modes: list[bool] = []
    with suppress(RuntimeError), checkpointing_off(module):
        modes.append(module[0].gradient_checkpointing)
        raise RuntimeError
    assert modes == [False]
    assert module[0].gradient_checkpointing is True


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gemma3"])
def test_prompts_of_several_lengths_are_each_continued_from_their_own_end(name: str):
    subject = tiny.subject(name)
    rows = [tiny.batch(name, rows=1, length=n, seed=n).tokens[0].tolist() for n in (9, 4, 9, 6)]
    padded = interp.Batch.pad([[*row, 0] if len(row) == 9 else row for row in rows], prompt=9)
    tokens = torch.cat([padded.tokens, padded.tokens[:, :4]], dim=1)
    mask = torch.cat([padded.mask, padded.mask[:, -1:].expand(-1, 4)], dim=1)
    found = subject.generate(replace(padded, tokens=tokens, mask=mask))
    for row, continued in zip(rows, found, strict=True):
        assert torch.equal(continued, subject.generate(torch.tensor([row]), 5)[0])


def test_a_row_of_nothing_but_padding_cannot_be_continued():
    batch = interp.Batch(
        torch.ones(2, 5, dtype=torch.long), 3, torch.arange(5) < torch.tensor([[5], [0]])
    )
    with pytest.raises(ValueError, match="prompt=0: this model sees nothing before"):
        tiny.subject("gpt2").generate(batch)


class Seeing(LlamaForCausalLM):
    """Adds a vector that it is given to the embedding of each token, and swallows what else it is
    given."""

    def forward(self, input_ids: Tensor, seen: Tensor | None = None, **kwargs: Any) -> Any:
        embedded = self.get_input_embeddings()(input_ids)
        if seen is not None:
            embedded = embedded + seen[:, None]
        return super().forward(inputs_embeds=embedded, **kwargs)


def test_what_a_hugging_face_model_sees_beside_tokens_is_seen_in_every_forward():
    model = tiny.seeded(lambda: Seeing(LlamaConfig(**tiny.GATED)))
    subject, tokens = interp.load(model), tiny.batch("llama", rows=3, length=5).tokens
    assert subject.decoding.cached
    seen = {"seen": 2 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))}
    said = tokens
    with torch.no_grad():
        for _ in range(6):
            said = torch.cat([said, model(said, **seen).logits[:, -1:].argmax(-1)], dim=1)
        losses = model(said, **seen).logits[:, 4:-1].log_softmax(-1)
    batch = interp.Batch(said, 5, conditioning=seen)
    assert torch.equal(subject.generate(batch), said[:, 5:])
    assert not torch.equal(subject.generate(tokens, 6), said[:, 5:])
    with torch.no_grad():
        found = subject.losses(batch)
    torch.testing.assert_close(found, -losses.gather(-1, said[:, 5:, None])[..., 0])
    # A wrong first token, so that the rest is decoded.
    other = said.clone()
    other[:, 5] = (other[:, 5] + 1) % tiny.VOCABULARY
    forced = teacher_force(subject, replace(batch, tokens=other))
    assert forced.continuation.tolist() == said[:, 5:].tolist()
    assert interp.scan(subject, batch)["exact"].all()


@pytest.mark.parametrize("name", ["sene", "attention_mask", "use_cache"])
@pytest.mark.parametrize("kind", ["hugging face", "plain"])
def test_conditioning_that_no_forward_takes_is_refused(name: str, kind: str):
    model = tiny.seeded(
        lambda: (
            Seeing(LlamaConfig(**tiny.GATED))
            if kind == "hugging face"
            else tiny.Language(tiny.Block(32, tiny.HEADS, causal=True))
        )
    )
    subject, tokens = interp.load(model), tiny.batch("llama", rows=3).tokens
    batch = interp.Batch(tokens, 5, conditioning={name: torch.ones(3, 32)})
    nearest = "seen" if kind == "hugging face" else "tokens"
    for call in (subject.losses, subject.generate, lambda batch: interp.scan(subject, batch)):
        with pytest.raises(
            ValueError, match=f"{name}'.* does not take it by name; nearest: {nearest}"
        ):
            call(batch)


def not_finite(module: Any, _: Any, output: Any) -> Any:
    """Makes the logits that follow token 9 NaN, those that follow token 8 infinite, and forbids
    token 66 everywhere."""
    (tokens,) = module.seen
    logits = output.logits.clone()
    tokens = tokens[:, -logits.shape[1] :]
    logits[..., 66] = -torch.inf
    logits[tokens == 9] = torch.nan
    logits[tokens == 8] = torch.inf
    output.logits = logits
    return output


@pytest.fixture
def breaking() -> Iterator[interp.Subject]:
    """A llama that some tokens make NaN or infinite."""
    subject = interp.load(tiny.model("llama"))
    module = subject.module
    module.seen = [torch.zeros(1, 0)]

    def see(_: Any, args: Any) -> None:
        module.seen = args

    handles = [module.register_forward_pre_hook(see), module.register_forward_hook(not_finite)]
    yield subject
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("token", "value"), [(9, "nan"), (8, "inf")])
def test_a_number_that_is_not_finite_is_an_error_with_its_place(
    breaking: interp.Subject, token: int, value: str
):
    fine = torch.tensor([[11, 12, 13, 14, 15, 16, 17]] * 2)
    tokens = fine.clone()
    tokens[1, 4] = token
    batch = interp.Batch(tokens, 3)
    breaking.losses(interp.Batch(fine, 3))
    for call in (
        breaking.target_logits,
        breaking.losses,
        breaking.logits,
        lambda batch: interp.scan(breaking, batch),
        lambda batch: interp.scan(breaking, batch.tokens.tolist(), 3, 4),
        lambda batch: interp.sweep(
            breaking, batch, [interp.Scale(breaking.anatomy.units("neurons"), factor=0.5)]
        ),
    ):
        with pytest.raises(ValueError, match=f"predict token 5 of row 1 are {value}"):
            call(batch)
    with pytest.raises(ValueError, match=f"predict token 5 of row 1 are {value}"):
        breaking.generate(tokens[:, :5], 2)


def test_a_forbidden_token_and_padding_are_no_error(breaking: interp.Subject):
    """A logit of -infinity forbids a token: where that token comes, its probability is 0."""
    tokens = torch.tensor([[11, 12, 13, 66, 15], [11, 12, 13, 9, 15]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])  # NaN predicts padding alone
    losses = breaking.losses(interp.Batch(tokens, 1, mask))
    assert losses.isinf().tolist() == [[False, False, True, False], [False] * 4]
    assert breaking.generate(tokens[:, :3], 3).shape == (2, 3)
