"""What does sampling by ``sample_posterior`` cost, against a hand-written Euler-Maruyama loop?

    python benchmarks/sampling.py

*Overhead*: the same backward solve by ``sample_posterior`` (diffrax's Euler) and by twenty lines of
``lax.scan`` over a batched state, same score network, same number of normal draws, in one process
and in turn: fields of 32 x 32 points with a U-Net, and scalars (the quadratic SDE) with an MLP.
``sample_posterior`` also looks at the largest score up to 16 times on its way, which the loop does
not: over few steps that is most of the difference.

*1000 paths*: the quadratic SDE with an MLP, 500 steps, by ``sample_posterior`` (noise level 1: the
reverse-time SDE; 0: the probability flow) and by ``probability_flow`` under ``vmap``, with and
without the caller's ``jit``.

*diffrax's loop*: our scan over diffrax's steps beside ``diffrax.diffeqsolve`` with ``StepTo`` on
the same grid, with the same noise (states agree to rounding), forward and with the gradient of the
end in the start, for scalars with a cheap drift, where a loop costs most, and with an MLP.

Networks have random parameters: what they cost does not depend on them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import harness
import jax
import jax.numpy as jnp
import timing
from jax.flatten_util import ravel_pytree

import smdp_jax as smdp
from smdp_jax.physics import Quadratic
from smdp_jax.solve.integrate import advance
from smdp_jax.solve.reversal import reverse_sde
from smdp_jax.solve.terms import GridNoise, levy_area_of, terms_of


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    fields: int = 16
    """Fields solved at once."""
    field_steps: tuple[int, ...] = (32, 64, 128)
    """Numbers of steps on fields; the target is for the last."""
    channels: tuple[int, ...] = (16, 32, 48)
    """Channels of the U-Net."""
    scalars: int = 1000
    """Paths of the quadratic SDE."""
    scalar_steps: int = 500
    """Steps of the quadratic SDE."""
    repeats: int = 7
    """Rounds on scalars; half as many on fields."""


def random_score(model: Any, x: Any) -> smdp.LearnedScore:
    """Give a network random parameters, small enough that no path leaves the data."""
    flat, unravel = ravel_pytree(model.init(jax.random.key(0), jnp.ones(()), x, None))
    # The last layers start at zero: a compiler must not be given the chance to see that.
    noise = jax.random.normal(jax.random.key(1), flat.shape)
    return smdp.LearnedScore(model, unravel(flat + 1e-3 * noise))


def by_hand(
    sde: smdp.SDE, score: smdp.LearnedScore, ts: jax.Array, noise_level: float
) -> Callable[[Any, Any], Any]:
    """Write Euler-Maruyama backward in time by hand, for a batch of states."""
    drift, g = sde.drift, sde.diffusion
    assert drift is not None
    weight = (1 + noise_level**2) / 2

    @jax.jit
    def solve(x_end: Any, key: Any) -> Any:
        def step(x: Any, i: Any) -> tuple[Any, None]:
            t, dt = ts[-1 - i], ts[-1 - i] - ts[-2 - i]
            speed = jax.vmap(
                lambda x: weight * g**2 * score(t, x, None) - drift(t, x, None),
            )(x)
            x = x + dt * speed
            if noise_level > 0:
                z = jax.random.normal(jax.random.fold_in(key, i), x.shape)
                x = x + noise_level * g * jnp.sqrt(dt) * z
            return x, None

        return jax.lax.scan(step, x_end, jnp.arange(ts.shape[0] - 1))[0]

    return solve


def overhead(
    what: str,
    sde: smdp.SDE,
    score: smdp.LearnedScore,
    x_end: jax.Array,
    ts: jax.Array,
    repeats: int,
) -> dict[str, Any]:
    """Time ``sample_posterior`` against the loop."""
    harness.say(f"overhead: {what}, {len(ts) - 1} steps")
    loop, key = by_hand(sde, score, ts, 1.0), jax.random.key(2)

    def ours() -> Any:
        return smdp.sample_posterior(
            sde, score, x_end, ts, num_samples=1, key=key, batch_axes=1
        ).samples

    times = timing.interleave({"ours": ours, "loop": lambda: loop(x_end, key)}, repeats)
    return {
        "problem": what,
        "steps": len(ts) - 1,
        "ours, least s": times["ours"].least,
        "loop, least s": times["loop"].least,
        **timing.ratio(times["ours"], times["loop"]),
        "ours, compile s": times["ours"].compilation,
        "loop, compile s": times["loop"].compilation,
    }


class GridPath(diffrax.AbstractBrownianPath):
    """The noise of our loop as one path: the draw of the step that starts at t0."""

    ts: jax.Array
    key: Any
    x: Any
    levy_area: type = eqx.field(static=True)
    t0: Any = eqx.field(static=True, default=-jnp.inf)
    t1: Any = eqx.field(static=True, default=jnp.inf)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """Draw the increment of one step."""
        key = jax.random.fold_in(self.key, jnp.searchsorted(self.ts, t0))
        noise = GridNoise.like(self.x, key, self.levy_area)
        return noise.evaluate(t0, t1, left, use_levy)


def loops(settings: Settings) -> list[dict[str, Any]]:
    """Time our loop and diffrax's over the same steps."""
    ts = smdp.linear_grid(0.0, 10.0, settings.scalar_steps)
    starts = jnp.linspace(-0.1, 0.1, settings.scalars)[:, None]
    keys = jax.random.split(jax.random.key(5), settings.scalars)
    well = smdp.SDE(lambda t, x, args: x - x**3, diffusion=0.1)
    score = random_score(smdp.models.MLP(), starts[0])
    back = reverse_sde(Quadratic().sde(), score)
    rows = []
    for name, sde, grid in (("cheap drift", well, ts), ("MLP", back, -ts[::-1])):
        for solver in (diffrax.Euler(), diffrax.Heun()):

            def ours(x: Any, key: Any, sde: Any = sde, grid: Any = grid, s: Any = solver) -> Any:
                return advance(sde, x, grid, key=key, solver=s, save="last")[0]

            def theirs(x: Any, key: Any, sde: Any = sde, grid: Any = grid, s: Any = solver) -> Any:
                path = GridPath(grid, key, x, levy_area_of(s))
                ys = diffrax.diffeqsolve(
                    terms_of(sde, path),
                    s,
                    grid[0],
                    grid[-1],
                    None,
                    x,
                    stepsize_controller=diffrax.StepTo(grid),
                    max_steps=len(grid),
                ).ys
                assert ys is not None
                return ys[0]

            ends = [jax.jit(jax.vmap(f)) for f in (ours, theirs)]
            apart = float(jnp.abs(ends[0](starts, keys) - ends[1](starts, keys)).max())
            grads = [
                jax.jit(jax.grad(lambda x, f=f: jax.vmap(f)(x, keys).sum())) for f in (ours, theirs)
            ]
            harness.say(f"loops: {name}, {type(solver).__name__}")
            times = timing.interleave(
                {
                    "ours": lambda f=ends[0]: f(starts, keys),
                    "theirs": lambda f=ends[1]: f(starts, keys),
                    "our gradient": lambda f=grads[0]: f(starts),
                    "their gradient": lambda f=grads[1]: f(starts),
                },
                settings.repeats,
            )
            rows.append(
                {
                    "paths": f"{name}, {type(solver).__name__}",
                    "apart": apart,
                    **{f"{name}, least s": taken.least for name, taken in times.items()},
                    "diffrax / ours": times["theirs"].least / times["ours"].least,
                    "gradient, diffrax / ours": times["their gradient"].least
                    / times["our gradient"].least,
                }
            )
    return rows


def thousand_paths(settings: Settings) -> tuple[list[dict[str, Any]], list[harness.Target]]:
    """Time many backward paths of the quadratic SDE."""
    harness.say("1000 paths")
    sde = Quadratic().sde()
    score = random_score(smdp.models.MLP(), jnp.ones(1))
    ts = smdp.linear_grid(0.0, 10.0, settings.scalar_steps)
    ends = jnp.linspace(-0.1, 0.1, settings.scalars)[:, None]
    key = jax.random.key(3)

    def sample(noise_level: float) -> Any:
        return smdp.sample_posterior(
            sde,
            score,
            ends,
            ts,
            num_samples=1,
            key=key,
            noise_level=noise_level,
            batch_axes=1,
        ).samples

    def flow(x: Any) -> Any:
        return smdp.probability_flow(sde, score, x, ts).xs

    jitted = jax.jit(jax.vmap(flow))
    sde_loop, ode_loop = (by_hand(sde, score, ts, level) for level in (1.0, 0.0))
    sde_name, ode_name = "SDE: sample_posterior", "ODE: jit(vmap(probability_flow))"
    cases = {
        sde_name: lambda: sample(1.0),
        "ODE: sample_posterior, noise level 0": lambda: sample(0.0),
        ode_name: lambda: jitted(ends),
        "ODE: vmap(probability_flow)": lambda: jax.vmap(flow)(ends),
        "SDE: loop by hand": lambda: sde_loop(ends, key),
        "ODE: loop by hand": lambda: ode_loop(ends, key),
    }
    times = timing.interleave(cases, settings.repeats)
    rows = [{"paths": name, **taken.row()} for name, taken in times.items()]
    targets = [
        harness.Target("1000 paths, SDE: least s", times[sde_name].least, 0.2),
        harness.Target("1000 paths, ODE: least s", times[ode_name].least, 0.1),
    ]
    return rows, targets


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {
        "fields": 2,
        "field_steps": (4,),
        "channels": (4, 4),
        "scalars": 50,
        "scalar_steps": 20,
        "repeats": 2,
    }
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    # A drift of no cost and no danger: what is to be seen is the solver beside the network.
    decay = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    x_end = jax.random.normal(jax.random.key(4), (settings.fields, 32, 32))
    unet = random_score(smdp.models.UNet(settings.channels), x_end[0])
    rows = [
        overhead(
            f"{settings.fields} fields, U-Net",
            decay,
            unet,
            x_end,
            smdp.linear_grid(0.0, 0.2, steps),
            max(settings.repeats // 2, 1),
        )
        for steps in settings.field_steps
    ]
    scalars = jnp.linspace(-0.1, 0.1, settings.scalars)[:, None]
    rows.append(
        overhead(
            f"{settings.scalars} scalars, MLP",
            Quadratic().sde(),
            random_score(smdp.models.MLP(), scalars[0]),
            scalars,
            smdp.linear_grid(0.0, 10.0, settings.scalar_steps),
            settings.repeats,
        )
    )
    paths, targets = thousand_paths(settings)
    targets = [
        harness.Target("overhead on fields", rows[-2]["median ratio"], 1.15),
        harness.Target("overhead on scalars", rows[-1]["median ratio"], 2.0),
        *targets,
    ]
    tables = {
        "Overhead over a hand-written loop": rows,
        "1000 paths of the quadratic SDE": paths,
        "diffrax's loop beside ours": loops(settings),
    }
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
