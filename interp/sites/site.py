"""Site: the name of a place in a network, such as `blocks.3.neurons`.

A name reads `[stack.]blocks.<i>.<point>`, `[stack.]embed` or `[stack.]final`. The points of a
block, in the order in which data passes them:

    resid_pre   the residual stream entering the block: [batch, position, d_model]
    heads       the input of the attention's out-projection: [batch, position, head * d_head];
                one unit is one head
    attn_out    what the attention adds to the residual stream: [batch, position, d_model]
    mixer_out   what another mixer of positions adds (linear attention, a state space, a
                convolution), in blocks that have one: [batch, position, d_model]
    resid_mid   the residual stream between mixer and MLP; it does not exist where the two run in
                parallel
    neurons     the input of the MLP's out-projection: [batch, position, d_mlp]
    mlp_out     what the MLP adds to the residual stream: [batch, position, d_model]
    block_out   what the block adds to the residual stream, resid_post - resid_pre; all of it is
                one unit
    resid_post  the residual stream leaving the block: [batch, position, d_model]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp.errors import SiteError, closest

BLOCK_POINTS = (
    "resid_pre",
    "heads",
    "attn_out",
    "mixer_out",
    "resid_mid",
    "neurons",
    "mlp_out",
    "block_out",
    "resid_post",
)

END_POINTS = ("embed", "final")

# A stack may be named by the whole path of a module, so its name may hold dots.
_PATTERN = re.compile(
    r"^(?:(?P<stack>[\w.]+)\.)?"
    rf"(?:blocks\.(?P<block>\d+)\.(?P<point>{'|'.join(BLOCK_POINTS)})"
    rf"|(?P<end>{'|'.join(END_POINTS)}))$"
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

_FROM_TRANSFORMER_LENS = {
    **{name: point for point, name in _TRANSFORMER_LENS.items()},
    "hook_embed": "embed",  # the older name of embed.hook_out
}


@dataclass(frozen=True)
class Site:
    """A named place in a network.

    Attributes:
        point: one of the points listed in this module, or a raw module path (`"model.norm:in"`).
        block: index of the block; None for `embed`, `final` and raw module paths.
        stack: name of the stack of blocks, empty for a model with one stack.

    Example:
        >>> site = interp.Site.parse("blocks.3.mlp.hook_post")
        >>> site
        Site(point='neurons', block=3, stack='')
        >>> str(site)
        'blocks.3.neurons'
        >>> site.transformer_lens
        'blocks.3.mlp.hook_post'
    """

    point: str
    block: int | None = None
    stack: str = ""

    @classmethod
    def parse(cls, name: str) -> Site:
        """Returns the site that a name stands for.

        Args:
            name: a name of ours (`blocks.3.neurons`), of TransformerLens
                (`blocks.3.mlp.hook_post`), or a module path with `:in` or `:out`.

        Raises:
            SiteError: the name is none of these; the message gives the nearest valid name.
        """
        if name.endswith((":in", ":out")):
            return cls(name)
        match = _PATTERN.match(without_transformer_lens(name))
        if match is None:
            expected = "[stack.]blocks.<i>.<point>, embed, final or <module path>:in|out"
            raise SiteError(
                f"{name!r} is not a site: expected {expected}; nearest: {_nearest(name)}"
            )
        point = match["point"] or match["end"]
        block = None if match["block"] is None else int(match["block"])
        return cls(point, block, match["stack"] or "")

    @property
    def is_module_path(self) -> bool:
        """Whether this is the raw path of a torch module instead of one of the named points."""
        return ":" in self.point

    @property
    def transformer_lens(self) -> str:
        """The name of this place in TransformerLens.

        Raises:
            SiteError: TransformerLens has no name for it: sites of named stacks, raw module paths
                and `block_out`.
        """
        if self.stack or self.is_module_path:
            raise SiteError(
                f"{self} has no TransformerLens name: TransformerLens knows one stack of blocks"
            )
        if self.point not in _TRANSFORMER_LENS:
            nearest = Site("resid_post", self.block).transformer_lens
            raise SiteError(f"{self} has no TransformerLens name; nearest: {nearest}")
        name = _TRANSFORMER_LENS[self.point]
        return name if self.block is None else f"blocks.{self.block}.{name}"

    @property
    def order(self) -> tuple[str, float, int, str]:
        """A sort key: by stack, and within a stack in the order in which data passes the sites."""
        if self.block is not None:
            in_block = BLOCK_POINTS.index(self.point)
            return (self.stack, self.block, in_block, self.point)
        # Before all blocks, or after them.
        block = float("inf") if self.point == "final" else -1.0
        return (self.stack, block, 0, self.point)

    def __str__(self) -> str:
        stack = f"{self.stack}." if self.stack else ""
        if self.block is None:
            return f"{stack}{self.point}"
        return f"{stack}blocks.{self.block}.{self.point}"


def without_transformer_lens(name: str) -> str:
    """Translates a TransformerLens name, or a pattern of them, to ours; keeps other names.

    Example:
        >>> from interp.sites.site import without_transformer_lens
        >>> without_transformer_lens("blocks.*.mlp.hook_post")
        'blocks.*.neurons'
    """
    match = re.match(r"^blocks\.([^.]+)\.(.+)$", name)
    if match is None:
        return _FROM_TRANSFORMER_LENS.get(name, name)
    block, point = match.groups()
    own_point = _FROM_TRANSFORMER_LENS.get(point, point)
    return f"blocks.{block}.{own_point}"


def _nearest(name: str) -> str:
    """The valid name spelled most like `name`, ours or TransformerLens's."""
    # Where the block is right, only the point is looked up, so that the suggestion keeps the block.
    match = re.match(r"^(.*blocks?\.\d+\.)(.+)$", name)
    if match is not None:
        block, point = match.groups()
        names = [name for ours, name in _TRANSFORMER_LENS.items() if ours in BLOCK_POINTS]
        nearest = closest(point, [*BLOCK_POINTS, *names])
        # The pattern above lets a forgotten s pass; it is put back here.
        corrected = block.replace("block.", "blocks.")
        return corrected + nearest

    in_first_block = [f"blocks.0.{point}" for point in BLOCK_POINTS]
    theirs = [name for name, point in _FROM_TRANSFORMER_LENS.items() if point in END_POINTS]
    return closest(name, [*END_POINTS, *in_first_block, *theirs])
