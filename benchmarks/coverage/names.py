"""Where the parts of a block are, read from the names that its authors gave them.

`interp` finds parts by what they do and never by their names. So names are an independent witness:
they know nothing of the laws that `interp` relies on, and cannot share a mistake with them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

_MIXES = re.compile(
    r"Attention(?!\w*(Residual|Norm|Layer))|MLA$|Attn|Mixer$|Mamba|DeltaNet|ShortConv$|RecurrentBlock"
    r"|LSTMLayer"
)
_NO_ATTENTION = re.compile(
    r"Delta|Lightning|TextLinearAttention|Rwkv|Mixer|Mamba|ShortConv|RecurrentBlock|LSTM"
)
_IS_ATTENTION = re.compile(r"MultiHeadAttention")  # a block that is nothing else
_OTHER_SEQUENCE = re.compile(r"cross|encoder_attn")  # attention to an image or an encoder
_OUT_OF_MIXER = re.compile(
    r"(o|out|c)_proj|dense|attention_out|Wo|wo|linear_out|output|proj|out_lin|resid_proj|to_out"
)
_OUT_OF_MLP = re.compile(
    r"(down|c|out)_proj|dense|dense_4h_to_h|fc2|fc_out|w2|wo|Wo|w_out|proj_down|lin2|output_linear"
    r"|linear_(fc)?2|value|proj|shared_output|ffn_out|dense_out|\d"
)
_OUT_IN_GROUPS = re.compile(r"o_a_proj")  # heads enter it in groups; another projection follows
_NORM = re.compile(r"norm\.")  # some norms have a gate with an MLP of its own
_ROUTED = re.compile(r"(^|\.)(experts|switch_mlp|zero_experts)\.")


@dataclass(frozen=True)
class Parts:
    """The parts of one block; paths are relative to it.

    Attributes:
        attention: whether it attends to the positions before.
        mixer: whether it has another mixer of positions (a state space, linear attention ...).
        mlp: whether it has an MLP of any kind.
        out_of_attention, out_of_mixer: the projections back to the residual stream.
        out_of_mlp: that of the MLP: of the dense one, or of a shared expert beside routed ones.
        experts: the module that holds routed experts, and gives what they and shared ones add.
        mixing: the parts that carry information between positions.
    """

    attention: bool
    mixer: bool
    mlp: bool
    out_of_attention: str | None
    out_of_mixer: str | None
    out_of_mlp: str | None
    experts: str | None
    mixing: tuple[str, ...]

    def is_mixing(self, path: str) -> bool:
        """Returns whether a module is a part of an attention or another mixer."""
        return any(_within(path, part) for part in self.mixing)


def parts(block: nn.Module, width: int) -> Parts:
    """Returns what the names in a block say.

    Args:
        block: a block of the network.
        width: of its residual stream.
    """
    mixing = _mixing(block)
    attending = [path for path, attends in mixing.items() if attends]
    others = [path for path, attends in mixing.items() if not attends]
    projections = _projections(block, width)
    every_token: list[str] = []
    for path in projections:
        in_mixer = any(_within(path, part) for part in mixing)
        elsewhere = in_mixer or _OTHER_SEQUENCE.search(path) or _ROUTED.search(f"{path}.")
        if not elsewhere and not _NORM.search(path):
            every_token.append(path)
    shared = [path for path in every_token if "shared" in path]
    routed = [path for path, _ in block.named_modules() if _ROUTED.search(f"{path}.")]
    of_mlp = shared if routed else every_token
    in_groups = _last([path for path, _ in block.named_modules()], attending, _OUT_IN_GROUPS)
    return Parts(
        attention=bool(attending),
        mixer=bool(others),
        mlp=bool(of_mlp or routed),
        out_of_attention=in_groups or _last(projections, attending, _OUT_OF_MIXER),
        out_of_mixer=_last(projections, others, _OUT_OF_MIXER),
        out_of_mlp=_last(of_mlp, [""], _OUT_OF_MLP),
        experts=routed[0].rpartition(".")[0] if routed else None,
        mixing=tuple(mixing),
    )


def _mixing(block: nn.Module) -> dict[str, bool]:
    """The outermost parts that carry information between positions, and whether by attention."""
    if _IS_ATTENTION.fullmatch(type(block).__name__):
        return {"": True}
    found: dict[str, bool] = {}
    for path, part in block.named_modules():
        if not path or _OTHER_SEQUENCE.search(path):
            continue
        if any(_within(path, outer) for outer in found):
            continue
        kind = type(part).__name__
        if _MIXES.search(kind) and any(True for _ in part.parameters()):
            found[path] = not _NO_ATTENTION.search(kind)
    return found


def _projections(block: nn.Module, width: int) -> list[str]:
    """Paths of the modules with a matrix that gives vectors of the stream's width."""
    found: list[str] = []
    for path, part in block.named_modules():
        weight = getattr(part, "weight", None)
        if weight is None or weight.ndim != 2:
            continue
        # GPT-2's Conv1D holds its weight the other way round.
        given = weight.shape[1] if type(part).__name__ == "Conv1D" else weight.shape[0]
        if given == width:
            found.append(path)
    return found


def _last(paths: list[str], inside: list[str], named: re.Pattern[str]) -> str | None:
    """The last path with such a name inside one of some parts."""
    found: str | None = None
    for path in paths:
        leaf = path.removesuffix(".linear").rpartition(".")[2]
        if named.fullmatch(leaf) and any(_within(path, part) for part in inside):
            found = path
    return found


def _within(path: str, part: str) -> bool:
    return not part or path == part or path.startswith(f"{part}.")
