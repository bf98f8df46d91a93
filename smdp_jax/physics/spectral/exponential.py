r"""Exponential time differencing of ``dv/dt = L v + N(v)``, L diagonal.

    phi_1(z) = (e^z - 1) / z,    phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z

The linear part is exact, however stiff. Every mode has its own coefficients, computed from the
step length as it comes, so that lengths may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from smdp_jax.sde import Scalar
from smdp_jax.solve.linear import phi_functions

Rates = Float[Array, "*modes"]
Nonlinear = Callable[[Any], Any]


def etdrk4(linear: Rates, nonlinear: Nonlinear, dt: Scalar) -> Callable[[Any], Any]:
    """Build one fourth-order exponential Runge-Kutta step."""
    z = linear * dt
    phi_1, phi_2, phi_3 = phi_functions(z)
    decay, half = jnp.exp(z), jnp.exp(z / 2)
    reach = dt / 2 * phi_functions(z / 2)[0]
    outer = dt * (phi_1 - 3 * phi_2 + 4 * phi_3)
    inner = dt * (2 * phi_2 - 4 * phi_3)
    last = dt * (4 * phi_3 - phi_2)

    def step(v: Any) -> Any:
        n_v = nonlinear(v)
        a = _scaled(half, v) + _scaled(reach, n_v)
        n_a = nonlinear(a)
        b = _scaled(half, v) + _scaled(reach, n_a)
        n_b = nonlinear(b)
        c = _scaled(half, a) + _scaled(reach, 2 * n_b - n_v)
        slopes = _scaled(outer, n_v) + _scaled(inner, n_a + n_b) + _scaled(last, nonlinear(c))
        return _scaled(decay, v) + slopes

    return step


def _scaled(factor: Array, v: Array) -> Array:
    return factor.astype(v.dtype) * v
