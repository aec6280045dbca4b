"""Laws of the house: who imports whom, who registers hooks, how long files and functions are, what
importing the package costs."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import interp

HOUSE = Path(interp.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
# Data flows down this list: a module imports only from what stands above it. A folder stands where
# its name does.
ORDER = [
    "errors",
    "files",
    "progress",
    "sites",
    "interventions",
    "hooks",
    "subject",
    "models",
    "loading",
    "engine",
    "reporting",
    "training",
    "data",
    "adapters",
    "memorization",
    "localization",
    "analysis",
    "mitigation",
    "experiment",
    "workbench",
    "cli",
]
LAZY = ("transformer_lens", "nnsight", "captum", "transformers", "matplotlib", "seaborn", "sklearn")
# A forward pre-hook, a forward hook or any other: the names of torch's registration methods begin
# with this.
REGISTER = "register_" + "forward"


def place(file: Path) -> str:
    """The name in ORDER that a file of the package belongs to."""
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """The modules of the package, as places in ORDER, that a file imports: at its top or within
    functions, relative or absolute."""
    package = ["interp", *file.relative_to(HOUSE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module or "").split(".")] if node.module else base
            names = [".".join([*stem, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "interp" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(HOUSE)))
def test_a_module_imports_only_what_stands_above_it(file: Path):
    here = place(file)
    if here == "__init__":
        return
    assert here in ORDER, f"give {here} its place in ORDER"
    names = {name for name in imported(file) if name in ORDER and name != here}
    below = [name for name in names if ORDER.index(name) > ORDER.index(here)]
    assert not below, f"{here} imports {below}, which stand below it"


def test_only_hooks_registers_hooks():
    assert [f.name for f in FILES if REGISTER in f.read_text()] == ["hooks.py"]


@pytest.mark.parametrize("name", sorted(interp.__all__))
def test_every_public_name_resolves_twice(name: str):
    """Twice: importing a submodule must not put a module where a function was."""
    first = getattr(interp, name)
    home = getattr(first, "__module__", first.__name__)
    importlib.import_module(home)
    assert getattr(interp, name) is first
    assert first.__doc__
    assert name in dir(interp)


def test_public_names_shadow_no_module():
    folders = {"adapters", "analysis", "data", "localization", "memorization", "mitigation"}
    assert {
        n for n in interp.__all__ if (HOUSE / f"{n}.py").exists() or (HOUSE / n).is_dir()
    } == folders


def test_the_core_knows_no_kind_of_model():
    """No `isinstance` of a model kind but where models are built and read."""
    asks = re.compile(r"isinstance\([^)]*(ImageModel|Policy)")
    asking = [
        f for f in FILES if place(f) not in ("models", "loading") and asks.search(f.read_text())
    ]
    assert not asking


def test_values_between_measured_ones_come_from_one_place():
    """numpy's and scipy's interpolation continue beyond what was measured; ours does not."""
    guesses = re.compile(r"np\.interp\(|interp1d|fill_value=.extrapolate|CubicSpline")
    files = [*FILES, *(HOUSE.parent / "experiments").rglob("*.py")]
    assert [f.name for f in files if guesses.search(f.read_text())] == ["stats.py"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="lode"):
        _ = interp.lode


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    guard = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    environment = os.environ | {"PYTHONPATH": str(HOUSE.parent)}
    return subprocess.run(
        [sys.executable, "-c", guard + code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=HOUSE.parent,
    )


@pytest.mark.parametrize(
    "use",
    ["", "interp.load, interp.record, interp.sweep, interp.Zero, interp.intervened"],
    ids=["import", "core"],
)
def test_importing_opens_no_socket_and_loads_no_peer(use: str):
    ended = fresh(f"import interp, sys\n{use}\nprint([m for m in {LAZY!r} if m in sys.modules])")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"
