"""The curvature edit: removes from weights what ordinary text does not need.

Merullo et al. (arXiv 2510.24256): the loss around one memorized example is sharp in directions that
differ from example to example. Averaged over ordinary text they cancel, so that what is memorized
lies where the average loss is flat, and what is shared where it is sharp. No list of what to forget
is needed.

The curvature is approximated for each linear map y = W x by two small matrices (K-FAC):
A = E[x x^T] of its inputs and G = E[g g^T] of the gradients of the loss with respect to its
outputs. In the eigenbases of both, the component (i, j) of the weight has the curvature
lambda_i mu_j, a product of eigenvalues of G and A. The edit keeps the sharpest components and drops
the others.

    maps = mlp_maps(subject, blocks=range(17, 28))
    spectra = decompose(subject, kronecker_factors(subject, ordinary_text, maps))
    plan = curvature_edit(spectra, mass=0.99)

The edit mixes all units of a map, so it is no factor on units: it is an `AddWeights` plan, which
runs by hooks, or in the weights themselves under `interp.adapters.weights.applied`. Its
controls drop the same number of components (`drop="random"`, `drop="sharpest"`), or truncate the
weights alone, without any text (`singular_spectra`). To compare at equal damage, run the controls
at a larger mass: fewer components are then dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import SiteError, closest
from interp.hooks.hooks import captured
from interp.interventions.kinds import AddWeights
from interp.localization.window_losses import differentiating
from interp.progress import track
from interp.sites.anatomy import Sites, as_rows, axes_are_known
from interp.sites.site import Site
from interp.sites.units import all_units
from interp.subject.batch import Batch, Batches, batches
from interp.subject.batch_limit import BatchLimit
from interp.subject.offloading import stored
from interp.subject.subject import Subject, token_losses

Labels = Literal["sampled", "gold"]
Drop = Literal["flattest", "random", "sharpest"]
Mass = float | Mapping[Site, float]


@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of the curvature of one linear map, as means over positions of a text.

    Attributes:
        inputs: A = E[x x^T], [inputs, inputs].
        gradients: G = E[g g^T], [outputs, outputs], of the gradients of the summed loss.
        positions: how many positions the means are over.
    """

    inputs: Float[Tensor, "inputs inputs"]
    gradients: Float[Tensor, "outputs outputs"]
    positions: int


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The weight of a linear map in two orthonormal bases, and the curvature of each component.

    Attributes:
        weight: W, [outputs, inputs].
        output_basis: [outputs, outputs], one vector per column.
        input_basis: [inputs, inputs], one vector per column.
        curvature: [outputs, inputs], at least 0: that of component (i, j), which is what the i-th
            output vector and the j-th input vector share.

    Example:
        >>> from interp.mitigation.curvature import Spectrum
        >>> spectrum = Spectrum(
        ...     weight=torch.tensor([[5.0, 6.0]]),
        ...     output_basis=torch.eye(1),
        ...     input_basis=torch.eye(2),
        ...     curvature=torch.tensor([[3.0, 1.0]]),
        ... )
        >>> spectrum.sharpest(0.75)
        tensor([[ True, False]])
        >>> spectrum.restrict(spectrum.sharpest(0.75))
        tensor([[5., 0.]])
    """

    weight: Float[Tensor, "outputs inputs"]
    output_basis: Float[Tensor, "outputs outputs"]
    input_basis: Float[Tensor, "inputs inputs"]
    curvature: Float[Tensor, "outputs inputs"]

    @property
    def components(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the two bases."""
        # C = U_G^T W U_A, in the precision of the bases, which may be double.
        weight = self.weight.to(self.output_basis)
        return self.output_basis.T @ weight @ self.input_basis

    @property
    def concentration(self) -> float:
        """The share of the curvature that the largest input direction has.

        It is near 1 where a few positions have massive activations. A mass of the curvature then is
        that one direction, and an edit that keeps it breaks the model: leave such maps out.
        """
        by_input = self.curvature.sum(0)  # [inputs]
        share = by_input.max() / by_input.sum()
        return float(share)

    def sharpest(self, mass: float) -> Bool[Tensor, "outputs inputs"]:
        """Returns the smallest set of components whose curvatures add up to a share of the total.

        Args:
            mass: the share, above 0 and at most 1. At 1 all components are kept, also those without
                any curvature.

        Raises:
            ValueError: another share, no component has any curvature, or one is not finite.
        """
        if not 0 < mass <= 1:
            raise ValueError(
                f"mass={mass}: expected the share of the curvature to keep, above 0 and at most 1"
            )
        if mass == 1:
            return torch.ones_like(self.curvature, dtype=torch.bool)
        flat = self.curvature.double().flatten()
        values, order = flat.sort(descending=True, stable=True)
        sums = values.cumsum(0)
        total = sums[-1]
        if not torch.isfinite(total):
            raise ValueError(f"the curvatures add up to {total}: expected finite numbers")
        if total <= 0:
            raise ValueError(
                "no component has any curvature: the loss on the text does not depend on this map; "
                "leave the map out, or give texts with targets"
            )
        # The component with which the sum reaches the share is kept as well.
        number = int((sums < mass * total).sum()) + 1
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[order[:number]] = True
        return kept.view_as(self.curvature)

    def restrict(self, kept: Bool[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """Returns the weight without the components that are not kept."""
        components = torch.where(kept, self.components, 0)
        # Back from the bases: W' = U_G C_S U_A^T.
        restricted = self.output_basis @ components @ self.input_basis.T
        return restricted.to(self.weight)

    def energy(self, kept: Bool[Tensor, "outputs inputs"]) -> float:
        """Returns the share of the squared length of the weight that kept components have."""
        squares = self.components.square()
        share = torch.where(kept, squares, 0).sum() / squares.sum()
        return float(share)


def mlp_maps(subject: Subject, blocks: Iterable[int] | None = None) -> tuple[Site, ...]:
    """Returns the outputs of the linear maps of the MLPs: gate, up and down, or what a family has.

    Args:
        subject: the model.
        blocks: numbers of blocks, in every stack; by default all that have `neurons`.

    Raises:
        SiteError: a block does not exist, or its MLP has no verified neurons (mixtures of experts).

    Example:
        >>> from interp.mitigation.curvature import mlp_maps
        >>> for site in mlp_maps(subject, blocks=[1]):
        ...     print(site)
        model.layers.1.mlp.gate_proj:out
        model.layers.1.mlp.up_proj:out
        model.layers.1.mlp.down_proj:out
    """
    anatomy = subject.anatomy
    if blocks is None:
        all_neurons = anatomy.expand("neurons")
    else:
        stacks = tuple(anatomy.stacks)
        named = [Site("neurons", block, stack) for block in blocks for stack in stacks]
        all_neurons = anatomy.expand(named)
    found: list[Site] = []
    for neurons in all_neurons:
        place = anatomy.place(neurons)
        parent_path, _, own_name = place.path.rpartition(".")
        parent = subject.module.get_submodule(parent_path)
        for name, child in parent.named_children():
            # By its shape, because names differ between families; gate and up may be fused in one
            # map with several times the width.
            feeds_neurons = _outputs(child) > 0 and _outputs(child) % place.width == 0
            if name == own_name or feeds_neurons:
                found.append(anatomy.resolve(f"{parent_path}.{name}:out"))
    return tuple(found)


def _outputs(module: nn.Module) -> int:
    """How many outputs a linear map has; 0 for other modules."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return 0
    return as_rows(module, weight).shape[1]  # of [inputs, outputs]


def kronecker_factors(
    subject: Subject,
    source: Batches,
    maps: Sites,
    labels: Labels = "sampled",
    *,
    seed: int = 0,
    skip: int = 0,
    batch_size: int = 4,
) -> dict[Site, Factors]:
    """Returns the curvature factors of linear maps on ordinary text, in one pass.

    Memory grows with the squared widths of the maps and with the batch, and not with the text.

    Args:
        subject: the model.
        source: ordinary text: a Batch, the windows of a scan, or any iterable of batches. Padding
            does not count.
        maps: outputs of linear maps, by module path, as `mlp_maps` returns them.
        labels: what the loss is of: tokens that the model itself predicts, drawn at random, which
            gives the Fisher information; or the true tokens.
        seed: seed of the labels. They depend on it and on the tokens of a row, and not on the
            order and the batches in which rows come.
        skip: how many positions to leave out at the start of each row. The first one has very
            large activations in many models.
        batch_size: largest number of rows in one forward.

    Returns:
        The factors of each map.

    Raises:
        SiteError: a site is unknown, or is not the output of a linear map with a plain weight.
        ValueError: unknown labels, no positions, or activations or gradients that are not finite.

    Example:
        >>> from interp.mitigation.curvature import kronecker_factors
        >>> up = "model.layers.1.mlp.up_proj:out"
        >>> factors = kronecker_factors(subject, batch, up)[interp.Site.parse(up)]
        >>> factors.inputs.shape, factors.gradients.shape, factors.positions
        (torch.Size([32, 32]), torch.Size([48, 48]), 192)
    """
    if labels not in get_args(Labels):
        choices = get_args(Labels)
        raise ValueError(
            f"labels={labels!r}: expected one of {', '.join(choices)}; "
            f"nearest: {closest(labels, choices)}"
        )
    outputs = subject.anatomy.expand(maps)
    for site in outputs:
        _weight(subject, site)  # refused before any work
    sums = _Sums({site: _input_of(subject, site) for site in outputs}, skip)

    def differentiate(part: Batch) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
        return _differentiate(subject, part, sums.inputs, labels, seed)

    limit = BatchLimit()
    for batch in track(batches(source, batch_size), "curvature"):
        for part, (values, gradients) in limit.run(differentiate, batch):
            sums.update(part, values, gradients)
    return sums.factors()


def decompose(
    subject: Subject, factors: Mapping[Site, Factors], dtype: torch.dtype = torch.float64
) -> dict[Site, Spectrum]:
    """Returns the weights of linear maps in the eigenbases of their factors.

    Args:
        subject: the model that the factors are of.
        factors: the factors of each map, from `kronecker_factors`.
        dtype: precision of the decomposition. float32 takes a third of the time, and differs where
            curvatures are nearly equal.

    Raises:
        SiteError: a map is unknown, or has no plain weight.
        ValueError: factors of another model's shape.

    Example:
        >>> from interp.mitigation.curvature import decompose, kronecker_factors, mlp_maps
        >>> factors = kronecker_factors(subject, batch, mlp_maps(subject, blocks=[1]))
        >>> spectra = decompose(subject, factors)
        >>> [tuple(spectrum.curvature.shape) for spectrum in spectra.values()]
        [(48, 32), (48, 32), (32, 48)]
    """
    spectra: dict[Site, Spectrum] = {}
    for site, own in track(list(factors.items()), "eigenbases"):
        weight = _weight(subject, site)
        shape = (len(own.gradients), len(own.inputs))
        if weight.shape != shape:
            raise ValueError(
                f"{site}: these factors are of a map [outputs, inputs] of {list(shape)}; here it "
                f"is {list(weight.shape)}: another model's factors"
            )
        of_outputs, output_basis = torch.linalg.eigh(own.gradients.to(weight.device, dtype))
        of_inputs, input_basis = torch.linalg.eigh(own.inputs.to(weight.device, dtype))
        # Rounding can bring an eigenvalue of 0 below 0.
        curvature = torch.outer(of_outputs.clamp(min=0), of_inputs.clamp(min=0))
        spectra[site] = Spectrum(weight, output_basis, input_basis, curvature)
    return spectra


def singular_spectra(subject: Subject, maps: Sites) -> dict[Site, Spectrum]:
    """Returns the weights of linear maps in their own singular bases, as a control without text.

    The squared singular values take the place of the curvature: an edit that keeps a mass of them
    is the truncation of the weight to a low rank that has this share of its energy.

    Args:
        subject: the model.
        maps: outputs of linear maps, by module path.

    Raises:
        SiteError: a site is unknown, or is not the output of a linear map with a plain weight.

    Example:
        >>> from interp.mitigation.curvature import singular_spectra
        >>> up = interp.Site.parse("model.layers.1.mlp.up_proj:out")
        >>> spectrum = singular_spectra(subject, up)[up]
        >>> truncated = spectrum.restrict(spectrum.sharpest(0.5))
        >>> int(torch.linalg.matrix_rank(truncated)) < 32
        True
    """
    spectra: dict[Site, Spectrum] = {}
    for site in subject.anatomy.expand(maps):
        weight = _weight(subject, site)
        left, sizes, right = torch.linalg.svd(weight.double())
        # In these bases the weight is diagonal: all other components are 0.
        squares = torch.zeros_like(weight, dtype=torch.float64)
        squares.diagonal().copy_(sizes.square())
        # svd returns the right vectors as rows; a basis has one vector per column.
        spectra[site] = Spectrum(weight, left, right.T, squares)
    return spectra


def curvature_edit(
    spectra: Mapping[Site, Spectrum], mass: Mass, drop: Drop = "flattest", seed: int = 0
) -> AddWeights:
    """Returns the plan that drops components of weights.

    Their number in each map is that of the flattest components, without which the others still have
    a share `mass` of the curvature.

    Args:
        spectra: the weights to edit, from `decompose` or `singular_spectra`.
        mass: the share of the curvature to keep: one for all maps, or one for each.
        drop: which components are dropped: the flattest; or, as controls, the same number of others
            at random, or the same number of the sharpest.
        seed: seed of the random components. The draw in a map does not depend on the other maps.

    Raises:
        ValueError: no spectra, an unknown `drop`, or a mass that is missing or out of range.

    Example:
        >>> from interp.mitigation.curvature import curvature_edit, singular_spectra
        >>> spectra = singular_spectra(subject, "model.layers.1.mlp.up_proj:out")
        >>> with subject.intervened(curvature_edit(spectra, mass=1.0)):
        ...     unchanged = subject.logits(batch)
        >>> torch.allclose(unchanged, subject.logits(batch), atol=1e-4)
        True
    """
    if not spectra:
        raise ValueError("no spectra: give those of at least one linear map")
    if drop not in get_args(Drop):
        choices = get_args(Drop)
        raise ValueError(
            f"drop={drop!r}: expected one of {', '.join(choices)}; "
            f"nearest: {closest(drop, choices)}"
        )
    widths: dict[Site, int] = {}
    changes: dict[Site, np.ndarray] = {}
    for site, spectrum in spectra.items():
        sharpest = spectrum.sharpest(_mass_at(site, mass))
        if drop == "flattest":
            kept = sharpest
        elif drop == "random":
            kept = _at_random(site, sharpest, seed)
        else:
            kept = _without_sharpest(spectrum, int((~sharpest).sum()))
        # The plan adds this to the weight, which then is the restricted one.
        change = spectrum.restrict(kept) - spectrum.weight
        widths[site] = len(change)
        changes[site] = change.cpu().numpy()
    return AddWeights(all_units(widths), values=changes)


def _mass_at(site: Site, mass: Mass) -> float:
    if not isinstance(mass, Mapping):
        return mass
    if site not in mass:
        given = ", ".join(map(str, mass))
        raise ValueError(f"mass has no share for {site}; it has some for {given}")
    return mass[site]


def _at_random(site: Site, like: Tensor, seed: int) -> Bool[Tensor, "outputs inputs"]:
    """A set of components of the same size."""
    # The name is part of the seed, as the numbers of its bytes.
    name = str(site).encode()
    rng = np.random.default_rng([seed, *name])
    order = torch.as_tensor(rng.permutation(like.numel()), device=like.device)
    # The mask itself is permuted, which keeps the number of its components.
    return like.flatten()[order].view_as(like)


def _without_sharpest(spectrum: Spectrum, count: int) -> Bool[Tensor, "outputs inputs"]:
    """All components but a number of those with the largest curvature."""
    flat = spectrum.curvature.flatten()
    order = flat.argsort(descending=True, stable=True)
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[order[:count]] = False
    return kept.view_as(spectrum.curvature)


def _weight(subject: Subject, site: Site) -> Float[Tensor, "outputs inputs"]:
    """The weight of the linear map whose output a site is, at least in float32."""
    place = subject.anatomy.place(site)
    module = subject.module.get_submodule(place.path)
    # With more than a weight and a bias, as with an adapter, the output is not W x + b.
    own = dict(module.named_parameters())
    weight = own.get("weight")
    is_output = place.side == "out" and place.base is None and place.scale == 1
    if not is_output or weight is None or weight.ndim != 2 or own.keys() - {"weight", "bias"}:
        raise _not_linear(site, module)
    if not weight.is_floating_point():
        raise SiteError(f"{site}: the weight of {place.path} is quantized: load the model in full")
    values = stored(subject.module, f"{place.path}.weight", weight).detach()
    matrix = as_rows(module, values).T  # [outputs, inputs]
    inputs = subject.anatomy.place(_input_of(subject, site)).width
    if matrix.shape != (place.width, inputs) or not axes_are_known(module):
        raise _not_linear(site, module)
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _not_linear(site: Site, module: nn.Module) -> SiteError:
    return SiteError(
        f"{site} ({type(module).__name__}) is not the output of a linear map with a plain weight: "
        "give module paths such as 'model.layers.3.mlp.up_proj:out' (mlp_maps lists them)"
    )


def _input_of(subject: Subject, output: Site) -> Site:
    path = subject.anatomy.place(output).path
    return subject.anatomy.resolve(f"{path}:in")


class _Sums:
    """Sums over positions of the outer products of inputs, and of gradients at outputs."""

    def __init__(self, inputs: Mapping[Site, Site], skip: int) -> None:
        self.inputs = inputs  # output of a map -> its input
        self.skip = skip
        self.of_inputs: dict[Site, Tensor] = {}
        self.of_gradients: dict[Site, Tensor] = {}
        self.positions: dict[Site, int] = dict.fromkeys(inputs, 0)

    def update(
        self, batch: Batch, values: Mapping[Site, Tensor], gradients: Mapping[Site, Tensor]
    ) -> None:
        """Takes in one batch: values at the inputs, and gradients at the outputs."""
        for output, source in self.inputs.items():
            gradient = gradients[output]
            counted = self._counted(batch, gradient)
            self.positions[output] += int(counted.sum())
            # A mask of [batch, position] leaves one row for each position that counts.
            _add_outer_products(self.of_inputs, output, values[source][counted])
            _add_outer_products(self.of_gradients, output, gradient[counted])

    def _counted(self, batch: Batch, value: Tensor) -> Bool[Tensor, "batch position"]:
        counted = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        # Blocks that see other positions than the tokens' are not described by the tokens' mask.
        if batch.mask is not None and batch.mask.shape == counted.shape:
            counted = batch.mask.to(value.device).clone()
        counted[:, : self.skip] = False
        return counted

    def factors(self) -> dict[Site, Factors]:
        """The means."""
        found: dict[Site, Factors] = {}
        for site, count in self.positions.items():
            if not count:
                raise ValueError(
                    f"no positions to take the curvature of {site} over: give texts longer than "
                    f"the {self.skip} positions that are skipped"
                )
            # An infinity would become NaN in the eigenbases, and every order of components then
            # looks as good as any other.
            for name, total in (
                ("activations", self.of_inputs[site]),
                ("gradients", self.of_gradients[site]),
            ):
                if not bool(total.isfinite().all()):
                    raise ValueError(
                        f"the {name} at {site} are not finite, or too large to be squared: load "
                        "the model in bfloat16 or float32"
                    )
            found[site] = Factors(
                self.of_inputs[site] / count, self.of_gradients[site] / count, count
            )
        return found


def _add_outer_products(
    sums: dict[Site, Tensor], site: Site, rows: Float[Tensor, "count width"]
) -> None:
    # Products in the precision of the activations, which is what is expensive; their sum in
    # double, so that long texts do not drift.
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    products = (precise.T @ precise).double()
    sums[site] = sums[site] + products if site in sums else products


def _differentiate(
    subject: Subject, batch: Batch, inputs: Mapping[Site, Site], labels: Labels, seed: int
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """The values at the inputs of some maps, and the gradients of the summed loss at the
    outputs."""
    outputs = tuple(inputs)
    sites = tuple(dict.fromkeys([*outputs, *inputs.values()]))
    with differentiating(subject):
        with captured(subject, sites) as values:
            logits = subject.target_logits(batch)
            if labels == "sampled":
                batch = _with_labels(batch, _draw_labels(logits, batch, seed))
            loss = token_losses(logits, batch).sum()
        at_outputs = [values[site] for site in outputs]
        # A map that the loss does not depend on gets zeros, and with them no curvature.
        gradients = torch.autograd.grad(loss, at_outputs, allow_unused=True, materialize_grads=True)
    at_inputs = {site: values[site].detach() for site in inputs.values()}
    return at_inputs, dict(zip(outputs, gradients, strict=True))


def _with_labels(batch: Batch, labels: Int[Tensor, "batch predicted"]) -> Batch:
    prompt = batch.tokens[:, : batch.prompt]
    return replace(batch, tokens=torch.cat([prompt, labels.to(prompt)], dim=1))


def _draw_labels(
    logits: Float[Tensor, "batch predicted vocabulary"], batch: Batch, seed: int
) -> Int[Tensor, "batch predicted"]:
    """A token for each target, drawn from what the model predicts there."""
    rows: list[Tensor] = []
    for number, row in enumerate(logits.detach()):
        tokens = batch.tokens[number]
        if batch.mask is not None:
            tokens = tokens[batch.mask[number]]
        # Seeded by the row itself: the order of rows, and how they are batched, change nothing.
        rng = np.random.default_rng([seed, *tokens.tolist()])
        # One draw per target from the left: padding at the end does not change those before it.
        fractions = torch.as_tensor(rng.random(len(row)), device=row.device)
        cumulative = row.double().softmax(-1).cumsum(-1)
        # The first token at which the cumulative probability reaches the fraction. Rounding can
        # leave even the last sum below it, which would be a token behind the vocabulary.
        drawn = torch.searchsorted(cumulative, fractions[:, None])
        last_token = row.shape[-1] - 1
        rows.append(drawn[:, 0].clamp(max=last_token))
    return torch.stack(rows)
