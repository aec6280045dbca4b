"""Which reader reads the weights of a network that the toolkit builds itself: one per family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.models.image.checkpoints import is_image_model, read_image_model
from interp.models.policy.checkpoints import is_policy, read_policy


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


# The first that recognizes a source reads it: an image model is any folder of weights without a
# config.json.
READERS: dict[str, Reader] = {
    "policy": Reader(is_policy, read_policy),
    "image": Reader(is_image_model, read_image_model),
}


def family_of(source: str | Path) -> str | None:
    """Returns the family of the weights that a source names: a key of `READERS`, or None for a
    Hugging Face or GGUF model.

    Example:
        >>> from interp.loading.readers import family_of
        >>> family_of("FoundationVision/var/var_d16.pth")
        'image'
    """
    return next((name for name, reader in READERS.items() if reader.recognizes(source)), None)


def reader_of(source: str | Path) -> Reader | None:
    """Returns the reader that recognizes a source; None for a Hugging Face or GGUF model.

    Example:
        >>> from interp.loading.readers import READERS, reader_of
        >>> reader_of("FoundationVision/var/var_d16.pth") is READERS["image"]
        True
        >>> reader_of("HuggingFaceTB/SmolLM2-135M") is None
        True
    """
    family = family_of(source)
    return None if family is None else READERS[family]
