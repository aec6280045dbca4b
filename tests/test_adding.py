"""What CONTRIBUTING says that adding costs is all that it costs: shown on a copy of the package.

A model family has its own test, `models/test_toy_policy.py`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from forks import fork

ROOT = Path(__file__).parents[1]

METHOD = '''
"""How large a unit gets."""

from interp.localization.registry import window_method
from interp.localization.unit_values import values_at, written_lengths


@window_method("largest")
def largest(subject, batch, sites):
    """The largest length of what a unit writes, over positions."""
    return {site: written_lengths(subject, site, value).amax(1) for site, value in values_at(subject, batch, sites).items()}
'''

USE_OF_METHOD = """
import tiny, interp
from interp.localization import localize, localize_each, methods

assert "largest" in methods()
llama = tiny.subject("llama")
windows = tiny.batch("llama", 3, prompt=4)
assert localize(llama, windows, method="largest").widths == llama.anatomy.widths("neurons")
assert len(localize_each(llama, windows, method="largest", site="blocks.1.neurons")) == 3
"""

# (file, what stands there, what takes its place)
SITE = [
    ("sites/site.py", '    "resid_mid",\n', '    "resid_mid",\n    "mlp_in",\n'),
    (
        "loading/block.py",
        '"mlp_out": self._mlp_out(),',
        '"mlp_in": self._mlp_in(self._mlp_out()), "mlp_out": self._mlp_out(),',
    ),
    (
        "loading/block.py",
        "    @property\n    def _width(self)",
        '''    def _mlp_in(self, mlp):
        """What the module that gives mlp_out is called with."""
        if isinstance(mlp, str):
            return mlp
        call = next(c for c in self.inner if c.path == mlp.path)
        if not shaped_like(call.value, self.call.value):
            return f"{mlp.path} reads another width"
        return inward(call)

    @property
    def _width(self)''',
    ),
]

USE_OF_SITE = """
import tiny, torch, interp
from interp.localization.unit_values import values_at


def logits_with(model, batch, hook):
    '''By plain torch: what the model says when a hook stands before the second block's MLP.'''
    mlp = model.module.get_submodule(model.anatomy.place("blocks.1.mlp_out").path)
    handle = mlp.register_forward_pre_hook(hook)
    try:
        return tiny.bare(model.module.config.model_type, model.module, batch)
    finally:
        handle.remove()


for name in ("llama", "gpt2", "neox"):
    model, batch = tiny.subject(name), tiny.batch(name)
    site = interp.Site("mlp_in", 1)
    assert model.anatomy.expand("mlp_in") == tuple(interp.Site("mlp_in", block) for block in range(tiny.BLOCKS))
    entered = []
    logits_with(model, batch, lambda _, inputs: entered.append(inputs[0].clone()))
    assert torch.equal(values_at(model, batch, (site,))[site], entered[0])
    with model.intervened(interp.Zero(model.anatomy.units(site))):
        ours = model.logits(batch)
    by_torch = logits_with(model, batch, lambda _, inputs: (torch.zeros_like(inputs[0]), *inputs[1:]))
    torch.testing.assert_close(ours[:, 1:], by_torch[:, :-1])
    assert not torch.allclose(ours, model.logits(batch))
    assert interp.localize(model, tiny.batch(name, prompt=4), site="mlp_in").widths == model.anatomy.widths("mlp_in")
"""


@pytest.fixture
def house(tmp_path) -> Path:
    """A copy of the package, to build on; with what Python has compiled of it, which holds for the
    files that a test does not change."""
    shutil.copytree(ROOT / "interp", tmp_path / "interp")
    return tmp_path


def run_in(house: Path, code: str) -> str:
    """What some code prints that imports the copy of the package."""

    def run() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in ("interp", "tiny"):
                del sys.modules[name]
        sys.path.insert(0, str(house))
        exec(code, {})

    exit_code, out, err = fork(run, house / "log").end()
    assert exit_code == 0, err
    return out


def test_a_localization_method_costs_one_file(house):
    (house / "interp" / "localization" / "methods" / "largest.py").write_text(METHOD)
    run_in(house, USE_OF_METHOD)
    help_text = "from interp.cli.app import app; app(['localize', '--help'])"
    assert "largest" in run_in(house, help_text)


def test_a_site_costs_its_name_and_how_it_is_found(house):
    for file, old, new in SITE:
        text = (house / "interp" / file).read_text()
        assert text.count(old) == 1, (
            f"{file} no longer holds {old!r} once: this test edits it there"
        )
        (house / "interp" / file).write_text(text.replace(old, new))
    run_in(house, USE_OF_SITE)


def test_the_copy_is_what_is_imported(house):
    assert run_in(house, "import interp; print(interp.__file__)").startswith(str(house))
