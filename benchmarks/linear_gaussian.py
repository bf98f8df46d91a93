"""Dense answers for linear sensors of the heat equation, and its steps without error."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.physics.exact.law import noise_variance
from smdp_jax.scores.reference import Fourier
from smdp_jax.solve.covariance import Spread


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactHeatSteps:
    """Both laws of a step of the continuous process, mode by mode; the score's remainder tilts."""

    system: physics.Heat = field(metadata={"static": True})

    def forward(self, t0: Any, t1: Any, x: Any, args: Any) -> tuple[Any, Spread]:
        factor = jnp.exp(-self._rates(args) * (t1 - t0)).astype(x.dtype)
        variance = noise_variance(self._rates(args), self.system.noise, t1 - t0)
        spread = Spread(variance.astype(x.dtype), Fourier())
        return Spread(factor, Fourier()).power(1.0, x), spread

    def _rates(self, args: Any) -> Any:
        """``args``: the diffusivity over the system's, 1 if None."""
        return self.system.decay_rates() * (1.0 if args is None else args)

    def backward(self, score: Any, t1: Any, t0: Any, x: Any, args: Any) -> tuple[Any, Spread]:
        before, after = (self.system.marginal_variance(t).astype(x.dtype) for t in (t0, t1))
        decay = jnp.exp(-self.system.decay_rates() * (t1 - t0)).astype(x.dtype)
        noise = self.system.noise_variance(t1 - t0).astype(x.dtype)
        variance = before * noise / (noise + decay**2 * before)
        remainder = score(t1, x, args) + Spread(1 / after, Fourier()).power(1.0, x)
        pulled = Spread(decay / noise, Fourier()).power(1.0, x) + remainder
        spread = Spread(variance, Fourier())
        return spread.power(1.0, pulled), spread

    def log_density(self, t: Any, x: Any, args: Any) -> Any:
        """Log p_t, of the diffusivity that ``args`` says."""
        rates = self._rates(args)
        grown = noise_variance(rates, self.system.noise, t)
        variance = self.system.prior_variance() * jnp.exp(-2 * rates * t) + grown
        return Spread(variance.astype(x.dtype), Fourier()).log_density(x)


def euler_elbo(
    system: physics.Heat, ts: Any, x_end: Any, scale: float = 1.0, shift: Any = 0.0
) -> tuple[float, float]:
    """Mean log weight of Euler's backward chain and log p of its forward chain, in float64.

    The score is ``scale * exact + shift``; closed forms, mode by mode.
    """
    ts = np.asarray(ts, np.float64)
    with jax.enable_x64(True):
        kappa = np.asarray(system.decay_rates(), np.float64)
        marginals = [np.asarray(system.marginal_variance(t), np.float64) for t in ts]
    modes = lambda x: np.fft.fft2(np.asarray(x, np.float64), norm="ortho")
    push = modes(np.broadcast_to(shift, x_end.shape))
    mean, variance, first = modes(x_end), np.zeros_like(kappa), marginals[0]
    total, chain = 0.0, first
    for j in range(len(ts) - 2, -1, -1):
        dt = ts[j + 1] - ts[j]
        noise = system.noise**2 * dt
        back = 1 + dt * kappa - noise * scale / marginals[j + 1]
        onward, drive = 1 - dt * kappa, noise * push
        gap = np.abs((1 - onward * back) * mean - onward * drive) ** 2
        gap = gap + (1 - onward * back) ** 2 * variance + onward**2 * noise
        total += 0.5 * np.sum(1 - gap / noise)
        mean, variance = back * mean + drive, back**2 * variance + noise
    total -= 0.5 * np.sum((np.abs(mean) ** 2 + variance) / first + np.log(2 * np.pi * first))
    for j in range(len(ts) - 1):
        dt = ts[j + 1] - ts[j]
        chain = (1 - dt * kappa) ** 2 * chain + system.noise**2 * dt
    evidence = -0.5 * np.sum(np.abs(modes(x_end)) ** 2 / chain + np.log(2 * np.pi * chain))
    return float(total), float(evidence)


def exact_heat_paths(system: physics.Heat, ts: Any, key: Any, count: int) -> smdp.Trajectories:
    """Paths of the continuous process, without error of the steps."""
    steps = ExactHeatSteps(system)

    def path(x0: Any, key: Any) -> Any:
        def step(x: Any, i: Any) -> tuple[Any, Any]:
            mean, spread = steps.forward(ts[i], ts[i + 1], x, None)
            white = jax.random.normal(jax.random.fold_in(key, i), x.shape)
            return (mean + spread.power(0.5, white),) * 2

        return jnp.concatenate([x0[None], jax.lax.scan(step, x0, jnp.arange(len(ts) - 1))[1]])

    k_prior, k_noise = jax.random.split(key)
    x0 = system.prior(k_prior, count)
    return smdp.Trajectories(ts, jax.jit(jax.vmap(path))(x0, jax.random.split(k_noise, count)))
