"""LIBERO task files (BDDL): reading, printing and typed access.

A file is one s-expression, `(define (problem NAME) (:language ...) (:goal ...) ...)`. It is kept as
a tree of tuples and strings, so that an edit (see `bddl_edits`) changes the nodes that it names and
nothing else; `bddl_validation` counts the tasks that cannot be scored. LIBERO-PRO edits the text
with regular expressions instead, and three of the goals that it offers have unbalanced parentheses
(arXiv 2510.03827, `ood_task.yaml`). Here they are refused.

LIBERO reads files in lower case. The case is kept here, and ignored where the names of things are
compared. The words that a file is built of, such as `define` and `:goal`, are expected in lower
case.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from interp.errors import closest

__all__ = [
    "Fact",
    "Node",
    "Problem",
    "Region",
    "Tree",
    "parse",
    "problem",
    "read",
    "section",
    "to_text",
]

# A word, or a list of words and lists.
Node: TypeAlias = "str | tuple[Node, ...]"
Tree: TypeAlias = tuple[Node, ...]
# A predicate and its arguments, such as ("On", "plate_1", "main_table_plate_region").
Fact: TypeAlias = tuple[str, ...]

WIDTH = 88
_DECLARATIONS = (":fixtures", ":objects")
# A comment, a parenthesis, or a word.
_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
_WORD = re.compile(r"[^\s();]+")


@dataclass(frozen=True, slots=True)
class Region:
    """A named place on or in something.

    Attributes:
        name: the name within its target.
        target: the fixture or object that it belongs to.
        ranges: rectangles (x0, y0, x1, y1) in metres, relative to the target; empty where the
            region is part of the target's model, such as a drawer.
    """

    name: str
    target: str
    ranges: tuple[tuple[float, float, float, float], ...]

    @property
    def full_name(self) -> str:
        """What facts call it: the target's name in front, since two targets may share a name."""
        return f"{self.target}_{self.name}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What a task file declares.

    Attributes:
        arena: name of the problem, which selects the scene, such as LIBERO_Floor_Manipulation.
        language: the instruction, its words separated by single spaces.
        regions: in the order of the file.
        fixtures: category of each immovable thing, by name.
        objects: category of each movable thing, by name.
        obj_of_interest: names of the things that the task is about.
        init: facts that hold at reset.
        goal: facts that must hold together for success.
    """

    arena: str
    language: str
    regions: tuple[Region, ...]
    fixtures: Mapping[str, str]
    objects: Mapping[str, str]
    obj_of_interest: tuple[str, ...]
    init: tuple[Fact, ...]
    goal: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a fact may mention: objects, fixtures, and regions by full name."""
        regions = [region.full_name for region in self.regions]
        return (*self.objects, *self.fixtures, *regions)


def parse(text: str, source: str = "text") -> Tree:
    """Returns the one expression that a text holds.

    The grammar is that of the `bddl` package, which LIBERO reads its files with: words, parentheses
    and comments from `;` to the end of the line.

    Args:
        text: one expression in parentheses.
        source: what errors call the text, such as the name of its file.

    Raises:
        ValueError: a parenthesis is missing, or the text is not exactly one expression. The message
            names line and column.

    Example:
        >>> from interp.data import bddl
        >>> bddl.parse("(:goal (And (On plate_1 stove_1)))")
        (':goal', ('And', ('On', 'plate_1', 'stove_1')))
        >>> bddl.parse("(On plate_1 stove_1))")
        Traceback (most recent call last):
        ValueError: text, line 1, column 21: this ')' closes nothing; a '(' is missing before it
    """
    finished: Tree | None = None
    # Lists whose ")" has not been read yet, outermost first, and where the "(" of each was.
    unfinished: list[list[Node]] = []
    starts: list[int] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token.startswith(";"):
            continue
        # Outside all parentheses, only the first "(" of the text may stand.
        if not unfinished and (finished is not None or token != "("):
            where = _position(text, match.start(), source)
            raise ValueError(f"{where}: {_outside(token, after=finished is not None)}")
        if token == "(":
            unfinished.append([])
            starts.append(match.start())
        elif token == ")":
            closed = tuple(unfinished.pop())
            starts.pop()
            if unfinished:
                unfinished[-1].append(closed)
            else:
                finished = closed
        else:
            unfinished[-1].append(token)

    if unfinished:
        where = _position(text, starts[-1], source)
        missing = "a ')' is" if len(starts) == 1 else f"{len(starts)} ')' are"
        raise ValueError(
            f"{where}: this '(' is never closed; {missing} missing before the text ends"
        )
    if finished is None:
        raise ValueError(
            f"{source} is empty; expected one expression in parentheses, such as "
            "(define (problem NAME) ...)"
        )
    return finished


def _position(text: str, offset: int, source: str) -> str:
    line = text.count("\n", 0, offset) + 1
    # In the first line `rfind` gives -1, so that columns count from 1 there too.
    column = offset - text.rfind("\n", 0, offset)
    return f"{source}, line {line}, column {column}"


def _outside(token: str, *, after: bool) -> str:
    """What is wrong with a token outside all parentheses, before or after the expression."""
    if token == ")":
        return "this ')' closes nothing; a '(' is missing before it"
    if after:
        return (
            f"{token!r} follows an expression that is complete; expected nothing more, "
            "so a ')' before it is one too many"
        )
    return f"{token!r} is outside all parentheses; a '(' is missing before it"


def read(path: str | Path) -> Tree:
    """Returns the tree of a task file.

    Args:
        path: a `.bddl` file in UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not exactly one balanced expression; the message names the file.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data import bddl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "task.bddl")
        ...     _ = path.write_text("(:language xxx)")
        ...     bddl.read(path)
        (':language', 'xxx')
    """
    return parse(Path(path).read_text(encoding="utf-8"), source=str(path))


def to_text(tree: Node) -> str:
    """Returns the text of a tree: what fits on a line is on one line, other lists are indented.

    The text depends on the tree alone, and `parse` makes the same tree of it.

    Args:
        tree: words and tuples.

    Raises:
        ValueError: a word is empty or holds a space, a parenthesis or a semicolon, so that it would
            not be read as one word.

    Example:
        >>> from interp.data import bddl
        >>> print(bddl.to_text((":goal", ("And", ("Open", "drawer_1")))))
        (:goal (And (Open drawer_1)))
    """
    return "\n".join(_lines(tree, indent=0))


def _lines(node: Node, indent: int) -> list[str]:
    on_one_line = " " * indent + _flat(node)
    if isinstance(node, str) or len(on_one_line) <= WIDTH:
        return [on_one_line]
    if node[0] in _DECLARATIONS:
        return _declaration_lines(node, indent)
    if all(isinstance(child, str) for child in node):
        # A list of words, such as an instruction, remains on its line however long it is.
        return [on_one_line]

    # The words in front are what the list is called: they follow the parenthesis.
    # Not all children are words, as was seen above, so that the count ends.
    n_words = 0
    while isinstance(node[n_words], str):
        n_words += 1
    lines = [" " * indent + "(" + " ".join(_flat(word) for word in node[:n_words])]
    for child in node[n_words:]:
        lines += _lines(child, indent + 2)
    lines[-1] += ")"
    return lines


def _declaration_lines(node: Tree, indent: int) -> list[str]:
    """A long list of declarations `name - category`, one per line."""
    lines = [" " * indent + "(" + _flat(node[0])]
    words: list[str] = []
    for word in node[1:]:
        words.append(_flat(word))
        # A declaration ends with the word behind a dash.
        if len(words) > 1 and words[-2] == "-":
            lines.append(" " * (indent + 2) + " ".join(words))
            words = []
    if words:
        lines.append(" " * (indent + 2) + " ".join(words))
    lines[-1] += ")"
    return lines


def _flat(node: Node) -> str:
    if not isinstance(node, str):
        return "(" + " ".join(_flat(child) for child in node) + ")"
    if not _WORD.fullmatch(node):
        raise ValueError(
            f"{node!r} is not a word; expected characters other than spaces, parentheses and "
            "semicolons, and at least one"
        )
    return node


def section(tree: Tree, name: str) -> Tree:
    """Returns one section of a task file, its name included.

    Args:
        tree: a whole file.
        name: such as ":goal", or "problem".

    Raises:
        ValueError: the file has no such section, or more than one.

    Example:
        >>> from interp.data import bddl
        >>> tree = bddl.parse("(define (problem LIBERO_Floor_Manipulation) (:language xxx))")
        >>> bddl.section(tree, ":language")
        (':language', 'xxx')
    """
    sections = [node for node in tree if not isinstance(node, str) and node]
    found = [node for node in sections if node[0] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{len(found)} sections {name}; expected one")
    present = [node[0] for node in sections if isinstance(node[0], str)]
    raise ValueError(
        f"no section {name}; expected one among {', '.join(present) or 'none'}; "
        f"nearest: {closest(name, present)}"
    )


def problem(tree: Tree) -> Problem:
    """Returns what a task file declares.

    Args:
        tree: a whole file.

    Raises:
        ValueError: a section is missing or is not built as LIBERO expects; the message names it.

    Example:
        >>> from interp.data import bddl
        >>> task = bddl.problem(bddl.parse('''
        ...     (define (problem LIBERO_Floor_Manipulation)
        ...       (:language put the milk in the basket)
        ...       (:regions (corner (:target floor) (:ranges ((0.0 0.1 0.05 0.15))))
        ...                 (inside (:target basket_1)))
        ...       (:fixtures floor - floor)
        ...       (:objects milk_1 - milk basket_1 - basket)
        ...       (:obj_of_interest milk_1 basket_1)
        ...       (:init (On milk_1 floor_corner))
        ...       (:goal (And (In milk_1 basket_1_inside))))'''))
        >>> task.goal, task.objects["milk_1"], task.regions[0].ranges
        ((('In', 'milk_1', 'basket_1_inside'),), 'milk', ((0.0, 0.1, 0.05, 0.15),))
    """
    if tree[:1] != ("define",):
        raise ValueError(f"a task file begins with (define (problem NAME); got {to_text(tree[:1])}")
    named = _words(section(tree, "problem"))
    if len(named) != 1:
        raise ValueError(f"section problem has {len(named)} names; expected one")
    return Problem(
        arena=named[0],
        language=" ".join(_words(section(tree, ":language"))),
        regions=tuple(_region(node) for node in section(tree, ":regions")[1:]),
        fixtures=_categories(section(tree, ":fixtures")),
        objects=_categories(section(tree, ":objects")),
        obj_of_interest=_words(section(tree, ":obj_of_interest")),
        init=tuple(_fact(node, ":init") for node in section(tree, ":init")[1:]),
        goal=tuple(_goal(section(tree, ":goal"))),
    )


def _words(node: Tree) -> tuple[str, ...]:
    """What follows the name of a list that holds only words."""
    words = tuple(word for word in node[1:] if isinstance(word, str))
    if len(words) != len(node) - 1:
        raise ValueError(f"{to_text(node)}: expected only words after {node[0]}")
    return words


def _categories(node: Tree) -> dict[str, str]:
    """The declarations `name - category` of a section; names that share a category may be listed
    in front of it."""
    categories: dict[str, str] = {}
    declared: set[str] = set()
    names: list[str] = []
    words = iter(_words(node))
    for word in words:
        if word != "-":
            names.append(word)
            continue
        category = next(words, None)
        if category is None or not names:
            raise ValueError(f"{to_text(node)}: expected a name and a category around each '-'")
        for name in names:
            if name.lower() in declared:
                raise ValueError(f"section {node[0]} declares {name!r} twice")
            declared.add(name.lower())
            categories[name] = category
        names = []
    if names:
        raise ValueError(
            f"section {node[0]} gives {names[0]!r} no category; expected name - category"
        )
    return categories


def _region(node: Node) -> Region:
    if isinstance(node, str) or not node or not isinstance(node[0], str):
        raise ValueError(
            f"section :regions holds {to_text(node)}; expected (NAME (:target ...) ...)"
        )
    name = node[0]
    match _attribute(node, ":target"):
        case (_, str(target)):
            pass
        case _:
            raise ValueError(f"region {name}: expected one (:target NAME)")
    match _attribute(node, ":ranges"):
        case None:
            rectangles: Tree = ()
        case (_, tuple(rectangles)):
            pass
        case _:
            raise ValueError(f"region {name}: expected its ranges as (:ranges ((x0 y0 x1 y1) ...))")
    return Region(name, target, tuple(_rectangle(name, each) for each in rectangles))


def _attribute(region: Tree, name: str) -> Tree | None:
    """The attribute of a region that begins with `name`, if there is one."""
    for attribute in region[1:]:
        if isinstance(attribute, str) or not attribute or not isinstance(attribute[0], str):
            continue
        # Unlike a section, an attribute may be absent: in capitals it must not seem to be.
        if attribute[0].lower() == name:
            return attribute
    return None


def _rectangle(region: str, node: Node) -> tuple[float, float, float, float]:
    try:
        match node:
            case (str(x0), str(y0), str(x1), str(y1)):
                found = float(x0), float(y0), float(x1), float(y1)
                # NaN would count as within every surface.
                if all(map(math.isfinite, found)):
                    return found
            case _:
                pass
    except ValueError:
        pass
    raise ValueError(
        f"region {region} has the range {to_text(node)}; expected four numbers (x0 y0 x1 y1)"
    )


def _fact(node: Node, where: str) -> Fact:
    words = [word for word in node if isinstance(word, str)]
    if isinstance(node, str) or not words or len(words) != len(node):
        raise ValueError(
            f"section {where} holds {to_text(node)}; expected a fact such as (On plate_1 stove_1)"
        )
    return tuple(words)


def _goal(node: Tree) -> Iterator[Fact]:
    """The facts of a goal, which is one fact or (And ...)."""
    if len(node) != 2 or isinstance(node[1], str) or not node[1]:
        raise ValueError(f"{to_text(node)}: expected one expression, such as (And (On a b))")
    goal = node[1]
    if isinstance(goal[0], str) and goal[0].lower() == "and":
        for fact in goal[1:]:
            yield _fact(fact, ":goal")
    else:
        yield _fact(goal, ":goal")
