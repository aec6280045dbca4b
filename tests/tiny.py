"""Tiny random models of every architecture that the core is tested on, and what the laws are
checked with: plain torch hooks."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import architectures
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import interp
from interp.loading.discovery import discover
from interp.models.image.image_model import ImageModel
from interp.models.image.rar import RAR, RARConfig
from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
from interp.models.image.var import VAR, VARConfig
from interp.sites.anatomy import Place
from interp.subject.stepwise import OneByOne, plain_forward

VOCABULARY, BLOCKS, HEADS, NEURONS = 67, 3, 4, 48
_WIDE = {"vocab_size": VOCABULARY, "hidden_size": 32}
_DEEP = _WIDE | {"num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
GATED = _DEEP | {"intermediate_size": NEURONS, "num_key_value_heads": 2}

_HUGGING_FACE: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=BLOCKS, n_head=HEADS, n_inner=NEURONS)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GATED)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_DEEP, intermediate_size=NEURONS)),
    "neox_sequential": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**_DEEP, intermediate_size=NEURONS, use_parallel_residual=False)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**_DEEP, word_embed_proj_dim=32, ffn_dim=NEURONS, max_position_embeddings=64)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GATED, head_dim=8, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GATED)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GATED, pad_token_id=0)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2)
    ),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_DEEP, intermediate_size=NEURONS)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**_WIDE, n_layer=BLOCKS, n_head=HEADS)),
}
HUGGING_FACE = architectures.HUGGING_FACE
ALL = architectures.ALL
assert tuple(_HUGGING_FACE) == HUGGING_FACE
PARALLEL = ("neox", "phi")
IMAGE, CLASSES, SIDES, GRID = ("var", "rar"), 5, (1, 2, 3), 4


class Attention(nn.Module):
    """Multi-head attention; causal for a decoder."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Invisible(Attention):
    """The same through a kernel that torch cannot see: neither a softmax nor
    scaled_dot_product_attention is called."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        weights = torch.exp(q @ k.transpose(-1, -2)).tril()
        return self.out((weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(
        self, width: int, heads: int, *, causal: bool, attention: type[Attention] = Attention
    ) -> None:
        super().__init__()
        self.before, self.attn = nn.LayerNorm(width), attention(width, heads, causal=causal)
        self.between, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.before(x))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class ScalingBlock(Block):
    """Multiplies the attention's output in place, after every hook on it has run (as VAR does with
    its gammas)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.before(x)).mul_(0.5)
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class OtherBlock(Block):
    """A block of another class: a list with both is no list of like modules."""


class Policy(nn.Module):
    """A camera image to a sequence of action tokens: a vision encoder and a causal decoder that
    starts from what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(12, 16)
        self.vision = nn.ModuleList(Block(16, 2, causal=False) for _ in range(2))
        self.lift, self.actions = nn.Linear(16, 32), nn.Embedding(VOCABULARY, 32)
        self.decoder = nn.ModuleList(Block(32, HEADS, causal=True) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, VOCABULARY)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        seen = self.patches(image)
        for block in self.vision:
            seen = block(seen)
        x = torch.cat([self.lift(seen.mean(1, keepdim=True)), self.actions(tokens[:, :-1])], dim=1)
        for block in self.decoder:
            x = block(x)
        return self.head(self.norm(x))


class Language(nn.Module):
    """A plain decoder over tokens, made of any blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.trunk = nn.Embedding(VOCABULARY, 32), nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.trunk:
            x = block(x)
        return self.head(self.norm(x))


def policy_forward(module: nn.Module, batch: interp.Batch, keep: int) -> Tensor:
    return module(batch.tokens, batch.conditioning["image"])[:, -keep:]


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model in evaluation mode, with weights large enough for every unit to matter, that
    no end-of-text token stops."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    if hasattr(model, "generation_config"):
        for config in (model.config, model.generation_config):
            config.eos_token_id = None
            config.pad_token_id = 0
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return model.to(dtype).eval()


def model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    if name in IMAGE:
        return image_model(name, dtype, seed)
    return seeded(Policy if name == "policy" else _HUGGING_FACE[name], dtype, seed)


def image_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: Any) -> Any:
    """VAR with 14 tokens or RAR with 16 and their tokenizers, unless other sizes of the network are
    given."""
    sizes = {
        "width": 32,
        "depth": BLOCKS,
        "heads": HEADS,
        "hidden": NEURONS,
        "codes": VOCABULARY,
        "classes": CLASSES,
    } | sizes
    shape: dict[str, Any] = {
        "codes": sizes["codes"],
        "width": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "channels": 1,
    }
    if name == "rar":
        rar = RARConfig(**{"grid": GRID, **sizes})
        return seeded(
            lambda: RAR(rar, RasterVQ(RasterVQConfig(rar.grid, code_width=6, **shape))), dtype, seed
        )
    var = VARConfig(**{"sides": SIDES, "code_width": 6, **sizes})
    return seeded(
        lambda: VAR(
            var, ResidualVQ(ResidualVQConfig(var.sides, code_width=var.code_width, phis=2, **shape))
        ),
        dtype,
        seed,
    )


def image_batch(name: str, rows: int = 2, seed: int = 0, prompt: int = 0) -> interp.Batch:
    """Random tokens and classes, the first two of which differ."""
    module, generator = subject(name).module, torch.Generator().manual_seed(seed)
    assert isinstance(module, ImageModel)
    tokens = torch.randint(0, VOCABULARY, (rows, module.length), generator=generator)
    label = (torch.arange(rows) + torch.randint(0, CLASSES, (1,), generator=generator)) % CLASSES
    return interp.Batch(
        tokens,
        prompt,
        groups=module.all_groups if name == "var" else None,
        conditioning={"label": label},
    )


def looking_ahead(module: nn.Module) -> interp.Subject:
    """A subject of a module that sees later tokens, which `interp.load` refuses."""
    example = OneByOne(module).example()
    anatomy = discover(module, lambda: module(example.tokens))
    return interp.Subject(module, anatomy, plain_forward)


def wrapped(module: nn.Module) -> interp.Subject:
    if isinstance(module, Policy):
        return interp.load(
            module,
            forward=policy_forward,
            example=batch("policy", seed=99, dtype=next(module.parameters()).dtype),
        )
    return interp.load(module)


_SHARED: dict[str, tuple[interp.Subject, str]] = {}


@functools.cache
def subject(name: str, dtype: torch.dtype = torch.float32) -> interp.Subject:
    """One subject for all tests, none of which may leave a trace on it; `conftest` checks that."""
    made = wrapped(model(name, dtype))
    _SHARED[f"{name} {dtype}"] = made, _digest(made)
    return made


def changed() -> list[str]:
    """The shared subjects that have changed since they were made, or since this was last asked, so
    that one test is told and not all after it."""
    found: list[str] = []
    for name, (shared, before) in _SHARED.items():
        now = _digest(shared)
        if now != before:
            found.append(name)
            _SHARED[name] = shared, now
    return found


def _digest(shared: interp.Subject) -> str:
    """A digest of the weights, and of what a test may set on a subject."""
    settings = (shared.bos, shared.tokenizer is None, shared.name, shared.context)
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in shared.module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def batch(
    name: str,
    rows: int = 2,
    length: int = 9,
    seed: int = 0,
    prompt: int = 1,
    *,
    padded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> interp.Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    mask = (
        torch.arange(length) < torch.arange(length, length - rows, -1)[:, None] if padded else None
    )
    beside = (
        {"image": torch.randn(rows, 5, 12, generator=generator).to(dtype)}
        if name == "policy"
        else {}
    )
    return interp.Batch(tokens, prompt, mask, conditioning=beside)


def bare(name: str, module: Any, batch: interp.Batch) -> Tensor:
    """The logits that the bare model gives, without anything of ours."""
    with torch.no_grad():
        return (
            module(batch.tokens, batch.conditioning["image"])
            if name == "policy"
            else module(batch.tokens).logits
        )


def generated(module: Any, prompts: Tensor, length: int) -> Tensor:
    """What Hugging Face's own greedy decoding continues prompts with."""
    whole = module.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=length,
        do_sample=False,
        repetition_penalty=1.0,
        use_cache=True,
    )
    return whole[:, prompts.shape[1] :]


def units(subject: interp.Subject, site: interp.Site | str, indices: list[int]) -> interp.Units:
    return subject.units(site, indices)


def hook_count(module: nn.Module) -> int:
    return sum(
        len(hooks)
        for m in module.modules()
        for hooks in (
            m._forward_hooks,
            m._forward_pre_hooks,
            m._backward_hooks,
            m._forward_hooks_with_kwargs,
            m._forward_pre_hooks_with_kwargs,
        )
    )


def own_forwards(module: nn.Module) -> int:
    return sum("forward" in m.__dict__ for m in module.modules())


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Asserts that the block leaves no hook, no forward and not one changed bit behind, also when
    it raises."""
    before, hooks, forwards = (
        copy.deepcopy(module.state_dict()),
        hook_count(module),
        own_forwards(module),
    )
    modes = [m.training for m in module.modules()]
    try:
        yield
    finally:
        after = module.state_dict()
        assert hook_count(module) == hooks
        assert own_forwards(module) == forwards
        assert [m.training for m in module.modules()] == modes
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)


def _first(tree: Any) -> Tensor:
    while not isinstance(tree, Tensor):
        tree = tree[0]
    return tree


@contextmanager
def by_hand(
    module: nn.Module, place: Place, change: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """What hooking a place means, in plain torch: `change` sees [batch, position, width] and may
    return another value."""
    base: list[Tensor] = []
    beside, sign = place.base or (place, 0)

    def shown(tensor: Tensor, length: int) -> Tensor | None:
        value = tensor if tensor.ndim == 3 else tensor.reshape(-1, length, tensor.shape[-1])
        other = sign * base[0] if place.base else 0
        new = change(place.scale * value + other)
        return None if new is None else ((new - other) / place.scale).reshape(tensor.shape)

    def remember(_: nn.Module, args: Any, kwargs: Any) -> None:
        base[:] = [_first(args) if args else kwargs["hidden_states"]]

    def inward(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            new = shown(_first(args), length[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = shown(kwargs["hidden_states"], length[0])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    def outward(_: nn.Module, __: Any, output: Any) -> Any:
        new = shown(_first(output), length[0])
        if new is None:
            return None
        return new if isinstance(output, Tensor) else (new, *output[1:])

    length: list[int] = []

    def measure(_: nn.Module, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        length[:] = [ids.shape[1]]

    target = module.get_submodule(place.path)
    handles = [module.register_forward_pre_hook(measure, with_kwargs=True)]
    if place.base is not None:
        handles.append(
            module.get_submodule(beside.path).register_forward_pre_hook(remember, with_kwargs=True)
        )
    handles.append(
        target.register_forward_pre_hook(inward, with_kwargs=True)
        if place.side == "in"
        else target.register_forward_hook(outward)
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def values_by_hand(subject: interp.Subject, batch: interp.Batch, site: interp.Site | str) -> Tensor:
    seen: list[Tensor] = []
    with (
        torch.no_grad(),
        by_hand(subject.module, subject.anatomy.place(site), lambda v: seen.append(v.clone())),
    ):
        subject.touch(batch)
    assert len(seen) == 1
    return seen[0]


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def small_t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
