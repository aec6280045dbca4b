"""Reads image models from disk: the public checkpoints of VAR and RAR and of their tokenizers, and
the folders that `save_image_model` writes.

Sizes follow from the shapes of the tensors. A file is loaded whole, or refused with a list of
everything in it that does not fit. Weights come from safetensors, or from torch files that hold
tensors and no code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - torch's error for a file that holds code
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LoadError, closest
from interp.files import replaced, writable
from interp.models.image.image_model import ImageModel, own_state
from interp.models.image.rar import RAR, SPARE_TIMES, RARConfig
from interp.models.image.raster_vq import RasterVQ, raster_vq_config
from interp.models.image.residual_vq import ResidualVQ, residual_vq_config
from interp.models.image.tokenizers import ImageTokenizer
from interp.models.image.var import VAR, VARConfig

State = Mapping[str, Tensor]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# What a file holds is the first of these whose key is in it. The last key is in both tokenizers.
_KIND_OF_KEY: dict[str, Any] = {
    "word_embed.weight": VAR,
    "timesteps_embeddings": RAR,
    "quantize.quant_resi.qresi_ls.0.weight": ResidualVQ,
    "quantize.embedding.weight": RasterVQ,
}
# Tensors of an MLP with the axis along which each is as long as the MLP is wide.
_HIDDEN_AXES = (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1))
_TOKENIZER_OF: dict[Any, type[ImageTokenizer]] = {VAR: ResidualVQ, RAR: RasterVQ}
_PUBLIC_TOKENIZER = {
    VAR: "FoundationVision/var/vae_ch160v4096z32.pth",
    RAR: "fun-research/TiTok/maskgit-vqgan-imagenet-f16-256.bin",
}


def save_image_model(model: ImageModel, folder: str | Path) -> Path:
    """Writes network and tokenizer, with the public names, in a form that `interp.load` reads.

    Args:
        model: a VAR or RAR.
        folder: where `network.safetensors` and `tokenizer.safetensors` are written.

    Returns:
        The folder.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> from interp.models.image.checkpoints import save_image_model
        >>> from interp.models.image.rar import RAR, RARConfig
        >>> from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
        >>> shape = RasterVQConfig(
        ...     grid=4, codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1
        ... )
        >>> network = RARConfig(
        ...     grid=4, width=16, depth=1, heads=2, hidden=32, codes=16, classes=3
        ... )
        >>> folder = save_image_model(RAR(network, RasterVQ(shape)), tempfile.mkdtemp())
        >>> interp.load(folder).module.config.hidden
        32
    """
    from safetensors.torch import save_file

    target = writable(folder)
    states = {"tokenizer": model.tokenizer.state_dict(), "network": own_state(model)}
    for name, state in states.items():
        # safetensors refuses views into a larger tensor.
        tensors = {key: value.detach().contiguous() for key, value in state.items()}
        with replaced(target / f"{name}.safetensors") as temporary:
            save_file(tensors, temporary)
    return target


def is_image_model(source: str | Path) -> bool:
    """Returns whether a source names weights that `read_image_model` should read or refuse.

    That is a weights file, on disk or on the hub, or a folder of them without config.json or GGUF.
    """
    path = Path(source)
    if path.is_dir():
        has_gguf = any(path.glob("*.gguf"))
        is_hugging_face = (path / "config.json").exists() or has_gguf
        return not is_hugging_face and bool(_weights(path))
    is_known = path.is_file() or _is_hub_file(path)
    return is_known and path.suffix in _SUFFIXES


def read_image_model(
    source: str | Path,
    tokenizer: str | Path | ImageTokenizer | None = None,
    dtype: torch.dtype | None = None,
) -> ImageModel:
    """Reads a VAR or RAR with its tokenizer.

    Args:
        source: a folder that `save_image_model` wrote or that holds one public network; a weights
            file; or such a file on the hub, as `"FoundationVision/var/var_d16.pth"`.
        tokenizer: the tokenizer's file, or a tokenizer in memory. By default it is looked for in
            the network's folder; for a file on the hub it is the public one.
        dtype: precision of the network's weights; as stored by default. The tokenizer keeps its
            own; the head of a VAR is at least float32.

    Returns:
        The model in eval mode.

    Raises:
        LoadError: files cannot be read or hold code, they are not such a network, the tokenizer is
            that of another model, or keys are missing, unknown or of another shape (all of them are
            listed).
    """
    stored = _network(_located(source))
    kind = _kind(stored.state)
    needed = _TOKENIZER_OF[kind]
    if not isinstance(tokenizer, (str, Path, needed, type(None))):
        raise LoadError(
            f"a {type(tokenizer).__name__} is not the tokenizer of {stored.file.name}: "
            f"expected a {needed.__name__}, or the file of its weights"
        )
    if not isinstance(tokenizer, ImageTokenizer):
        if tokenizer is not None:
            file = _located(tokenizer)
        elif Path(source).exists():
            file = _tokenizer_file_next_to(stored)
        else:
            file = _located(_PUBLIC_TOKENIZER[kind])
        tokenizer = _read_tokenizer(stored, file)

    make_config = _var_config if kind is VAR else _rar_config
    config = make_config(stored, tokenizer.codes)
    # On the meta device the module has shapes and no memory, and gets the tensors of the file.
    with torch.device("meta"):
        model = _build(kind, config, tokenizer, stored.file)
    state = dict(stored.state)
    if dtype is not None:
        for key, value in stored.state.items():
            state[key] = _convert(key, value, dtype, kind)
    _fill(model, own_state(model), state, stored.file)
    return model.eval()


def _convert(key: str, value: Tensor, dtype: torch.dtype, kind: Any) -> Tensor:
    """A tensor in another precision; in the head of a VAR at least float32, as in the public
    code."""
    if not value.is_floating_point():
        return value
    if kind is VAR and key.startswith(("head.", "head_nm.")):
        dtype = torch.promote_types(dtype, torch.float32)
    return value.to(dtype)


@dataclass(frozen=True)
class _Stored:
    """A file and the tensors in it, from whose shapes sizes are read."""

    file: Path
    state: State

    @property
    def depth(self) -> int:
        """Number of blocks."""
        numbers: set[int] = set()
        for key in self.state:
            parts = key.split(".")
            if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
                numbers.add(int(parts[1]))
        return len(numbers)

    def in_blocks(self, name: str, axis: int) -> list[tuple[str, int]]:
        """One tensor of every block, as places for `size`."""
        return [(f"blocks.{block}.{name}", axis) for block in range(self.depth)]

    def hidden(self, mlp: str) -> int:
        """Width of the MLP of that name."""
        places: list[tuple[str, int]] = []
        for name, axis in _HIDDEN_AXES:
            places += self.in_blocks(f"{mlp}.{name}", axis)
        return self.size(*places)

    def size(self, *places: tuple[str, int], likely: int | None = None) -> int:
        """The most common size among tensors that should agree.

        The majority decides, so that a single wrong tensor is refused, and not all the others.

        Args:
            places: (key of a tensor, axis along which its size is read). Missing keys do not count.
            likely: a size that counts as one more tensor.

        Raises:
            LoadError: none of the tensors is there.
        """
        votes: Counter[int] = Counter()
        # A vote, so that one tensor of a wrong shape is named when the file is compared with the
        # network, instead of making a network that nothing fits.
        for key, axis in places:
            if key in self.state and self.state[key].ndim > axis:
                size = self.state[key].shape[axis]
                votes[size] += 1
        if likely is not None:
            votes[likely] += 1
        if not votes:
            missing = places[0][0] if places else "its blocks"
            raise LoadError(
                f"{self.file.name} lacks {missing}: expected the weights of a VAR or a RAR"
            )
        ((most_common, _),) = votes.most_common(1)
        return most_common


def _var_config(stored: _Stored, codes: int) -> VARConfig:
    width = stored.size(
        ("word_embed.bias", 0),
        ("class_emb.weight", 1),
        ("pos_1LC", 2),
        *stored.in_blocks("attn.proj.bias", 0),
    )
    return VARConfig(
        sides=_sides(stored),
        width=width,
        depth=stored.depth,
        heads=stored.size(*stored.in_blocks("attn.scale_mul_1H11", 1)),
        hidden=stored.hidden("ffn"),
        codes=stored.size(("head.bias", 0), ("head.weight", 0), likely=codes),
        code_width=stored.size(("word_embed.weight", 1)),
        # The last row is that of no class.
        classes=stored.size(("class_emb.weight", 0)) - 1,
        shared=any(key.startswith("shared_ada_lin.") for key in stored.state),
    )


def _sides(stored: _Stored) -> tuple[int, ...]:
    """Tokens per side of each scale, from the table that holds the scale of each token."""
    if "lvl_1L" not in stored.state:
        raise LoadError(
            f"{stored.file.name} lacks lvl_1L, which says how many tokens each scale has: "
            "expected a whole VAR checkpoint"
        )
    levels: list[int] = []
    counts: list[int] = []
    level_of_token = stored.state["lvl_1L"].flatten().tolist()
    for level, run in groupby(level_of_token):
        levels.append(level)
        counts.append(len(list(run)))

    expected_levels = list(range(len(levels)))
    in_order = bool(levels) and levels == expected_levels
    growing = all(count < next_count for count, next_count in pairwise(counts))
    square = all(isqrt(count) ** 2 == count for count in counts)
    if not (in_order and growing and square):
        raise LoadError(
            f"{stored.file.name}: lvl_1L gives the scales {levels} {counts} tokens; "
            "expected growing squares"
        )
    return tuple(map(isqrt, counts))


def _rar_config(stored: _Stored, codes: int) -> RARConfig:
    codes = stored.size(("lm_head.bias", 0), ("lm_head.weight", 0), likely=codes)
    width = stored.size(
        ("cls_token", 2),
        ("embeddings.weight", 1),
        ("pos_embed", 2),
        *stored.in_blocks("attn.proj.bias", 0),
    )
    head_width = stored.size(
        *stored.in_blocks("attn.q_norm.weight", 0), *stored.in_blocks("attn.k_norm.weight", 0)
    )
    return RARConfig(
        grid=_grid(stored),
        width=width,
        depth=stored.depth,
        # The norms of queries and keys are as wide as one head.
        heads=width // head_width,
        hidden=stored.hidden("mlp"),
        codes=codes,
        # The table holds codes, then the mask, classes, and no class.
        classes=stored.size(("embeddings.weight", 0)) - codes - 2,
    )


def _grid(stored: _Stored) -> int:
    """Tokens per side: the table of times has a row for each token."""
    length = stored.size(("timesteps_embeddings", 1)) - SPARE_TIMES
    if length < 1 or isqrt(length) ** 2 != length:
        raise LoadError(
            f"{stored.file.name}: timesteps_embeddings has {length + SPARE_TIMES} rows; "
            f"expected {SPARE_TIMES} and a square"
        )
    return isqrt(length)


def _network(path: Path) -> _Stored:
    """The network that a path holds, which may be one of several files in a folder."""
    files = _weights(path) if path.is_dir() else [path]
    opened = [_open(file) for file in files]
    found = [stored for stored in opened if _kind(stored.state) in _TOKENIZER_OF]
    if not found:
        if path.is_dir():
            lacks = "has no config.json and no GGUF"
        else:
            lacks = "holds no model that can be read from one file"
        raise LoadError(
            f"{path.name} {lacks}: "
            "expected a Hugging Face model folder, or the weights of a VAR or a RAR"
        )
    if len(found) > 1:
        names = ", ".join(stored.file.name for stored in found)
        raise LoadError(f"{path.name} holds {len(found)} image models: name one of {names}")
    return found[0]


def _read_tokenizer(network: _Stored, file: Path) -> ImageTokenizer:
    """The tokenizer in a file, of the kind and on the grid that a network needs."""
    stored = _open(file)
    needed = _TOKENIZER_OF[_kind(network.state)]
    if _kind(stored.state) is not needed:
        raise LoadError(
            f"{file.name} is not the tokenizer of {network.file.name}: "
            f"expected the weights of a {needed.__name__}"
        )
    tokenizer: ImageTokenizer
    with torch.device("meta"):
        if needed is ResidualVQ:
            tokenizer = ResidualVQ(residual_vq_config(stored.state, _sides(network)))
        else:
            tokenizer = RasterVQ(raster_vq_config(stored.state, _grid(network)))
    _fill(tokenizer, tokenizer.state_dict(), stored.state, file)
    return tokenizer.eval()


def _tokenizer_file_next_to(network: _Stored) -> Path:
    """The tokenizer's file in the folder of a network."""
    kind = _kind(network.state)
    wanted = _TOKENIZER_OF[kind]
    others = [file for file in _weights(network.file.parent) if file != network.file]
    found: list[Path] = []
    for file in others:
        stored = _open(file)
        if _kind(stored.state) is wanted:
            found.append(file)
    if len(found) != 1:
        raise LoadError(
            f"{len(found)} tokenizers of a {kind.__name__} are next to {network.file.name}, "
            f"expected one: pass tokenizer=its file (the public one is {_PUBLIC_TOKENIZER[kind]})"
        )
    return found[0]


def _build(kind: Any, config: Any, tokenizer: ImageTokenizer, file: Path) -> ImageModel:
    try:
        return kind(config, tokenizer)
    except ValueError as error:
        raise LoadError(f"{file.name}: {error}") from error


def _fill(module: nn.Module, own: State, given: State, file: Path) -> None:
    """Puts tensors into a module on the meta device; refuses them with everything that does not
    fit."""
    wrong = [f"{key} is missing" for key in own if key not in given]
    wrong += [f"{key} is unknown" for key in given if key not in own]
    for key, value in own.items():
        if key not in given:
            continue
        shape = list(given[key].shape)
        expected = list(value.shape)
        if shape != expected:
            wrong.append(f"{key} is {shape}, expected {expected}")
    if wrong:
        kind = type(module).__name__
        raise LoadError(
            f"{file.name} does not fit the {kind} that its shapes describe, "
            f"in {len(wrong)} places: {'; '.join(wrong)}"
        )
    # Not strict, because a network's own state leaves out its tokenizer, which is filled already.
    module.load_state_dict(given, strict=False, assign=True)


def _kind(state: State) -> Any:
    """The class whose weights these are; None for other weights."""
    for key, kind in _KIND_OF_KEY.items():
        if key in state:
            return kind
    return None


def _weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _open(file: Path) -> _Stored:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.is_dir():
        raise LoadError(f"{file} is a folder: expected the weights file itself")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else _torch_file(file)
    except UnpicklingError as error:
        raise LoadError(
            f"{file.name} is a pickle that may run code, or damaged: refused; "
            "expected safetensors, or a torch file of tensors"
        ) from error
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, LookupError) as error:
        raise LoadError(
            f"{file.name} is truncated or damaged ({_reason(error)}): copy it again"
        ) from error

    is_named = isinstance(state, Mapping)
    if not is_named or not all(isinstance(value, Tensor) for value in state.values()):
        raise LoadError(
            f"{file.name} is not a state dict: expected tensors by name, and nothing else"
        )
    return _Stored(file, state)


def _reason(error: Exception) -> str:
    """The first line of an error; its type where it has no text."""
    lines = [*str(error).strip().splitlines(), type(error).__name__]
    return lines[0]


def _torch_file(file: Path) -> Any:
    """What a torch file holds, mapped into memory where its format allows that."""
    # Files from before torch 1.6 are not zip archives, and cannot be mapped.
    with file.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"
    return torch.load(file, "cpu", weights_only=True, mmap=is_zip)  # noqa: TID251


def _is_hub_file(path: Path) -> bool:
    if path.is_absolute() or len(path.parts) < 3:
        return False
    return path.parts[0] not in (".", "..", "~")


def _located(source: str | Path) -> Path:
    """The path of a source, which is downloaded first when it is a file on the hub."""
    path = Path(source)
    if path.exists():
        return path
    if not (_is_hub_file(path) and path.suffix in _SUFFIXES):
        siblings: list[str] = []
        if path.parent.is_dir():
            siblings = [sibling.name for sibling in path.parent.iterdir()]
        nearest = path.parent / closest(path.name, siblings) if siblings else path.parent
        raise LoadError(f"{path} does not exist; nearest: {nearest}")
    from huggingface_hub import hf_hub_download

    # A file on the hub is owner/name/file.
    repository = "/".join(path.parts[:2])
    file = "/".join(path.parts[2:])
    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot fetch {path}: {_reason(error)}") from error
