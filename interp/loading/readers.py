"""Readers: the weights of networks that the toolkit builds itself, one reader for each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.models.image.checkpoints import is_image_model, read_image_model


@dataclass(frozen=True)
class Reader:
    """How a family of models is read from files.

    Attributes:
        recognizes: whether a source (a file, a folder, a name) holds weights of this family.
        read: the module, from the source, what `interp.load(tokenizer=)` was given, and the dtype
        of the weights.
    """

    recognizes: Callable[[str | Path], bool]
    read: Callable[[str | Path, Any, torch.dtype | None], nn.Module]


READERS: dict[str, Reader] = {"image": Reader(is_image_model, read_image_model)}


def reader_of(source: str | Path) -> Reader | None:
    """The reader that recognizes a source; None where it is a Hugging Face or GGUF model."""
    return next((reader for reader in READERS.values() if reader.recognizes(source)), None)
