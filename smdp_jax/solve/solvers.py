"""Which diffrax solver solves what: defaults, costs, and the solvers that do not fit."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx

from smdp_jax.checks import check_kind, check_that
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.terms import Splitting


def default_solver(sde: SDE) -> diffrax.AbstractSolver:
    """Euler or, of flow maps, ``Splitting``: both ask a score at the grid's own times."""
    return diffrax.Euler() if sde.step is None else Splitting()


def default_adaptive_solver(sde: SDE) -> diffrax.AbstractSolver:
    """Choose the adaptive solver used where the caller names none."""
    return diffrax.Tsit5() if sde.deterministic else diffrax.SPaRK()


def evaluations_per_step(solver: Any) -> int:
    """Count the drift evaluations of one step."""
    own = getattr(solver, "evaluations", None)
    if own is not None:
        return own
    tableau = getattr(solver, "tableau", None)
    if tableau is None:
        return 1
    if isinstance(tableau, diffrax.MultiButcherTableau):
        tableau = tableau.tableaus[0]
    return len(tableau.b_sol) - int(getattr(tableau, "fsal", False))


def flow_map_of(sde: SDE, solver: diffrax.AbstractSolver[Any] | None = None) -> SDE:
    """Transform a continuous drift into the flow map of one solver step per call.

    Parameters
    ----------
    sde : SDE
        Process with a drift; one with a flow map is returned as it is.
    solver : diffrax.AbstractSolver, optional
        ODE solver for dx = P dt; the default is ``diffrax.Euler()``.

    Returns
    -------
    SDE
        The process whose ``step`` is that solver's; it is walked back by the same solver.

    Raises
    ------
    ValueError
        If a solver other than ``Splitting()`` is given for a flow map.
    """
    if sde.drift is None:
        if solver is not None:
            check_solver(sde, solver)
        return sde
    stepper = diffrax.Euler() if solver is None else solver
    check_is_solver(stepper)
    term = diffrax.ODETerm(sde.drift)

    def step(t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        state = stepper.init(term, t0, t1, x, args)
        return stepper.step(term, t0, t1, x, args, state, made_jump=False)[0]

    def inverse(t1: Scalar, t0: Scalar, x: State, args: Args) -> State:
        return step(t1, t0, x, args)

    return SDE(step=step, inverse=inverse, diffusion=sde.diffusion, interval=sde.interval)


def with_root_finder(solver: diffrax.AbstractSolver, x: State) -> diffrax.AbstractSolver:
    """Give an implicit solver tolerances, where it expects those of a step size controller."""
    finder = getattr(solver, "root_finder", None)
    if finder is None or eqx.is_array_like(getattr(finder, "rtol", 0.0)):
        return solver
    # Half the digits: a stiff drift's own rounding error is far above the last one.
    tolerance = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(x))).eps) ** 0.5
    finder = optx.Newton(rtol=tolerance, atol=tolerance)
    return eqx.tree_at(lambda s: s.root_finder, solver, finder)


def check_is_solver(solver: Any) -> None:
    """Refuse what is no solver, such as a solver's class."""
    check_kind("solver", solver, "a diffrax solver, such as diffrax.Heun()", "init", "step")


def splits(solver: Any) -> bool:
    """Tell a solver of flow maps."""
    return getattr(solver, "advances_flow_maps", False)


def check_solver(
    sde: SDE, solver: Any, *, deterministic: bool | None = None, adaptive: bool = False
) -> None:
    """Refuse a solver that cannot solve this process, or is wrong for it."""
    if getattr(solver, "serves", None):  # drifts and flow maps alike
        return
    check_is_solver(solver)
    name, of_flows = type(solver).__name__, splits(solver)
    said = f"a flow map is solved by Splitting(), got {name}, which takes a drift"
    check_that(of_flows or sde.step is None, said)
    said = "Splitting() solves flow maps, got a drift: see flow_map_of"
    check_that(not of_flows or sde.step is not None, said)
    said = "HalfSolver estimates errors for adaptive steps: see solve_adaptive"
    check_that(adaptive or not isinstance(solver, diffrax.HalfSolver), said)
    said = f"solver must be one of a single drift (Heun(), ShARK() with noise), got {name}"
    check_that(not isinstance(solver, _OF_TWO_DRIFTS), said)
    said = f"solver must be one of additive noise, got {name}(): Euler() is the same, and cheaper"
    check_that(not isinstance(solver, (diffrax.ItoMilstein, diffrax.StratonovichMilstein)), said)
    if sde.deterministic if deterministic is None else deterministic:
        said = f"{name} needs noise, got an ODE: use an ODE solver such as Heun()"
        check_that(not isinstance(solver, diffrax.AbstractSRK), said)
    else:
        said = f"solver must be one of noise, such as Euler(), Heun() or ShARK(), got {name}"
        check_that(isinstance(solver, _OF_NOISE), said)


_OF_TWO_DRIFTS = (diffrax.AbstractFosterLangevinSRK, diffrax.SemiImplicitEuler)
_OF_NOISE = (
    diffrax.AbstractRungeKutta,
    diffrax.AbstractImplicitSolver,
    diffrax.AbstractSRK,
    diffrax.AbstractItoSolver,
    diffrax.AbstractStratonovichSolver,
    diffrax.AbstractWrappedSolver,
)
