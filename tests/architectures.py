"""The names of the architectures that the core is tested on.

They stand apart from `tiny`, which makes the models: `conftest.py` needs the names only, and is
also imported by the process that hands out the tests and runs none. Importing transformers there
would take seconds in which no test runs.
"""

from __future__ import annotations

HUGGING_FACE = (
    "gpt2",
    "llama",
    "neox",
    "neox_sequential",
    "opt",
    "gemma3",
    "qwen2",
    "phi3",
    "mixtral",
    "phi",
    "bloom",
)
ALL = (*HUGGING_FACE, "policy")
