"""The vocabulary: a Site is a place in a network, Units are indices at sites, UnitScores rank them.

Sites read `[stack.]blocks.<i>.<point>`, or `[stack.]embed` and `[stack.]final`. The points, in the
order data meets them:

    resid_pre   the residual stream entering the block            [batch, position, d_model] heads
    what enters the attention's out-projection        [batch, position, head * d_head]; a unit is a
    head attn_out    what the attention adds to the residual           [batch, position, d_model]
    resid_mid   the residual between attention and MLP (absent where the two run in parallel)
    neurons     what enters the MLP's out-projection              [batch, position, d_mlp] mlp_out
    what the MLP adds to the residual                 [batch, position, d_model] block_out   what
    the block adds to the residual, resid_post - resid_pre; the whole of it is one unit resid_post
    the residual stream leaving the block             [batch, position, d_model]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp.errors import SiteError, closest

BLOCK_POINTS = (
    "resid_pre",
    "heads",
    "attn_out",
    "resid_mid",
    "neurons",
    "mlp_out",
    "block_out",
    "resid_post",
)


END_POINTS = ("embed", "final")


_PATTERN = re.compile(
    rf"^(?:(?P<stack>[\w.]+)\.)?(?:blocks\.(?P<block>\d+)\.(?P<point>{'|'.join(BLOCK_POINTS)})|(?P<end>{'|'.join(END_POINTS)}))$"
)


_TRANSFORMER_LENS = {
    "resid_pre": "hook_resid_pre",
    "heads": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "neurons": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
    "embed": "embed.hook_out",
    "final": "ln_final.hook_out",
}


_FROM_TRANSFORMER_LENS = {name: point for point, name in _TRANSFORMER_LENS.items()} | {
    "hook_embed": "embed"
}  # its older name


@dataclass(frozen=True)
class Site:
    """A named place in a network. `block` is None for `embed`, `final` and raw module paths
    (`"model.norm:in"`)."""

    point: str
    block: int | None = None
    stack: str = ""

    @classmethod
    def parse(cls, name: str) -> Site:
        """The site a name means: ours, TransformerLens's (`blocks.3.mlp.hook_post`), or a module
        path with `:in` or `:out`.

        Raises SiteError with the nearest valid name when it is none of these.
        """
        if name.endswith((":in", ":out")):
            return cls(name)
        match = _PATTERN.match(without_transformer_lens(name))
        if match is None:
            expected = "[stack.]blocks.<i>.<point>, embed, final or <module path>:in|out"
            raise SiteError(
                f"{name!r} is not a site: expected {expected}; nearest: {_nearest(name)}"
            )
        block = match["block"]
        return cls(
            match["point"] or match["end"],
            None if block is None else int(block),
            match["stack"] or "",
        )

    @property
    def is_module_path(self) -> bool:
        """Whether this is a raw place of a torch module, not one of the named points."""
        return ":" in self.point

    @property
    def transformer_lens(self) -> str:
        """The name of this place in TransformerLens. Raises SiteError for what it cannot name:
        stacks, module paths, block_out."""
        if self.stack or self.is_module_path:
            raise SiteError(f"{self} has no TransformerLens name: it knows one stack of blocks")
        if self.point not in _TRANSFORMER_LENS:
            raise SiteError(
                f"{self} has no TransformerLens name; nearest: {Site('resid_post', self.block).transformer_lens}"
            )
        name = _TRANSFORMER_LENS[self.point]
        return name if self.block is None else f"blocks.{self.block}.{name}"

    @property
    def order(self) -> tuple[str, float, int, str]:
        """Sorts sites by stack and then in the order data meets them."""
        if self.block is None:
            return (self.stack, float("inf") if self.point == "final" else -1.0, 0, self.point)
        return (self.stack, self.block, BLOCK_POINTS.index(self.point), self.point)

    def __str__(self) -> str:
        stack = f"{self.stack}." if self.stack else ""
        return (
            f"{stack}{self.point}"
            if self.block is None
            else f"{stack}blocks.{self.block}.{self.point}"
        )


def without_transformer_lens(name: str) -> str:
    """A TransformerLens name, or a pattern of them, in our words; other names as they are."""
    match = re.match(r"^blocks\.([^.]+)\.(.+)$", name)
    if match is None:
        return _FROM_TRANSFORMER_LENS.get(name, name)
    return f"blocks.{match[1]}.{_FROM_TRANSFORMER_LENS.get(match[2], match[2])}"


def _nearest(name: str) -> str:
    """The valid name spelled most like `name`, in our words or TransformerLens's."""
    match = re.match(r"^(.*blocks?\.\d+\.)(.+)$", name)
    points = [*BLOCK_POINTS, *(n for p, n in _TRANSFORMER_LENS.items() if p in BLOCK_POINTS)]
    if match is not None:
        return match[1].replace("block.", "blocks.") + closest(match[2], points)
    ends = [
        *END_POINTS,
        *(f"blocks.0.{p}" for p in BLOCK_POINTS),
        *(n for n, p in _FROM_TRANSFORMER_LENS.items() if p in END_POINTS),
    ]
    return closest(name, ends)
