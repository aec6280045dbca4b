"""Laws of interp.loading.prediction_laws: how a model is decoded is found out and never assumed;
what sees later tokens, or gives no finite logits, is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn

import interp
from interp.subject.stepwise import OneByOne

_SIZE = {"vocab_size": tiny.VOCABULARY, "num_hidden_layers": 2}
_HYBRID = _SIZE | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}

# Models whose cache cannot be trusted: a recurrent state that no crop brings back, no cache at all,
# a cache that is ignored.
WHOLE: dict[str, Callable[[], Any]] = {
    "mamba": lambda: transformers.MambaConfig(**_SIZE, hidden_size=32, state_size=8),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**_SIZE, hidden_size=32, state_size=8),
    "rwkv": lambda: transformers.RwkvConfig(
        **_SIZE, hidden_size=32, attention_hidden_size=32, intermediate_size=48
    ),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
        **_HYBRID | {"num_hidden_layers": 3}, lru_width=32, attention_window_size=8
    ),
    "lfm2": lambda: transformers.Lfm2Config(**_HYBRID, layer_types=["conv", "full_attention"]),
    "openai-gpt": lambda: transformers.OpenAIGPTConfig(
        vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4
    ),
}
WHOLE["roberta"] = lambda: transformers.RobertaConfig(  # its positions count no padding token
    **_HYBRID | {"pad_token_id": 1}, is_decoder=True
)
CACHED: dict[str, Callable[[], Any]] = {
    "mistral": lambda: transformers.MistralConfig(**_HYBRID, sliding_window=5),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        window_size=4,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
    ),
}


def made(config: Any) -> Any:
    return tiny.seeded(lambda: transformers.AutoModelForCausalLM.from_config(config))


def loaded(model: nn.Module, **options: Any) -> interp.Subject:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return interp.load(model, **options)


def by_whole_forwards(model: Any, prompt: Tensor, length: int) -> Tensor:
    tokens = prompt
    with torch.no_grad():
        for _ in range(length):
            following = model(tokens).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, following], dim=1)
    return tokens[:, prompt.shape[1] :]


@pytest.mark.parametrize("name", [*WHOLE, *CACHED])
def test_decoding_equals_whole_forwards(name: str):
    model = made((WHOLE | CACHED)[name]())
    subject = loaded(model)
    assert subject.decoding.cached == (name in CACHED), subject.decoding
    assert ("decoded by whole forwards" in repr(subject)) == (name in WHOLE)

    prompt = tiny.batch("llama", rows=3, length=6).tokens
    said = by_whole_forwards(model, prompt, 7)
    assert torch.equal(subject.generate(prompt, 7), said)

    # One token after the prompt is missed: greedy decoding returns to it, on a cropped cache of
    # some of the rows.
    truth = said.clone()
    truth[1:, 0] = (truth[1:, 0] + 1) % tiny.VOCABULARY
    rows = torch.cat([prompt, truth], dim=1).tolist()
    frame = interp.scan(subject, rows, 6, 7, decode_from=0)
    assert frame["exact"].tolist() == [True, False, False]
    assert frame["similarity"].tolist() == pytest.approx([1, 6 / 7, 6 / 7], abs=0.15)
    from rapidfuzz.distance import Levenshtein

    pairs = zip(truth.tolist(), said.tolist(), strict=True)
    assert frame["similarity"].tolist() == [
        Levenshtein.normalized_similarity(one, other) for one, other in pairs
    ]


@pytest.mark.parametrize("layers", [28, 80])
def test_a_number_of_layers_is_no_window(layers: int):
    """Qwen 2's configuration says how many layers have no window, whether there is one or not."""
    config = transformers.Qwen2Config(**_HYBRID, max_window_layers=layers)
    reason = interp.load(made(config)).decoding.reason
    without = interp.load(made(transformers.Qwen2Config(**_HYBRID, max_window_layers=0)))
    assert reason == without.decoding.reason
    windowed = transformers.Qwen2Config(**_HYBRID, max_window_layers=1)
    windowed.use_sliding_window, windowed.sliding_window = True, 16
    assert interp.load(made(windowed)).decoding.reason != reason


def test_what_is_decoded_by_whole_forwards_says_so_once():
    model = made(WHOLE["openai-gpt"]())
    with pytest.warns(UserWarning, match="is decoded by whole forwards, which are right but"):
        subject = interp.load(model)
    assert "single token" in subject.decoding.reason or "tokens" in subject.decoding.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject.generate(torch.ones(1, 3, dtype=torch.long), 3)


def one_window_less(self: OneByOne) -> Any:
    cache: Any = transformers.DynamicCache(config=self.module.config)
    for layer in cache.layers:
        if hasattr(layer, "sliding_window"):
            layer.sliding_window -= 1
    cache.activate_past_recording()
    return cache


class KeepsAll(transformers.DynamicCache):
    """Forgets nothing when it is cropped."""

    def crop(self, *_: Any) -> None:
        return


class KeepsOrder(transformers.DynamicCache):
    """Has the first rows, whichever are selected."""

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(torch.arange(len(indices)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("gemma3", one_window_less),
        ("llama", lambda self: KeepsAll()),
        ("gemma3", lambda self: KeepsAll(config=self.module.config)),
        ("qwen2", lambda self: KeepsOrder()),
    ],
    ids=["window", "crop", "crop with windows", "rows"],
)
def test_a_cache_that_is_slightly_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: Any, dtype: torch.dtype
):
    assert loaded(tiny.model(name, dtype)).decoding.cached
    monkeypatch.setattr(OneByOne, "new_cache", cache)
    assert not loaded(tiny.model(name, dtype)).decoding.cached


class IgnoresKeep(transformers.LlamaForCausalLM):
    """Returns the logits of all positions, whatever it is asked to keep."""

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


class KnowsNoKeep(transformers.LlamaForCausalLM):
    """Takes neither a cache nor what to keep."""

    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids, use_cache=False)


@pytest.mark.parametrize("kind", [IgnoresKeep, KnowsNoKeep])
def test_a_forward_need_not_know_which_logits_are_kept(kind: Any):
    llama = tiny.model("llama")
    other = kind(llama.config).eval()
    other.load_state_dict(llama.state_dict())
    prompt = tiny.batch("llama", rows=3, length=5).tokens
    subject, batch = loaded(other), interp.Batch(prompt, 3)
    assert torch.equal(subject.generate(prompt, 6), tiny.subject("llama").generate(prompt, 6))
    with torch.no_grad():
        wanted = tiny.subject("llama").target_logits(batch)
        torch.testing.assert_close(subject.target_logits(batch), wanted, rtol=0, atol=1e-5)


class LooksAhead(nn.Module):
    """A block that adds a share of the next token to each: as a convolution with wrong padding."""

    def __init__(self) -> None:
        super().__init__()
        self.block = tiny.Block(32, tiny.HEADS, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        following = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)
        return self.block(x + 0.01 * following)


def blockwise(block: int) -> nn.Module:
    """Attention to the end of the own run of `block` tokens."""

    class Blockwise(tiny.Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
            )
            run = torch.arange(x.shape[1]) // block
            mixed = nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=run[:, None] >= run
            )
            return self.out(mixed.transpose(1, 2).flatten(2))

    blocks = (tiny.Block(32, tiny.HEADS, causal=True, attention=Blockwise) for _ in range(2))
    return tiny.seeded(lambda: tiny.Language(*blocks))


def policy_that_sees_all() -> interp.Subject:
    policy = tiny.model("policy")
    for block in policy.decoder:
        block.attn.causal = False
    return loaded(policy, forward=tiny.policy_forward, example=tiny.batch("policy", seed=99))


@pytest.mark.parametrize(
    "make",
    [
        lambda: loaded(
            tiny.seeded(
                lambda: transformers.BertLMHeadModel(
                    transformers.BertConfig(**_HYBRID | {"is_decoder": False})
                )
            )
        ),
        lambda: loaded(made(transformers.LlamaConfig(**_HYBRID, is_causal=False))),
        lambda: loaded(
            made(
                transformers.XLNetConfig(vocab_size=67, d_model=32, n_layer=2, n_head=4, d_inner=48)
            )
        ),
        lambda: loaded(tiny.seeded(lambda: tiny.Language(LooksAhead(), LooksAhead()))),
        policy_that_sees_all,
        *[lambda size=size: loaded(blockwise(size)) for size in (2, 3, 5, 8)],
    ],
    ids=["bert", "llama", "xlnet", "ahead", "policy", "run2", "run3", "run5", "run8"],
)
def test_a_model_that_sees_later_tokens_is_refused(make: Callable[[], object]):
    with pytest.raises(interp.LoadError, match=r"sees later tokens: .* Expected a causal model"):
        make()


class Crowded(nn.Module):
    """A causal block whose rounding depends on what else is in the batch, as in a mixture of
    experts."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.block, self.noise = tiny.Block(32, tiny.HEADS, causal=True), noise

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * (1 + self.noise * torch.sin(1e3 * x.sum()))


class Noisy(nn.Module):
    """A causal block that draws random numbers also while it evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.block = tiny.Block(32, tiny.HEADS, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x + torch.randn_like(x))


@pytest.mark.parametrize("block", [lambda: Crowded(2e-3), Noisy], ids=["rows", "random"])
def test_rounding_and_random_numbers_are_no_sight_of_later_tokens(block: Callable[[], nn.Module]):
    before = torch.random.get_rng_state()
    loaded(tiny.seeded(lambda: tiny.Language(block(), block())))
    assert torch.equal(torch.random.get_rng_state(), before)


class Mixed(nn.Module):
    """A block that adds to each row a share of the mean of all rows, position by position, as in
    models whose rows are the codebooks of one sequence."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.block, self.share = tiny.Block(32, tiny.HEADS, causal=True), share

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x + self.share * x.mean(0, keepdim=True))


def codebooks() -> nn.Module:
    """MusicGen, which takes the codebooks of a piece as rows."""
    config = transformers.MusicgenDecoderConfig(
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        num_codebooks=2,
        pad_token_id=0,
        bos_token_id=1,
    )
    return tiny.seeded(lambda: transformers.MusicgenForCausalLM(config))


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny.seeded(lambda: tiny.Language(Mixed(1.0), Mixed(1.0))),
        lambda: tiny.seeded(lambda: tiny.Language(Mixed(0.05))),
        codebooks,
        lambda: tiny.seeded(lambda: tiny.Language(Mixed(0.3)), torch.bfloat16),
        lambda: codebooks().bfloat16(),
    ],
    ids=["mean", "a little", "codebooks", "in bfloat16", "codebooks in bfloat16"],
)
def test_a_model_whose_rows_see_each_other_is_refused(make: Callable[[], nn.Module]):
    with pytest.raises(interp.LoadError, match=r"sees other rows .* one text per row"):
        loaded(make())


def overflowing() -> list[nn.Module]:
    llama = tiny.model("llama")
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight.mul_(1e4)
        llama.model.layers[1].mlp.up_proj.weight.mul_(1e4)
    language = tiny.seeded(lambda: tiny.Language(tiny.Block(32, tiny.HEADS, causal=True)))
    with torch.no_grad():
        language.norm.weight.mul_(1e20)
        language.head.weight.mul_(1e20)
    return [llama.half(), language]


@pytest.mark.parametrize("model", overflowing(), ids=["half", "float32"])
def test_logits_that_are_not_finite_are_refused(model: nn.Module):
    with pytest.raises(interp.LoadError, match=r"predict token \d+ of row 0 are (nan|inf|-inf)"):
        loaded(model)


@pytest.mark.parametrize(
    ("make", "context"),
    [
        (lambda: tiny.model("gpt2"), 1024),
        (lambda: tiny.model("opt"), 64),  # its table has two rows more
        (lambda: made(CACHED["gpt_neo"]()), 64),
        (
            lambda: made(
                transformers.RobertaConfig(
                    **_HYBRID | {"pad_token_id": 1}, is_decoder=True, max_position_embeddings=40
                )
            ),
            38,
        ),
        (lambda: tiny.model("llama"), None),
        (lambda: tiny.model("bloom"), None),
    ],
    ids=["gpt2", "opt", "gpt_neo", "roberta", "llama", "bloom"],
)
def test_more_tokens_than_positions_are_refused(make: Callable[[], Any], context: int | None):
    subject = loaded(make())
    assert subject.context == context
    if context is None or context > 64:
        return
    longest = torch.randint(2, tiny.VOCABULARY, (1, context))
    assert subject.generate(longest[:, :-1], 1).shape == (1, 1)
    subject.losses(interp.Batch(longest))
    too_long = torch.cat([longest, longest[:, :1]], dim=1)
    for call in (
        lambda: subject.losses(interp.Batch(too_long)),
        lambda: subject.generate(longest, 2),
        lambda: interp.scan(subject, too_long.tolist(), context - 3, 4),
    ):
        with pytest.raises(ValueError, match=f"more than the {context} that .* has positions for"):
            call()


def test_a_fixed_beginning_shifts_what_is_prompt():
    """A forward of one's own that puts three tokens in front: `when="decode"` begins behind them."""

    def behind(module: Any, batch: interp.Batch, keep: int) -> Tensor:
        start = torch.tensor([[5, 6, 7]]).expand(len(batch), -1)
        tokens = torch.cat([start, batch.tokens], dim=1)
        return module(tokens, use_cache=False).logits[:, -keep - 1 : -1]

    llama = tiny.subject("llama")
    subject = loaded(llama.module, forward=behind)
    assert (subject.lead, subject.decoding.cached) == (3, False)
    batch = tiny.batch("llama", rows=3, length=9, prompt=4)
    longer = interp.Batch(torch.cat([torch.tensor([[5, 6, 7]] * 3), batch.tokens], dim=1), 7)
    units = llama.anatomy.units("blocks.1.attn_out")
    for when in ("prompt", "decode"):
        with torch.no_grad(), subject.intervened(interp.Scale(units, factor=-3.0, when=when)):
            found, said = subject.losses(batch), subject.generate(batch)
        with torch.no_grad(), llama.intervened(interp.Scale(units, factor=-3.0, when=when)):
            assert torch.equal(found, llama.losses(longer))
            assert torch.equal(said, llama.generate(longer))


@pytest.mark.parametrize("name", tiny.IMAGE)
def test_networks_of_the_toolkit_keep_their_caches(name: str):
    subject = tiny.subject(name)
    assert subject.decoding.cached
    assert subject.decoding.uses_cache({"label": torch.zeros(2)})


class SoftPrompt(transformers.LlamaForCausalLM):
    """Puts learned vectors in front of what it is given, as prompt tuning does: also in front of a
    single token that follows a cache."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        embedded = self.get_input_embeddings()(input_ids)
        generator = torch.Generator().manual_seed(0)
        virtual = torch.randn(4, embedded.shape[-1], generator=generator)
        embedded = torch.cat([virtual.expand(len(embedded), -1, -1), embedded], dim=1)
        return super().forward(inputs_embeds=embedded, **kwargs)


def test_a_soft_prompt_is_in_front_of_every_forward():
    model = tiny.seeded(lambda: SoftPrompt(transformers.LlamaConfig(**tiny.GATED)))
    subject = loaded(model)
    assert (subject.lead, subject.decoding.cached) == (4, False)
    prompt = tiny.batch("llama", rows=3, length=5).tokens
    said = by_whole_forwards(model, prompt, 6)
    assert torch.equal(subject.generate(prompt, 6), said)
    batch = interp.Batch(torch.cat([prompt, said], dim=1), 5)
    assert interp.scan(subject, batch)["exact"].all()
    with torch.no_grad():
        logits = subject.logits(batch)
        wanted = model(batch.tokens).logits[:, 3:-1]  # the last vector predicts the first token
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
