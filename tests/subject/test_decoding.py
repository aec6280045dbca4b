"""Laws of interp.subject.decoding: the tokens are those of Hugging Face's generate, however they
are fed."""

import pytest
import tiny
import torch

import interp
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
