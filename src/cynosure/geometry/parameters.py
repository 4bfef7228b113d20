"""The parameters of many maps in one fit: free, shared, held, and with priors.

A :class:`Block` is a vector of parameters with a name. A step of a
:class:`~cynosure.geometry.pixelmap.Composite` refers to its block by that name, so that maps that
name the same block share it: the distortion of an instrument in all of its exposures, the motion
of an exposure in all of its chips. :class:`Parameters` numbers what is free in all blocks,

    theta = (free parameters of block 1, of block 2, ...),

turns the derivatives of a map into rows of the global design, and adds observations to the
:class:`NormalEquations` of

    minimise  sum_i (r_i + A_i d)^T W_i (r_i + A_i d) + sum_k ((theta_k + d_k - m_k) / s_k)^2

over the change d, with r the residuals (map minus target) at theta. Where a map is not linear in
its parameters the step is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.pixelmap import Composite
from cynosure.ground.errors import SettingError
from cynosure.ground.numeric import LeastSquares, solve_normal

__all__ = ["Block", "NormalEquations", "Parameters"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A vector of parameters that any number of maps use.

    Attributes
    ----------
    name : str
        What the maps call it.
    values : (p,) ndarray
        The present values.
    free : bool or (p,) array of bool
        Which of them are fitted; the others are held.
    prior : float or (p,) array, optional
        Mean of the prior; the present values where absent.
    sigma : float or (p,) array, optional
        Standard deviation of the prior; infinite, or absent, is no prior.
    """

    name: str
    values: Floats
    free: Any = True
    prior: Any = None
    sigma: Any = None

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=float)
        given = {
            "values": values, "free": np.asarray(self.free, dtype=bool),
            "prior": values if self.prior is None else np.asarray(self.prior, dtype=float),
            "sigma": np.inf if self.sigma is None else np.asarray(self.sigma, dtype=float),
        }
        for key, value in given.items():
            if np.shape(value) not in ((), values.shape):
                raise SettingError(
                    "block {name}: {n} values, but {key} has the shape {shape}",
                    name=self.name, n=len(values), key=key, shape=np.shape(value),
                )
            object.__setattr__(self, key, np.broadcast_to(value, values.shape).copy())
        if not np.all(self.sigma > 0):
            raise SettingError(
                "block {name}: a prior needs a sigma above zero", name=self.name,
                hint="Hold a parameter with free=False.",
            )


class NormalEquations:
    """``N d = b`` of a weighted least-squares problem, summed observation by observation.

    Attributes
    ----------
    matrix : (p, p) ndarray
    right : (p,) ndarray
    n_points : int
        Equations added, priors among them.
    """

    def __init__(self, size: int) -> None:
        self.matrix, self.right, self.n_points = np.zeros((size, size)), np.zeros(size), 0

    def add(self, columns: Ints, design: Floats, weight: Floats, residual: Floats) -> None:
        """Add observations that depend on some of the parameters.

        Parameters
        ----------
        columns : (q,) ndarray of int
            Their global indices, each once.
        design : (n, 2, q) ndarray
        weight : (n, 3) ndarray
            The inverse covariances: xx, yy, xy. A zero leaves an observation out.
        residual : (n, 2) ndarray
            Map minus target, before the change.
        """
        w = np.stack([weight[:, [0, 2]], weight[:, [2, 1]]], axis=1)
        wa = w @ design
        flat = design.reshape(-1, len(columns))
        self.matrix[np.ix_(columns, columns)] += flat.T @ wa.reshape(flat.shape)
        self.right[columns] -= wa.reshape(flat.shape).T @ residual.ravel()
        self.n_points += 2 * int(np.count_nonzero(weight[:, 0]))

    def solve(self, what: str = "joint fit") -> LeastSquares:
        """Return the change and its covariance.

        Raises
        ------
        Degenerate
            If the observations and priors do not determine the parameters.
        """
        return solve_normal(self.matrix, self.right, self.n_points, what=what)


class Parameters:
    """Blocks of parameters, and the place of each free one in a global vector.

    Parameters
    ----------
    blocks : iterable of Block
        Of different names.

    Raises
    ------
    SettingError
        If two blocks have the same name.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks: dict[str, Block] = {}
        self._columns: dict[str, Ints] = {}
        size = 0
        for block in blocks:
            if block.name in self.blocks or not block.name:
                raise SettingError("two parameter blocks are named {name!r}, or one has no name",
                                   name=block.name)
            self.blocks[block.name] = block
            count = int(np.count_nonzero(block.free))
            self._columns[block.name] = np.arange(size, size + count)
            size += count
        self.size = size

    @property
    def vector(self) -> Floats:
        """The free parameters, (p,)."""
        return np.concatenate(
            [np.zeros(0), *(b.values[b.free] for b in self.blocks.values())]
        )

    def with_vector(self, vector: Floats) -> Parameters:
        """Return the blocks with other values of the free parameters."""
        new = []
        for name, block in self.blocks.items():
            values = block.values.copy()
            values[block.free] = np.asarray(vector)[self._columns[name]]
            new.append(replace(block, values=values))
        return Parameters(new)

    def block(self, name: str) -> Block:
        """Return a block.

        Raises
        ------
        SettingError
            If there is none of that name.
        """
        if name not in self.blocks:
            raise SettingError(
                "there is no parameter block {name!r}", name=name,
                hint=f"There are {', '.join(self.blocks)}.",
            )
        return self.blocks[name]

    def columns(self, name: str) -> Ints:
        """Return the places of a block's free parameters in the global vector."""
        return self._columns[self.block(name).name]

    def bound(self, composite: Composite) -> Composite:
        """Return a composition whose steps have the values of their blocks."""
        steps = tuple(
            step.with_parameters(self.block(name).values) if name else step
            for step, name in zip(composite.steps, composite.blocks)
        )
        return replace(composite, steps=steps)

    def design(
        self, composite: Composite, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None
    ) -> tuple[Ints, Floats]:
        """Return how the image of points depends on the free parameters.

        Parameters
        ----------
        composite : Composite
            Bound to these parameters (:meth:`bound`).
        x, y, color : (n,) array_like

        Returns
        -------
        columns : (q,) ndarray of int
            The parameters that it depends on, each once and rising.
        design : (n, 2, q) ndarray
            A block that several steps share has the sum of their derivatives.
        """
        wanted = tuple(bool(name) and len(self.columns(name)) > 0 for name in composite.blocks)
        every = composite.derivatives_by_step(x, y, color, wanted)
        used = [k for k, want in enumerate(wanted) if want]
        if not used:
            return np.zeros(0, dtype=np.intp), np.zeros((len(np.atleast_1d(x)), 2, 0))
        columns = np.unique(np.concatenate([self.columns(composite.blocks[k]) for k in used]))
        design = np.zeros((*every[used[0]].shape[:-1], len(columns)))
        for k in used:
            name = composite.blocks[k]
            place = np.searchsorted(columns, self.columns(name))
            design[..., place] += every[k][..., self.blocks[name].free]
        return columns, design

    def normal_equations(self) -> NormalEquations:
        """Return normal equations with the priors and no observations yet."""
        normal = NormalEquations(self.size)
        for name, block in self.blocks.items():
            known = np.isfinite(block.sigma) & block.free
            columns = self.columns(name)[known[block.free]]
            weight = 1.0 / np.asarray(block.sigma)[known] ** 2
            normal.matrix[columns, columns] += weight
            normal.right[columns] += weight * (np.asarray(block.prior) - block.values)[known]
            normal.n_points += len(columns)
        return normal

    def chi2_prior(self) -> float:
        """Return the sum of the squared distances from the priors, in their sigma."""
        return float(sum(
            np.sum(((b.values - b.prior) / b.sigma)[b.free] ** 2)
            for b in self.blocks.values()
        ))
