"""Laws of the image tokenizers: the published state dicts, forwards read off a state dict by hand,
sums and residuals, fitting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.models.image.raster_vq import RasterVQ, RasterVQConfig, raster_vq_config
from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig, residual_vq_config
from interp.models.image.tokenizers import ImageTokenizer, fit_tokenizer

Shapes = dict[str, tuple[int, ...]]
SIDES = (1, 2, 3, 4)
VAR = ResidualVQConfig(
    sides=SIDES, codes=24, code_width=6, width=8, multipliers=(1, 2), blocks=1, phis=2, channels=1
)
RAR = RasterVQConfig(
    grid=4, codes=24, code_width=6, width=8, multipliers=(1, 2), blocks=1, channels=1
)


def made(config: ResidualVQConfig | RasterVQConfig, seed: int = 0) -> ImageTokenizer:
    """A random tokenizer whose norms and codes are no constants."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = ResidualVQ(config) if isinstance(config, ResidualVQConfig) else RasterVQ(config)
        for name, parameter in tokenizer.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 1)
    return tokenizer.eval()


def some_images(tokenizer: ImageTokenizer, rows: int = 5, seed: int = 1) -> Tensor:
    """Blobs: a few low frequencies of random phase."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, tokenizer.channels, 3, 3, generator=generator)
    return F.interpolate(coarse, size=(tokenizer.side, tokenizer.side), mode="bilinear")


@pytest.fixture(params=[VAR, RAR], ids=["var", "rar"])
def tokenizer(request: pytest.FixtureRequest) -> ImageTokenizer:
    return made(request.param)


# -- the published checkpoints
# ---------------------------------------------------------------------------------------------------------


def pair(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def block(name: str, inputs: int, outputs: int, *, var: bool) -> Shapes:
    short = pair(f"{name}.nin_shortcut", outputs, inputs if var else outputs, 1, 1, bias=var)
    return {
        **pair(f"{name}.norm1", inputs),
        **pair(f"{name}.conv1", outputs, inputs, 3, 3, bias=var),
        **pair(f"{name}.norm2", outputs),
        **pair(f"{name}.conv2", outputs, outputs, 3, 3, bias=var),
        **(short if inputs != outputs else {}),
    }


def published_var() -> Shapes:
    """vae_ch160v4096z32.pth, as models/basic_vae.py, quant.py and vqvae.py of FoundationVision/VAR
    build it."""
    down = {
        0: (160, 160, 160),
        1: (160, 160, 160),
        2: (160, 320, 320),
        3: (320, 320, 320),
        4: (320, 640, 640),
    }
    up = {
        4: (640,) * 4,
        3: (640, 320, 320, 320),
        2: (320,) * 4,
        1: (320, 160, 160, 160),
        0: (160,) * 4,
    }
    keys: Shapes = {}
    for side, levels in (("encoder.down", down), ("decoder.up", up)):
        for (level, widths), n in product(levels.items(), range(3)):
            if n + 1 < len(widths):
                keys |= block(f"{side}.{level}.block.{n}", widths[n], widths[n + 1], var=True)
    attentions = [
        f"{stem}.{n}"
        for stem, count in (("encoder.down.4.attn", 2), ("decoder.up.4.attn", 3))
        for n in range(count)
    ]
    for name in (*attentions, "encoder.mid.attn_1", "decoder.mid.attn_1"):
        keys |= {
            **pair(f"{name}.norm", 640),
            **pair(f"{name}.qkv", 1920, 640, 1, 1),
            **pair(f"{name}.proj_out", 640, 640, 1, 1),
        }
    for name in (
        "encoder.mid.block_1",
        "encoder.mid.block_2",
        "decoder.mid.block_1",
        "decoder.mid.block_2",
    ):
        keys |= block(name, 640, 640, var=True)
    for level, width in enumerate((160, 160, 320, 320)):
        keys |= pair(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for level, width in enumerate((160, 320, 320, 640), 1):
        keys |= pair(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    keys |= {
        **pair("encoder.conv_in", 160, 3, 3, 3),
        **pair("encoder.norm_out", 640),
        **pair("encoder.conv_out", 32, 640, 3, 3),
    }
    keys |= {
        **pair("decoder.conv_in", 640, 32, 3, 3),
        **pair("decoder.norm_out", 160),
        **pair("decoder.conv_out", 3, 160, 3, 3),
    }
    for name in (
        "quant_conv",
        "post_quant_conv",
        *(f"quantize.quant_resi.qresi_ls.{n}" for n in range(4)),
    ):
        keys |= pair(name, 32, 32, 3, 3)
    return keys | {"quantize.embedding.weight": (4096, 32), "quantize.ema_vocab_hit_SV": (10, 4096)}


def published_rar() -> Shapes:
    """maskgit-vqgan-imagenet-f16-256.bin, as modeling/modules/maskgit_vqgan.py of
    bytedance/1d-tokenizer builds it."""
    down = {
        0: (128, 128, 128),
        1: (128, 128, 128),
        2: (128, 256, 256),
        3: (256, 256, 256),
        4: (256, 512, 512),
    }
    up = {
        4: (512, 512, 512),
        3: (512, 256, 256),
        2: (256, 256, 256),
        1: (256, 128, 128),
        0: (128, 128, 128),
    }
    keys: Shapes = {}
    for side, levels in (("encoder.down", down), ("decoder.up", up)):
        for (level, widths), n in product(levels.items(), range(2)):
            keys |= block(f"{side}.{level}.block.{n}", widths[n], widths[n + 1], var=False)
    for half, n in product(("encoder", "decoder"), range(2)):
        keys |= block(f"{half}.mid.{n}", 512, 512, var=False)
    for level, width in enumerate((128, 256, 256, 512), 1):
        keys |= pair(f"decoder.up.{level}.upsample_conv", width, width, 3, 3)
    keys |= {
        **pair("encoder.conv_in", 128, 3, 3, 3, bias=False),
        **pair("encoder.norm_out", 512),
        **pair("encoder.conv_out", 256, 512, 1, 1),
    }
    keys |= {
        **pair("decoder.conv_in", 512, 256, 3, 3),
        **pair("decoder.norm_out", 128),
        **pair("decoder.conv_out", 3, 128, 3, 3),
    }
    return keys | {"quantize.embedding.weight": (1024, 256)}


@pytest.mark.parametrize(
    ("kind", "published", "millions", "length"),
    [(ResidualVQ, published_var, 108.9, 680), (RasterVQ, published_rar, 54.5, 256)],
    ids=["var", "rar"],
)
def test_the_defaults_are_the_published_checkpoints(
    kind: type[ResidualVQ | RasterVQ], published: Callable[[], Shapes], millions: float, length: int
):
    with torch.device("meta"):
        tokenizer = kind()
    assert {
        name: tuple(value.shape) for name, value in tokenizer.state_dict().items()
    } == published()
    assert sum(p.numel() for p in tokenizer.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (tokenizer.side, tokenizer.length, tokenizer.channels) == (256, length, 3)
    assert {m.num_groups for m in tokenizer.modules() if isinstance(m, torch.nn.GroupNorm)} == {32}


def test_scales_share_phis_by_the_published_rule():
    with torch.device("meta"):
        assert ResidualVQ().quantize.quant_resi.of_scale == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert made(VAR).quantize.quant_resi.of_scale == [
        0,
        0,
        1,
        1,
    ]  # ticks 1/4, 3/4; places 0, 1/3, 2/3, 1


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_config_is_read_off_a_state_dict(blocks: int):
    multipliers = (1, 2, 4) if blocks else (1, 1, 1)
    var = ResidualVQConfig(SIDES, 10, 6, 8, multipliers, blocks, 2, 1)
    rar = RasterVQConfig(3, 10, 6, 8, multipliers, blocks, 1)
    assert residual_vq_config(ResidualVQ(var).state_dict(), SIDES) == var
    assert raster_vq_config(RasterVQ(rar).state_dict(), 3) == rar


# -- forwards read off the state dict
# ----------------------------------------------------------------------------------------------------


class ByHand:
    """The published forwards as functions of a state dict."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.state = tokenizer.state_dict()

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(
            x,
            weight,
            self.state.get(f"{name}.bias"),
            **{"padding": weight.shape[-1] // 2, **options},
        )

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(
            x, x.shape[1] // 4, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6
        )

    def block(self, name: str, x: Tensor, *, var: bool) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        if f"{name}.nin_shortcut.weight" in self.state:
            return h + self.conv(f"{name}.nin_shortcut", x if var else h)
        return h + x

    def attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = self.conv(f"{name}.qkv", self.norm(f"{name}.norm", x)).flatten(2).chunk(3, 1)
        weights = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(-1)
        return x + self.conv(
            f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).view_as(x)
        )

    def middle(self, half: str, x: Tensor) -> Tensor:
        return self.block(
            f"{half}.mid.block_2",
            self.attention(f"{half}.mid.attn_1", self.block(f"{half}.mid.block_1", x, var=True)),
            var=True,
        )

    def end(self, half: str, x: Tensor) -> Tensor:
        return self.conv(f"{half}.conv_out", F.silu(self.norm(f"{half}.norm_out", x)))

    def var_features(self, images: Tensor) -> Tensor:
        x = self.block(
            "encoder.down.0.block.0", self.conv("encoder.conv_in", 2 * images - 1), var=True
        )
        x = self.conv("encoder.down.0.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        x = self.attention(
            "encoder.down.1.attn.0", self.block("encoder.down.1.block.0", x, var=True)
        )
        return self.conv("quant_conv", self.end("encoder", self.middle("encoder", x)))

    def var_images(self, features: Tensor) -> Tensor:
        x = self.middle(
            "decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", features))
        )
        for n in range(2):
            x = self.attention(
                f"decoder.up.1.attn.{n}", self.block(f"decoder.up.1.block.{n}", x, var=True)
            )
        x = self.conv(
            "decoder.up.1.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
        for n in range(2):
            x = self.block(f"decoder.up.0.block.{n}", x, var=True)
        return (self.end("decoder", x) + 1) / 2

    def rar_features(self, images: Tensor) -> Tensor:
        x = self.block("encoder.down.0.block.0", self.conv("encoder.conv_in", images), var=False)
        x = self.block(
            "encoder.down.1.block.0",
            x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5)),
            var=False,
        )
        return self.end("encoder", self.block("encoder.mid.0", x, var=False))

    def rar_images(self, features: Tensor) -> Tensor:
        x = self.block("decoder.mid.0", self.conv("decoder.conv_in", features), var=False)
        x = (
            self.block("decoder.up.1.block.0", x, var=False)
            .repeat_interleave(2, 2)
            .repeat_interleave(2, 3)
        )
        return self.end(
            "decoder",
            self.block(
                "decoder.up.0.block.0", self.conv("decoder.up.1.upsample_conv", x), var=False
            ),
        )

    def nearest(self, vector: Tensor) -> int:
        return min(
            range(24),
            key=lambda code: float(
                (self.state["quantize.embedding.weight"][code] - vector).square().sum()
            ),
        )

    def added(self, tokens: Tensor, scale: int) -> Tensor:
        """[batch, places] of a scale of VAR to what it adds to the sum."""
        h = (
            self.state["quantize.embedding.weight"][tokens]
            .transpose(1, 2)
            .unflatten(2, (SIDES[scale], -1))
        )
        h = F.interpolate(h, size=(4, 4), mode="bicubic")
        return h / 2 + self.conv(f"quantize.quant_resi.qresi_ls.{scale // 2}", h) / 2


def cells(features: Tensor, side: int) -> Iterator[Tensor]:
    """Area means [batch, width] of side x side cells, which overlap where the side divides no grid."""
    grid = features.shape[-1]
    edges = [(n * grid // side, -(-(n + 1) * grid // side)) for n in range(side)]
    for (top, bottom), (left, right) in product(edges, edges):
        yield features[:, :, top:bottom, left:right].mean((2, 3))


@torch.no_grad()
def test_both_networks_are_the_published_functions_of_their_state_dict(tokenizer):
    hand, images = ByHand(tokenizer), some_images(tokenizer)
    kind = "var" if isinstance(tokenizer, ResidualVQ) else "rar"
    features = getattr(hand, f"{kind}_features")(images)
    torch.testing.assert_close(tokenizer.features(images), features)
    torch.testing.assert_close(tokenizer.paint(features), getattr(hand, f"{kind}_images")(features))


@torch.no_grad()
def test_every_scale_writes_what_the_coarser_ones_left():
    tokenizer = made(VAR)
    hand, images = ByHand(tokenizer), some_images(tokenizer)
    rest = features = tokenizer.features(images)
    tokens, sums = [], torch.zeros_like(rest)
    for scale, (side, found) in enumerate(
        zip(SIDES, tokenizer.quantize.descent(features), strict=True)
    ):
        vectors = torch.stack(list(cells(rest, side)), 1)
        torch.testing.assert_close(found[0], vectors)
        tokens.append(torch.tensor([[hand.nearest(vector) for vector in row] for row in vectors]))
        sums = sums + hand.added(tokens[-1], scale)
        rest = features - sums
    encoded = tokenizer.encode(images)
    assert encoded.tolist() == torch.cat(tokens, 1).tolist()
    torch.testing.assert_close(tokenizer.quantize.features(encoded), sums)
    torch.testing.assert_close(tokenizer.decode(encoded), hand.var_images(sums).clamp(0, 1))


@torch.no_grad()
def test_rar_writes_each_place_with_its_nearest_code():
    tokenizer = made(RAR)
    hand, images = ByHand(tokenizer), some_images(tokenizer)
    vectors = tokenizer.features(images).flatten(2).transpose(1, 2)
    tokens = torch.tensor([[hand.nearest(vector) for vector in row] for row in vectors])
    assert tokenizer.encode(images).tolist() == tokens.tolist()
    codes = tokenizer.codebook.weight[tokens].transpose(1, 2).reshape(5, 6, 4, 4)
    torch.testing.assert_close(tokenizer.decode(tokens), hand.rar_images(codes).clamp(0, 1))


@torch.no_grad()
def test_next_inputs_are_the_pooled_sums_and_fewer_scales_are_a_prefix():
    tokenizer = made(VAR)
    hand, tokens = (
        ByHand(tokenizer),
        torch.randint(24, (3, 30), generator=torch.Generator().manual_seed(2)),
    )
    assert tokenizer.scales == ((0, 1), (1, 5), (5, 14), (14, 30))
    sums, wanted = torch.zeros(3, 6, 4, 4), [torch.zeros(3, 0, 6)]
    for scale, (start, stop) in enumerate(tokenizer.scales):
        torch.testing.assert_close(tokenizer.next_inputs(tokens[:, :start]), torch.cat(wanted, 1))
        sums = sums + hand.added(tokens[:, start:stop], scale)
        if scale < 3:
            wanted.append(torch.stack(list(cells(sums, SIDES[scale + 1])), 1))
    whole = tokenizer.next_inputs(tokens[:, :14])
    assert torch.equal(tokenizer.next_inputs(tokens[:, :5]), whole[:, :13])


def test_the_nearest_code_is_told_in_half_precision():
    quantizer = made(RAR).quantize.bfloat16()
    vectors = torch.randn(2, 100, 6, generator=torch.Generator().manual_seed(3)).bfloat16()
    distances = torch.cdist(vectors.double(), quantizer.embedding.weight.double())
    assert torch.equal(quantizer.nearest(vectors), distances.argmin(-1))


# -- images and tokens
# -------------------------------------------------------------------------------------------------------------------


def test_images_become_tokens_and_back_alone_as_together(tokenizer):
    images = some_images(tokenizer)
    tokens = tokenizer.encode(images)
    decoded = tokenizer.decode(tokens)
    assert tokens.shape == (5, tokenizer.length)
    assert (tokens.dtype, len(tokens.unique()) > 3) == (torch.int64, True)
    assert decoded.shape == images.shape
    assert (decoded.min() >= 0, decoded.max() <= 1, decoded.requires_grad) == (True, True, False)
    assert torch.equal(decoded, tokenizer.decode(tokens))
    for n in range(5):
        assert torch.equal(tokenizer.encode(images[n : n + 1]), tokens[n : n + 1])
        torch.testing.assert_close(tokenizer.decode(tokens[n : n + 1]), decoded[n : n + 1])
    assert tokenizer.encode(images[:0]).shape == (0, tokenizer.length)


def test_training_sees_the_decoded_image_and_its_gradient_passes_straight_through(tokenizer):
    images = some_images(tokenizer)
    painted, loss = tokenizer.reconstruct(images)
    torch.testing.assert_close(painted.clamp(0, 1), tokenizer.decode(tokenizer.encode(images)))
    (gradient,) = torch.autograd.grad(
        painted.sum(), tokenizer.encoder.conv_in.weight, retain_graph=True
    )
    assert gradient.abs().sum() > 0
    (gradient,) = torch.autograd.grad(loss, tokenizer.codebook.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 8, 8), r"expected images \[batch, 1, 8, 8\], got \[2, 8, 8\]"),
        (torch.rand(2, 3, 8, 8), r"got \[2, 3, 8, 8\]"),
        (torch.rand(2, 1, 8, 9), r"got \[2, 1, 8, 9\]"),
        (
            torch.full((1, 1, 8, 8), 255.0),
            r"images in \[0, 1\], got torch.float32 from 255 to 255; divide 0..255 by 255",
        ),
        (torch.full((1, 1, 8, 8), -0.5), "from -0.5 to -0.5"),
        (torch.full((1, 1, 8, 8), float("nan")), "from nan to nan"),
        (torch.full((1, 1, 8, 8), float("inf")), "from inf to inf"),
        (torch.ones(1, 1, 8, 8, dtype=torch.uint8), "got torch.uint8 from 1 to 1"),
    ],
)
def test_what_is_no_image_is_refused(tokenizer, images: Tensor, said: str):
    for call in (tokenizer.encode, tokenizer.reconstruct, lambda x: fit_tokenizer(tokenizer, x, 1)):
        with pytest.raises(ValueError, match=said):
            call(images)


def test_what_are_no_tokens_is_refused(tokenizer):
    good = torch.zeros(2, tokenizer.length, dtype=torch.int64)
    bad = {
        rf"expected tokens \[batch, {tokenizer.length}\], got \[2, 5\]": good[:, :5],
        r"expected integer tokens \[batch, length\], got \[2, .* of torch.float32": good.float(),
        r"expected integer tokens \[batch, length\], got \[\d+\]": good[0],
        r"expected tokens 0\.\.23, got 24\.\.24": good + 24,
        r"expected tokens 0\.\.23, got -1\.\.-1": good - 1,
    }
    for said, tokens in bad.items():
        with pytest.raises(ValueError, match=said):
            tokenizer.decode(tokens)


@pytest.mark.parametrize("given", [2, 13, 30, 31])
def test_parts_of_scales_and_all_scales_have_no_next_input(given: int):
    with pytest.raises(ValueError, match=rf"one of \[0, 1, 5, 14\] tokens, got {given}"):
        made(VAR).next_inputs(torch.zeros(1, given, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected tokens 0\.\.23"):
        made(VAR).next_inputs(torch.full((1, 1), 24))


def test_a_state_dict_of_something_else_is_refused():
    var, rar = made(VAR).state_dict(), made(RAR).state_dict()
    with pytest.raises(
        ValueError, match=r"not a RAR tokenizer: no key decoder.up.1.upsample_conv.weight"
    ):
        raster_vq_config(var, 4)
    with pytest.raises(
        ValueError, match=r"not a VAR tokenizer: no key quantize.quant_resi.qresi_ls.0.weight"
    ):
        residual_vq_config(rar, SIDES)
    with pytest.raises(ValueError, match=r"not a VAR tokenizer: no key encoder.conv_in.weight"):
        residual_vq_config({}, SIDES)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ResidualVQConfig(sides=(1, 3, 2)), "increasing sides"),
        (lambda: ResidualVQConfig(sides=(4,)), "at least 2 increasing"),
        (lambda: ResidualVQConfig(phis=0), "at least 1 phi"),
        (lambda: ResidualVQConfig(blocks=0), "all multipliers must be 1"),
        (lambda: ResidualVQConfig(blocks=-1), "blocks of 0 or more"),
        (lambda: RasterVQConfig(multipliers=(1,)), "at least 2 levels"),
        (lambda: RasterVQConfig(multipliers=(1, 0)), "multipliers of 1 or more"),
        (lambda: RasterVQConfig(grid=0), "grid of at least 1"),
    ],
)
def test_configs_without_a_network_are_refused(make: Callable[[], object], said: str):
    with pytest.raises(ValueError, match=said):
        make()


# -- fitting
# -----------------------------------------------------------------------------------------------------------------------------


def test_fitting_lowers_the_loss_by_its_seed_alone_and_freezes(tokenizer):
    images, state = some_images(tokenizer, 40), torch.get_rng_state()
    before = float((tokenizer.decode(tokenizer.encode(images)) - images).square().mean())
    twin, other = deepcopy(tokenizer), deepcopy(tokenizer)
    losses = fit_tokenizer(tokenizer, images, 40, lr=6e-3, batch_size=16)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():  # fitting needs no help from the caller
        assert fit_tokenizer(twin, images, 40, lr=6e-3, batch_size=16) == losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(tokenizer.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    assert fit_tokenizer(other, images, 2, lr=6e-3, batch_size=16, seed=1) != losses[:2]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    assert float((tokenizer.decode(tokenizer.encode(images)) - images).square().mean()) < before / 2
    assert not tokenizer.training
    assert all(not p.requires_grad and p.grad is None for p in tokenizer.parameters())


def test_dead_codes_come_back(tokenizer, monkeypatch):
    """All codes but one begin far from everything."""

    def begin_dead(tokenizer: ImageTokenizer, images: Tensor, generator: torch.Generator) -> None:
        tokenizer.codebook.weight.data.fill_(1e3)[0] = 0

    monkeypatch.setattr("interp.models.image.tokenizers._seed_codebook", begin_dead)
    images = some_images(tokenizer, 40)
    fit_tokenizer(tokenizer, images, 30, batch_size=16)
    assert tokenizer.codebook.weight.abs().max() < 100
    assert len(tokenizer.encode(images).unique()) > 8


def test_fitting_freezes_even_when_it_fails(tokenizer, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("interp.models.image.tokenizers._seed_codebook", fail)
    with pytest.raises(RuntimeError, match="no"):
        fit_tokenizer(tokenizer, some_images(tokenizer), 3)
    assert not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())


@pytest.mark.parametrize(("images", "steps", "rows"), [(0, 1, 1), (5, 0, 1), (5, 1, 0)])
def test_fitting_on_nothing_is_refused(tokenizer, images: int, steps: int, rows: int):
    with pytest.raises(
        ValueError,
        match=f"at least 1 image, step and image per step; got {images}, {steps} and {rows}",
    ):
        fit_tokenizer(tokenizer, some_images(tokenizer)[:images], steps, batch_size=rows)
