"""The same plan elsewhere: `weights` (zeroed rows, no hooks), `nnsight` (local, hosted),
`transformer_lens` and `captum`.

Peers are imported inside functions: nobody pays for one that is not used. What is not here: loading
models (`checkpoints`, `subject`).
"""

import importlib
from types import ModuleType

_ADAPTERS = ("captum", "nnsight", "transformer_lens", "weights")


def __getattr__(name: str) -> ModuleType:
    if name in _ADAPTERS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"no adapter {name!r}: there are {', '.join(_ADAPTERS)}")
