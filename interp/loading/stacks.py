"""Finds the stacks of a network: lists of blocks that run once each, in order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import nn

from interp.errors import SiteError, closest
from interp.hooks.call_trace import Call, Watch
from interp.loading.verification import same
from interp.sites.anatomy import Layout


def find_stacks(module: nn.Module, watch: Watch, layout: Layout) -> dict[str, str]:
    """Returns the path of each stack by its name, which is empty for a network with one stack.

    Raises:
        SiteError: there is none, or `layout` names a path that is not a list.
    """
    stacks = _named_stacks(module, layout) if layout.blocks else _found_stacks(module, watch)
    if stacks:
        return stacks
    times_run = Counter(call.path for call in watch.calls)
    for path, child in module.named_modules():
        times_of_blocks = [times_run[block] for block in block_paths(module, path)]
        most = max(times_of_blocks, default=0)
        if isinstance(child, nn.ModuleList) and most > 1:
            raise SiteError(
                f"no stack of blocks found: those of {path} run {most} times in one forward, so "
                "that a site in them would mean several values; expected blocks that run once"
            )
    raise SiteError(
        "no stack of blocks found (a list of modules, each run once, in order, each reading what "
        "the one before it returned): pass anatomy=interp.Layout(blocks='path.to.blocks')"
    )


def block_paths(module: nn.Module, stack: str) -> tuple[str, ...]:
    """Returns the paths of the blocks in the list at `stack`, in order."""
    children = module.get_submodule(stack).named_children()
    return tuple(f"{stack}.{name}" for name, _ in children)


def _named_stacks(module: nn.Module, layout: Layout) -> dict[str, str]:
    named = layout.blocks or {}
    blocks = {"": named} if isinstance(named, str) else dict(named)
    known: list[str] = []
    for name, child in module.named_modules():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            known.append(name)
    for path in blocks.values():
        if path not in known:
            raise SiteError(
                f"{path!r} is not a list of blocks in {type(module).__name__}; "
                f"nearest: {closest(path, known)}"
            )
    return blocks


def _found_stacks(module: nn.Module, watch: Watch) -> dict[str, str]:
    calls: dict[str, list[Call]] = {}
    for call in watch.calls:
        calls.setdefault(call.path, []).append(call)

    paths: list[str] = []
    for path, child in module.named_modules():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            continue
        # The outermost list is the stack: what repeats inside one of its blocks belongs to it.
        inside_another = any(path.startswith(f"{other}.") for other in paths)
        if not inside_another and _is_stack(child, path, calls):
            paths.append(path)
    if not paths:
        return {}
    return dict(zip(_short_names(paths), paths, strict=True))


def _is_stack(blocks: nn.Module, path: str, calls: dict[str, list[Call]]) -> bool:
    """Whether modules ran once each, in order, and kept the shape of their input.

    Modules of several types (attention and Mamba blocks in turn) must also be a chain, each reading
    what the one before it returned: any other list may hold parts with nothing in common.
    """
    children = list(blocks.children())
    if not children:
        return False

    runs: list[Call] = []
    for name, _ in blocks.named_children():
        of_child = calls.get(f"{path}.{name}", [])
        if len(of_child) != 1:
            return False
        (run,) = of_child
        if run.value is None or run.output is None or run.value.shape != run.output.shape:
            return False
        runs.append(run)
    starts = [run.start for run in runs]
    if starts != sorted(starts):
        return False
    if len({type(child) for child in children}) > 1 and not _is_chain(runs):
        return False

    # A list of norms or of single linear layers runs in order too. Blocks have several matrices.
    return all(_has_matrices(child) for child in children)


def _is_chain(runs: list[Call]) -> bool:
    if len(runs) < 2:
        return False
    return all(same(run.output, next_run.value) for run, next_run in pairwise(runs))


def _has_matrices(block: nn.Module) -> bool:
    """Whether several parts have a matrix, under whatever name: packed weights have their own."""
    with_matrix: set[str] = set()
    for named in (block.named_parameters(), block.named_buffers()):
        for path, tensor in named:
            if tensor.ndim >= 2:
                with_matrix.add(path.rpartition(".")[0])
    return len(with_matrix) >= 2


def _short_names(paths: list[str]) -> list[str]:
    """A name per path: empty for a single path, else the first part in which all paths differ."""
    if len(paths) == 1:
        return [""]
    parts = [path.split(".") for path in paths]
    deepest = max(map(len, parts))
    for depth in range(deepest):
        names: list[str] = []
        for part in parts:
            last = len(part) - 1  # where a path that is shorter than that stays
            names.append(part[min(depth, last)])
        if len(set(names)) == len(paths):
            return names
    return paths
