"""Other ways to run a plan: `weights` (written into weights, no hooks), `nnsight` (local or
hosted), `transformer_lens` and `captum`; verdicts of a served model, `vllm`; and the simulator of
robot tasks `libero`.

Each adapter imports its library inside functions, so that one that is not used costs nothing.
"""

import importlib
from types import ModuleType

_ADAPTERS = ("captum", "libero", "nnsight", "transformer_lens", "vllm", "weights")


def __getattr__(name: str) -> ModuleType:
    if name in _ADAPTERS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"no adapter {name!r}: expected one of {', '.join(_ADAPTERS)}")
