r"""Backward steps that are exact for the linear part and a reference Gaussian of p_t.

Per mode of a unitary transform, forward ``dx = [-kappa x + n(t, x)] dt + g dW``, a Gaussian
N(m, C) near p_t, score ``s = -(x - m) / C + r``. Over one step from t1 back to t0, Delta = t1 - t0,

    d = exp(-kappa Delta),  q = g^2 Delta phi_1(-2 Re kappa Delta),  C_1 = |d|^2 C_0 + q,
    rho^2 = |d|^2 C_0 / C_1,

and a process of noise level alpha that keeps the marginals is, for n and r given,

    x0 = m_0 + G (x1 - d m_0 - n_hat) + C_0 (1 - rho^(1 + alpha^2)) r_0
         + sqrt(C_0 (1 - rho^(2 alpha^2))) z,
    G = sqrt(C_0 / C_1) rho^(alpha^2) e^(i Im kappa Delta),

with the nonlinear increment n_hat = F(x0) - d x0 of the forward flow. At alpha = 1 this is Bayes'
rule, variance (1/C_0 + |d|^2/q)^-1; at alpha = 0 the map x0 = m_0 + sqrt(C_0 / C_1) (x1 - m_1).
For: the flow of ``dy = -(kappa - (1 + alpha^2) g^2 / 2C) y dt`` follows from C' = -2 kappa C + g^2,
and a tilt r_0 of p_t0 is seen at t1 as ``r_1 = d C_0 / C_1 r_0``. First order: that, with r_1,
which at alpha = 1 is Tweedie's formula, exact in the mean for every p_t0, and the factor at most
e^(1/2), since it multiplies a network's error where the step has forgotten the past. Second order:
the mean of that and of r at the predicted x0 (with its noise: Heun's scheme, weak order 2).
"""

from functools import partial
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_that, concrete
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.condition_splines import with_conditions
from smdp_jax.solve.linear import LinearPart, phi_functions, rates_at, times, to_modes, to_state
from smdp_jax.solve.linearise import Curvature, Linearised
from smdp_jax.solve.terms import Splitting

_FARTHEST = 0.5  # nats by which the remainder at t1 is carried back to t0


class _Mode(eqx.Module):
    """Coefficients of one step for the modes of one leaf."""

    mean: Array
    decay: Array
    gain: Array
    weight: Array
    transport: Array
    variance: Array
    later: Array
    phi: tuple[Array, Array]


def is_mode(node: Any) -> bool:
    """Tell the coefficients of a leaf."""
    return isinstance(node, _Mode)


class GaussianSolver(Splitting):
    """``GaussianStep`` bound to a process and a score: steps in tau = -t, noise from the terms."""

    sde: SDE = eqx.field(static=True)
    score: ScoreFn
    linear: LinearPart | Linearised
    reference: Any
    stages: int = eqx.field(static=True)
    noise_level: float = eqx.field(static=True)
    first: Any
    serves: ClassVar = "drifts and flow maps"

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple:
        """Advance from tau = t0 to t1, that is from time -t0 back to -t1."""
        z = jax.tree.map(jnp.zeros_like, y0)
        if isinstance(terms, diffrax.MultiTerm):
            noise = terms.terms[1]
            increment, dt = noise.contr(t0, t1), jnp.asarray(t1 - t0)
            # The terms say g alpha, or what training adds; the variances hold g alpha already.
            level = self.noise_level or 1.0
            white = lambda own, g, w: own / (level * g) * w / jnp.sqrt(dt).astype(w.dtype)
            z = jax.tree.map(white, noise.vf(t0, y0, args), self.sde.g(-t0, y0), increment)
        y1 = self.advance(-t1, -t0, y0, args, z)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def moments(self, t: Scalar, x: State, args: Args = None) -> State:
        """Pairs (mean, variance) of the reference, leaf by leaf like the modes of a state."""
        modes = jax.eval_shape(partial(to_modes, self.linear.transform), x)
        of = getattr(self.reference, "moments", None)
        if isinstance(self.reference, Curvature):
            mean, variance = self.reference.moments(self.score, t, args)
        else:
            found = with_conditions(of or self.reference, t, args)
            mean, variance = found if of is not None else (None, found)

        def spread(value: Any, like: State) -> State:
            one = jax.tree.structure(value) == jax.tree.structure(0.0)
            return jax.tree.map(lambda _: value, like) if one else value

        if mean is None:
            mean = jax.tree.map(lambda _: jnp.zeros(()), modes)
        elif self.linear.transform is not None and not any(map(jnp.ndim, jax.tree.leaves(mean))):
            # One number per leaf of the state is a constant field.
            fields = jax.tree.map(
                lambda v, m: jnp.full(jnp.shape(v), m, jnp.result_type(v)), x, spread(mean, x)
            )
            mean = to_modes(self.linear.transform, fields)

        def pair(w: Any, m: Any, c: Any) -> tuple[Array, Array]:
            real = jnp.finfo(w.dtype).dtype
            m, c = jnp.asarray(m), jnp.asarray(c)
            said = f"the reference Gaussian must be scalars, or of shape {w.shape} like the"
            for shape in (m.shape, c.shape):
                check_that(shape in ((), w.shape), f"{said} modes", shape)
            return m.astype(w.dtype if jnp.iscomplexobj(m) else real), c.astype(real)

        return jax.tree.map(pair, modes, spread(mean, modes), spread(variance, modes))

    def check_reference(self, ts: Array, x: State, args: Args) -> None:
        """Look at the reference's variances at the times of a grid."""
        if isinstance(self.reference, Curvature) or not concrete(ts, self.reference):
            return
        tables = jax.vmap(lambda t: self.variances(t, x, args))(jnp.asarray(ts))
        said = "variances of the reference Gaussian must be at least 0, got"
        for variance in jax.tree.leaves(tables):
            worst = np.min(np.asarray(variance)) if concrete(variance) else 0.0
            check_that(worst >= 0, f"{said} {worst}")

    def variances(self, t: Scalar, x: State, args: Args = None) -> State:
        """Those of the reference, like the modes of a state."""
        modes = jax.eval_shape(partial(to_modes, self.linear.transform), x)
        return jax.tree.map(lambda _, pair: pair[1], modes, self.moments(t, x, args))

    def coefficients(self, t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        """Coefficients of the step from t1 back to t0, a ``_Mode`` per leaf."""
        modes = jax.eval_shape(partial(to_modes, self.linear.transform), x)
        alpha = self.noise_level**2
        trees = [self.sde.g_of_step(t0, t1, x), rates_at(self.linear, args, modes, t0, t1)]
        trees += [self.moments(t0, x, args)]
        if self.sde.step is not None and isinstance(self.linear, Linearised):
            trees += [self.moments(t1, x, args)]

        def leaf(w: Any, g: Array, kappa: Array, pair: tuple[Array, Array], *late: Any) -> _Mode:
            m, c0 = pair
            real = c0.dtype
            dt = jnp.asarray(t1 - t0).astype(real)
            g = g.astype(real)
            decay_rate = jnp.real(kappa)
            size = jnp.exp(-decay_rate * dt)
            q = g * g * dt * phi_functions(-2 * dt * decay_rate)[0]
            for _, c1 in late:
                # A simulator's noise may have decayed within a step, or come after it: the score
                # tells by its variances.
                q = jnp.clip(c1 - size * size * c0, jnp.minimum(q, c1), g * g * dt)
            # log rho by log1p: rho is 1 - O(dt) for short steps, and 0 where C_0 or d vanish.
            log_rho = -0.5 * jnp.log1p(q / (size * size * c0))
            later = size * size * c0 + q
            root = jnp.sqrt(c0 / later)
            gain = root * jnp.exp(alpha * log_rho) if alpha else root  # log rho may be -inf
            decay = size
            transport = jnp.exp(-jnp.maximum(log_rho + jnp.log(root), -_FARTHEST))
            z = -kappa * dt.astype(kappa.dtype)
            if jnp.iscomplexobj(kappa):
                angle = jnp.imag(kappa) * dt
                turn = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
                gain, transport, decay = times(gain, turn), times(transport, turn), jnp.exp(z)
            phi_1, phi_2, _ = phi_functions(z)
            # Training windows may add noise at alpha = 0 too: then the variance is that of 1.
            spread = c0 * -jnp.expm1(2 * (alpha or 1.0) * log_rho)
            weight = c0 * -jnp.expm1((1 + alpha) * log_rho)
            phi = times(dt, phi_1), times(dt, phi_2)
            return _Mode(m, decay, gain, weight, transport, spread, later, phi)

        return jax.tree.map(leaf, modes, *trees)

    def remainder(self, t: Scalar, x: State, args: Args) -> State:
        """The score less that of the reference, per mode."""
        w, s = (to_modes(self.linear.transform, v) for v in (x, self.score(t, x, args)))

        def leaf(w: Array, s: Array, pair: tuple[Array, Array]) -> Array:
            mean, variance = pair
            return s + times(1 / variance, w - mean.astype(w.dtype))

        return jax.tree.map(leaf, w, s, self.moments(t, x, args))

    def increments(self, t0: Scalar, t1: Scalar, x: State, args: Args, later: bool) -> State:
        """What the nonlinear physics does over the step, looked at from ``x`` at t0 or t1."""
        w = to_modes(self.linear.transform, x)
        if self.sde.drift is not None:
            p = to_modes(self.linear.transform, self.sde.drift(t1 if later else t0, x, args))
            rates = rates_at(self.linear, args, w, t0, t1)
            return jax.tree.map(lambda p, k, w: p + times(k, w), p, rates, w)
        assert self.sde.step is not None
        return to_modes(self.linear.transform, self.sde.step(t0, t1, x, args))

    def advance(self, t0: Scalar, t1: Scalar, x1: State, args: Args, z: State) -> State:
        """One step from x1 at t1 back to t0, with white noise z."""
        space = self.linear
        modes = self.coefficients(t0, t1, x1, args)
        w1, kicks = to_modes(space.transform, x1), to_modes(space.transform, z)
        flat, tree = jax.tree.flatten(modes, is_leaf=is_mode)
        last = t0 <= self.first

        s1 = to_modes(space.transform, self.score(t1, x1, args))

        def combine(n: State, r0: State | None) -> State:
            def leaf(c: _Mode, w: Array, s: Array, n: Array, z: Array, r0: Any) -> Array:
                m = jnp.broadcast_to(c.mean, w.shape).astype(w.dtype)
                off = w - times(c.decay, m) - n
                # What the score has beyond the reference of t0, pushed on to t1.
                r = times(c.transport, s + times(1 / c.later, off))
                r = r if r0 is None else jnp.where(last, r, 0.5 * (r + r0))
                return m + times(c.gain, off) + times(c.weight, r) + times(jnp.sqrt(c.variance), z)

            r0 = jax.tree.map(lambda _: None, w1) if r0 is None else r0
            trees = [tree.flatten_up_to(v) for v in (w1, s1, n, kicks, r0)]
            return tree.unflatten([leaf(*each) for each in zip(flat, *trees, strict=True)])

        def minus_linear(moved: State, w: State) -> State:
            less = lambda c, y, w: y - times(c.decay, w)
            return jax.tree.map(less, modes, moved, w, is_leaf=is_mode)

        drift = self.sde.drift is not None
        n1 = self.increments(t0, t1, x1, args, later=True)
        if drift:
            first = jax.tree.map(lambda c, n: times(c.phi[0], n), modes, n1, is_leaf=is_mode)
        else:
            first = minus_linear(n1, w1)
        w0 = combine(first, None)
        if self.stages == 1:
            return to_state(space.transform, w0)
        x0 = to_state(space.transform, w0)
        # The first time of the grid may be singular, and no learned score has seen it: one step of
        # first order does not change the order of the whole.
        there = jax.tree.map(lambda a, b: jnp.where(last, a, b), x1, x0)
        r0 = self.remainder(jnp.where(last, t1, t0), there, args)
        n0 = self.increments(t0, t1, x0, args, later=False)
        if drift:
            both = lambda c, a, b: times(c.phi[0], a) + times(c.phi[1], b - a)
            n = jax.tree.map(both, modes, n0, n1, is_leaf=is_mode)
        else:
            # The path between noisy ends sees the mean of both: the flow from x0, shifted by half
            # of how the increments at x1 and at its end differ.
            end = to_state(space.transform, n0)
            onward = minus_linear(self.increments(t0, t1, end, args, later=False), n0)
            n = jax.tree.map(lambda a, b, c: a + 0.5 * (b - c), minus_linear(n0, w0), first, onward)
        return to_state(space.transform, combine(n, r0))
