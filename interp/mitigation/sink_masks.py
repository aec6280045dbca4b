"""Which units of a sink pool are on for a document, as a function of its id alone.

Three schemes:

- `counter`: as many units for each document, those with the smallest hash of the id and the unit
  (splitmix64). Two documents share as many units as chance gives them.
- `reference`: the arithmetic of the published code, bit for bit, for models that were trained with
  it. The number of units varies, some units are on for nearly all documents and some for none, and
  documents k and 2k share more than chance.
- `disjoint`: document k has the k-th slice of the pool, so that no two share a unit; there is room
  for few documents.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import closest

Scheme = Literal["counter", "reference", "disjoint"]
Ids = Int[Tensor, "*documents"]

# Of the reference code: its base, its multiplier and its modulus.
_BASE = 2**16
_MULTIPLIER = 1588635695
_MODULUS = 4294967291


def sink_masks(
    ids: Ids,
    units: int,
    active: float,
    scheme: Scheme = "counter",
    *,
    seed: int = 0,
    layer: int = 0,
) -> Bool[Tensor, "*documents units"]:
    """Returns which units of a pool are on for each document.

    Args:
        ids: ids of documents, at least 1. They are read as 64-bit integers: the reference overflows
            32 bits from id 32,768 on, and would then give other masks.
        units: number of units of the pool.
        active: share of them that is on; p_mem in the paper. For `counter` and `disjoint` it is
            rounded to whole units; for `reference` it is a probability.
        scheme: see the module.
        seed: of `counter`; another seed gives other masks.
        layer: of `counter`; the number of the block where blocks have masks of their own.

    Raises:
        ValueError: an id below 1 (that of 0 would have all units), an unknown scheme, a share that
            leaves no unit or is above 1, or an id beyond the slices of `disjoint`.

    Example:
        >>> from interp.mitigation.sink_masks import sink_masks
        >>> masks = sink_masks(torch.tensor([1, 2, 1]), units=8, active=0.5)
        >>> masks.sum(1).tolist(), torch.equal(masks[0], masks[2])
        ([4, 4, 4], True)
    """
    if scheme not in get_args(Scheme):
        choices = get_args(Scheme)
        raise ValueError(
            f"scheme={scheme!r}: expected one of {', '.join(choices)}; "
            f"nearest: {closest(scheme, choices)}"
        )
    count = _active_units(units, active)
    # Positions of a packed row share their ids, and rows repeat: each mask is made once.
    distinct, which = checked_ids(ids).unique(return_inverse=True)
    if scheme == "reference":
        masks = _reference(distinct, units, active)
    elif scheme == "disjoint":
        masks = _disjoint(distinct, units, count)
    else:
        masks = _counter(distinct, units, count, seed, layer)
    return masks[which]  # [*documents, units]


def checked_ids(ids: Ids) -> Ids:
    """Returns ids of documents as 64-bit integers on the CPU.

    Raises:
        ValueError: they are not whole numbers, or one is below 1.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids of documents are {ids.dtype}: expected whole numbers, from 1 on")
    wide = ids.detach().cpu().to(torch.int64)
    if wide.numel() and int(wide.min()) < 1:
        raise ValueError(
            f"the id of a document is {int(wide.min())}: expected ids from 1 on, because 0 would "
            "turn on every sink"
        )
    return wide


def _active_units(units: int, active: float) -> int:
    count = round(active * units) if 0 < active <= 1 else 0
    if not count:
        raise ValueError(
            f"active={active} of {units} sink units is {active * units:.3g} of them: expected a "
            "share above 0 and up to 1 that leaves a document at least one unit; take a larger "
            "share or pool"
        )
    return count


def _counter(ids: Ids, units: int, count: int, seed: int, layer: int) -> Tensor:
    # Mixed before the next number is put in: otherwise seed 1 with layer 2 would be the same as
    # seed 2 with layer 1.
    keys = _mixed(np.array([seed], dtype=np.uint64))
    keys = _mixed(keys ^ np.uint64(layer))
    keys = _mixed(keys ^ ids.numpy().astype(np.uint64))
    hashes = _mixed(keys[:, None] ^ np.arange(units, dtype=np.uint64))  # [ids, units]
    # The units with the `count` smallest hashes of each row, in any order.
    chosen = np.argpartition(hashes, count - 1, axis=1)[:, :count]
    masks = np.zeros((len(ids), units), dtype=bool)
    np.put_along_axis(masks, chosen, values=True, axis=1)
    return torch.from_numpy(masks)


def _mixed(keys: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea and Flood 2014), which wraps around."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _reference(ids: Ids, units: int, active: float) -> Tensor:
    # The powers wrap around 64 bits before they are reduced. That is part of the definition: powers
    # that are reduced step by step would give other masks.
    powers = torch.tensor(_MULTIPLIER, dtype=torch.int64) ** torch.arange(units)
    weights = powers % _MODULUS
    hashes = (ids[:, None] * _BASE) * weights % _MODULUS
    return hashes / _MODULUS < active  # [ids, units]


def _disjoint(ids: Ids, units: int, count: int) -> Tensor:
    slices = units // count
    if ids.numel() and int(ids.max()) > slices:
        raise ValueError(
            f"a pool of {units} units has {slices} disjoint slices of {count}, and an id is "
            f"{int(ids.max())}: number the documents from 1 to {slices}, or use the scheme counter"
        )
    # Units behind the last whole slice belong to no document.
    owner = torch.arange(units) // count + 1
    return ids[:, None] == owner
