"""Which precision is fast on this machine."""

from __future__ import annotations

import torch


def cpu_emulates_bfloat16() -> bool:
    """Returns whether this CPU has no instructions for bfloat16, which is then several times slower
    than float32.

    Example:
        >>> from interp.cli.precision import cpu_emulates_bfloat16
        >>> isinstance(cpu_emulates_bfloat16(), bool)
        True
    """
    # torch computes with the instructions through oneDNN (mkldnn), and without it not at all.
    if not torch.backends.mkldnn.is_available():
        return True
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
