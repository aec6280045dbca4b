"""Laws of interp.subject.subject: aligned logits and losses, what is loaded and what is refused,
for models that one already holds."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from interp.errors import LoadError
from interp.subject.batch import batches
from interp.subject.subject import evaluating, token_losses


def test_target_logits_and_losses_are_those_of_the_targets(name: str, subject: interp.Subject):
    batch = tiny.batch(name, rows=3, prompt=4, padded=True)
    with torch.no_grad():
        logits, targets = subject.logits(batch), subject.target_logits(batch)
        torch.testing.assert_close(targets, logits[:, 4:], rtol=0, atol=1e-5)
        wanted = (
            -logits.log_softmax(-1).gather(2, batch.tokens[..., None])[..., 0][:, 4:]
            * batch.counted
        )
        torch.testing.assert_close(subject.losses(batch), wanted, rtol=0, atol=1e-5)


def test_what_does_not_count_has_no_loss_whatever_its_logits():
    """A target that is padding or not scored may be one that the model forbids."""
    scored = torch.tensor([[True, True, True, False], [True, True, True, True]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    batch = interp.Batch(torch.tensor([[1, 2, 3, 0], [1, 2, 3, 0]]), 2, mask, scored=scored)
    logits = torch.zeros(2, 2, 4)
    logits[0, 1, 0] = -torch.inf
    logits[1, 1] = torch.nan
    logits.requires_grad_()
    losses = token_losses(logits, batch)
    torch.testing.assert_close(losses, torch.tensor([[4.0, 1.0], [4.0, 1.0]]).log())
    losses[0].sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].isfinite().all()
    # What counts is not hidden.
    counted = interp.Batch(batch.tokens, 2)
    assert token_losses(logits, counted)[0, 1] == torch.inf


def test_position_zero_is_a_uniform_guess_unless_the_model_sees_something_before_it(
    name: str, subject: interp.Subject
):
    batch = tiny.batch(name, prompt=0)
    with torch.no_grad():
        logits, targets = subject.logits(batch), subject.target_logits(batch)
    assert torch.equal(logits, targets)
    assert logits.shape == (2, 9, tiny.VOCABULARY)
    assert bool(logits[:, 0].any()) == (name == "policy")


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
def test_padding_changes_no_loss(name: str):
    subject, rows = tiny.subject(name), [list(range(1, n)) for n in (4, 9, 6)]
    with torch.no_grad():
        together = subject.losses(interp.Batch.pad(rows))
        for row, losses in zip(rows, together, strict=True):
            alone = subject.losses(interp.Batch.pad([row]))[0]
            torch.testing.assert_close(losses[: len(alone)], alone, rtol=0, atol=1e-5)
            assert not losses[len(alone) :].any()


def test_copies_of_a_batch_have_the_padding_of_its_rows(llama: interp.Subject):
    """What is predicted on padding may be NaN, also where a forward returns every row twice."""
    batch = tiny.batch("llama", rows=3, prompt=4, padded=True)

    def twice(module: nn.Module, batch: interp.Batch, keep: int) -> torch.Tensor:
        is_padding = ~batch.mask[:, -keep:, None]
        logits = llama.forward(module, batch, keep).masked_fill(is_padding, torch.nan)
        return torch.cat([logits, logits])

    with torch.no_grad():
        grown = interp.Subject(llama.module, llama.anatomy, twice).target_logits(batch)
    assert grown.shape == (6, 5, tiny.VOCABULARY)


def test_what_cannot_be_given_with_a_model_in_memory_is_refused(name: str):
    subject = tiny.subject(name)
    given: dict[str, Any] = {
        "tokenizer": tiny.tokenizer(5),
        "anatomy": interp.Layout(),
        "forward": lambda *_: None,
        "example": tiny.batch("llama"),
    }
    for option, value in given.items():
        with pytest.raises(LoadError, match=rf"^{option}=: .*is a Subject.*load\(subject.module"):
            interp.load(subject, **{option: value})
    with pytest.raises(LoadError, match=r"^tokenizer= and forward=: "):
        interp.load(subject, tokenizer=given["tokenizer"], forward=given["forward"])
    for held in (subject, subject.module):
        refused = r"^dtype=torch.bfloat16: .*in memory in torch.float32 already.*\.to\(torch.bfl"
        with pytest.raises(LoadError, match=refused):
            interp.load(held, dtype="bfloat16")
    assert interp.load(subject, dtype="float32") is subject


def test_a_loaded_model_is_the_model_itself(name: str):
    module = tiny.model(name)
    with tiny.untouched(module):
        subject = tiny.wrapped(module)
    assert subject.module is module
    assert interp.load(subject) is subject
    assert (
        subject.fingerprint
        == tiny.wrapped(tiny.model(name)).fingerprint
        != tiny.wrapped(tiny.model(name, seed=1)).fingerprint
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_nnsight_model_is_read_through_its_module(name: str):
    nnsight = pytest.importorskip("nnsight")
    module, batch = tiny.model(name), tiny.batch(name)
    wanted = tiny.bare(name, module, batch)
    subject = interp.load(nnsight.NNsight(module))
    with torch.no_grad():
        assert torch.equal(subject.logits(batch)[:, 1:], wanted[:, :-1])
    assert subject.sites == tiny.subject(name).sites


def bridged() -> nn.Module:
    """A Hugging Face model in which a TransformerBridge has replaced a module, as booting one does."""
    module = tiny.model("llama")
    module.model.layers[1].mlp = type(
        "GatedMLPBridge", (nn.Module,), {"__module__": "transformer_lens.model_bridge.components"}
    )()
    return module


def broken(value: float) -> nn.Module:
    module = tiny.model("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[3, 4] = value
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 7, r"a int: expected a hub id, a folder, a \.gguf file, or a torch module"),
        (lambda: [tiny.model("gpt2")], "cannot study a list"),
        (
            type("TransformerBridge", (), {"__module__": "transformer_lens.model_bridge.bridge"}),
            "rewrites the model in place",
        ),
        (bridged, "rewrites the model in place"),
        (tiny.small_t5, "encoder-decoder: expected an autoregressive model"),
        (
            lambda: broken(float("nan")),
            r"1 of \d+ weights hold NaN or infinity: model\.layers\.1\.mlp\.down_proj\.weight",
        ),
        (lambda: broken(float("-inf")), "NaN or infinity"),
        (lambda: tiny.model("gpt2").to("meta"), "no weights yet"),
        (nn.ReLU, "no parameters"),
        (lambda: nn.Linear(3, 3), "no token embedding.*example= and forward="),
    ],
)
def test_what_cannot_be_studied_is_refused(make: Callable[[], Any], message: str):
    with pytest.raises(interp.LoadError, match=message):
        interp.load(make())


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    with pytest.raises(interp.LoadError, match=f"68 tokens but the model embeds {tiny.VOCABULARY}"):
        interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(tiny.VOCABULARY + 1))
    assert interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(tiny.VOCABULARY)).encode(
        "w5 w6"
    ) == [5, 6]


def test_modules_that_read_no_ids_need_no_embedding():
    class Continuous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.trunk = (
                nn.Linear(1, 32),
                nn.ModuleList(tiny.Block(32, 4, causal=True) for _ in range(2)),
            )
            self.head = nn.Linear(32, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lift(x)
            for block in self.trunk:
                x = block(x)
            return self.head(x)

    def forward(module: nn.Module, batch: interp.Batch, keep: int) -> torch.Tensor:
        return module(batch.tokens[..., None].float())[:, -keep - 1 : -1]

    example = interp.Batch(torch.arange(10).reshape(2, 5))
    subject = interp.load(tiny.seeded(Continuous), forward=forward, example=example)
    assert subject.logits(example).shape == (2, 5, 9)
    with pytest.raises(interp.LoadError, match="vocabulary is unknown"):
        _ = subject.vocabulary


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, tiny.VOCABULARY + 5), min_size=2, max_size=8))
def test_token_ids_out_of_range_are_refused_and_others_are_not(ids: list[int]):
    subject = tiny.subject("llama")
    tokens = torch.tensor([ids])
    if min(ids) >= 0 and max(ids) < tiny.VOCABULARY:
        assert subject.logits(interp.Batch(tokens)).isfinite().all()
        return
    for use in (subject.logits, subject.losses, subject.touch):
        with pytest.raises(
            ValueError,
            match=f"must be 0 to {tiny.VOCABULARY - 1} for LlamaForCausalLM; got {min(ids)} to {max(ids)}",
        ):
            use(interp.Batch(tokens))
    with pytest.raises(ValueError, match="another model's tokenizer"):
        subject.generate(tokens, 1)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_texts_are_refused(text: str):
    subject = interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(20))
    for use in (
        subject.encode,
        lambda t: subject.encode_all([t]),
        lambda t: subject.generate(t, 3),
    ):
        with pytest.raises(ValueError, match="empty: expected at least one token"):
            use(text)


def test_texts_in_texts_out():
    subject = interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(tiny.VOCABULARY))
    ids = subject.generate(torch.tensor([[3, 4, 5]]), 4)[0].tolist()
    assert subject.generate("w3 w4 w5", 4).split() == [f"w{i}" for i in ids]
    assert subject.encode_all(["w1 w2 w3", "w4"], length=2).tokens.tolist() == [[1, 2], [4, 0]]


def test_text_needs_a_tokenizer(llama: interp.Subject):
    for use in (lambda: llama.encode("hello"), lambda: llama.decode([1])):
        with pytest.raises(ValueError, match=r"no tokenizer: pass interp\.load"):
            use()


@pytest.mark.parametrize(("shape", "length"), [((3,), 2), ((2, 0), 2), ((2, 3), 0)])
def test_generate_needs_a_prompt_and_a_length(
    llama: interp.Subject, shape: tuple[int, ...], length: int
):
    with pytest.raises(ValueError, match=r"prompt \[batch, position\]"):
        llama.generate(torch.ones(shape, dtype=torch.long), length)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interp.Batch(torch.ones(3, dtype=torch.long)), r"got \(3,\)"),
        (lambda: interp.Batch(torch.ones(2, 3)), "float32"),
        (lambda: interp.Batch(torch.ones(2, 0, dtype=torch.long)), r"got \(2, 0\)"),
        (
            lambda: interp.Batch(torch.ones(2, 3, dtype=torch.long), prompt=3),
            "leaves nothing to predict of 3",
        ),
        (
            lambda: interp.Batch(
                torch.ones(2, 3, dtype=torch.long), mask=torch.tensor([[False, True, True]] * 2)
            ),
            "only on the right",
        ),
        (
            lambda: interp.Batch(torch.ones(2, 3, dtype=torch.long), mask=torch.ones(2, 3)),
            "boolean",
        ),
        (lambda: interp.Batch.pad([]), "at least one token"),
        (lambda: interp.Batch.pad([[1], []]), "at least one token"),
    ],
)
def test_impossible_batches_are_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=7), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_padding_and_splitting_lose_nothing(rows: list[list[int]], size: int):
    parts = list(batches(interp.Batch.pad(rows), size))
    assert all(len(part) <= size for part in parts)
    again = [
        t[m].tolist()
        for p in parts
        for t, m in zip(
            p.tokens,
            torch.ones_like(p.tokens, dtype=torch.bool) if p.mask is None else p.mask,
            strict=True,
        )
    ]
    assert again == rows


def test_evaluating_gives_every_mode_back():
    module = tiny.model("gpt2").train()
    module.transformer.h[1].eval()
    subject = tiny.wrapped(module)
    with tiny.untouched(module), evaluating(subject):
        assert not any(m.training for m in module.modules())
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("text", ["a\ud83d", "\udc00"])
def test_half_of_a_surrogate_pair_is_no_text(text: str):
    subject = interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(20))
    for use in (subject.tokens, subject.encode, lambda t: subject.generate(t, 3)):
        with pytest.raises(ValueError, match=f"character {len(text) - 1} .* half of a surrogate"):
            use(text)


@pytest.mark.parametrize("given", [b"ab", [3, 4], {"text": "ab"}, 3, None])
def test_what_is_no_text_is_refused(given: Any):
    subject = interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(20))
    with pytest.raises(ValueError, match=f"expected a text, got {type(given).__name__}"):
        subject.encode(given)
    with pytest.raises(ValueError, match=f"a prompt is a text, .* got {type(given).__name__}"):
        subject.generate(given, 3)
    with pytest.raises(ValueError, match="texts is one string"):
        subject.encode_all("w1 w2")
    with pytest.raises(ValueError, match="tokens must be integers"):
        subject.generate(torch.tensor([[1.9, 2.0]]), 3)


class Nameless:
    """A tokenizer that does not tell how many tokens it has."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def test_a_tokenizer_need_not_tell_its_size():
    class Counted(Nameless):
        vocab_size = 5

    for tokenizer in (Nameless(), Counted()):
        assert interp.load(tiny.model("gpt2"), tokenizer=tokenizer).encode("a bcd") == [1, 3]


def marked(words: list[str]) -> Any:
    """Marks the space before each word, as Llama's tokenizer does, and drops the first one."""
    vocabulary = {"<unk>": 0} | {"\u2581" + word: n + 1 for n, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def of_bytes() -> Any:
    """A token per byte, as in GPT-2's tokenizer for letters that it does not know."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def pieces() -> Any:
    """Words and their pieces, as in BERT's tokenizer."""
    vocabulary = {"[UNK]": 0, "play": 1, "##ing": 2, "a": 3, "##b": 4}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (marked(["the", "cat", "sat"]), "the cat sat the the cat"),
        (of_bytes(), "na\u00efve \u65e5\u672c \U0001f600\ufffd!"),
        (pieces(), "playing ab play"),
    ],
)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_parts_join_to_the_whole_and_keep_their_letters(
    tokenizer: Any, text: str, data: st.DataObject
):
    subject = interp.load(tiny.seeded(lambda: gpt2_of(256)), tokenizer=tokenizer)
    ids = subject.encode(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    parts = subject.decode_parts(ids, cuts)
    assert len(parts) == len(cuts) + 1
    assert "".join(parts) == subject.decode(ids) == text
    assert sum(part.count("\ufffd") for part in parts) == text.count("\ufffd")


def test_a_continuation_reads_right_after_its_prompt():
    tokenizer = marked(["the", "cat", "sat"])
    subject = interp.load(tiny.seeded(lambda: gpt2_of(4), seed=6), tokenizer=tokenizer)
    ids = torch.tensor([subject.encode("the cat")])
    whole = torch.cat([ids, subject.generate(ids, 5)], dim=1)[0].tolist()
    assert "the cat" + subject.generate("the cat", 5) == subject.decode(whole)
    assert subject.generate("the cat", 3) == " cat sat sat"


def gpt2_of(vocabulary: int) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2))
