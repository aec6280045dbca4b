"""Which reader reads the weights of a network that the toolkit builds itself: one per family."""

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
        read: makes the module from the source, from what `interp.load(tokenizer=)` was given, and
            from the dtype of the weights.
    """

    recognizes: Callable[[str | Path], bool]
    read: Callable[[str | Path, Any, torch.dtype | None], nn.Module]


READERS: dict[str, Reader] = {"image": Reader(is_image_model, read_image_model)}


def reader_of(source: str | Path) -> Reader | None:
    """Returns the reader that recognizes a source; None for a Hugging Face or GGUF model.

    Example:
        >>> from interp.loading.readers import READERS, reader_of
        >>> reader_of("FoundationVision/var/var_d16.pth") is READERS["image"]
        True
        >>> reader_of("HuggingFaceTB/SmolLM2-135M") is None
        True
    """
    for reader in READERS.values():
        if reader.recognizes(source):
            return reader
    return None
