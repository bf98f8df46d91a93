"""What one state says of sensors to come: regression on paths, and again where physics bends."""

import jax
import jax.numpy as jnp
import numpy as np

import smdp_jax as smdp


def test_twist_of_a_tree_with_few_paths_predicts_what_sensors_show():
    """Regression on components: whitened misses of unseen paths have unit variance (to 15 %)."""
    ts = jnp.linspace(0.0, 1.0, 5)
    sde = smdp.SDE(lambda t, x, args: {"u": x["v"], "v": -x["u"] - 0.3 * x["v"]}, diffusion=0.2)
    keys = jax.random.split(jax.random.key(0), 3)
    x0 = {n: jax.random.normal(k, (800, 3)) for n, k in zip("uv", keys, strict=False)}
    paths = smdp.simulate(sde, x0, ts, key=keys[2], substeps=8)
    seen = [smdp.LinearObservation(0.5, lambda x: x["u"][:2], jnp.zeros(2), 0.01)]
    half = lambda cut: smdp.Trajectories(ts, jax.tree.map(lambda x: x[cut], paths.xs))
    twist = smdp.LinearTwist.of(half(slice(0, 400)), seen)
    gain, offset, residual = twist.at(ts[4])
    test = half(slice(400, None))
    flat = jnp.concatenate([test.xs["u"][:, 4], test.xs["v"][:, 4]], axis=1)
    miss = test.xs["u"][:, 2, :2] - flat @ gain.T - offset[None]
    white = np.linalg.solve(np.linalg.cholesky(np.asarray(residual)), np.asarray(miss).T)
    assert abs(np.mean(white**2) - 1) < 0.15
    assert float(jnp.abs(twist.at(ts[1])[0]).max()) == 0
    np.testing.assert_array_equal(twist.at(ts[2])[0][:, :3], np.eye(3)[:2])


def _turn(x, dt):
    """Pairs turn, far ones faster; standard normals stay what they are."""
    z = x.reshape(-1, 2)
    angle = dt * (1.2 + 0.3 * (z**2).sum(axis=1))
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * z[:, 0] - s * z[:, 1], s * z[:, 0] + c * z[:, 1]], axis=1).reshape(-1)


def _decay(dt, sign):
    return jnp.exp(-0.5 * sign * dt * 0.2**2)


TURNING = smdp.SDE(
    step=lambda t0, t1, x, args: _decay(t1 - t0, 1) * _turn(x, t1 - t0),
    inverse=lambda t1, t0, x, args: _turn(_decay(t1 - t0, -1) * x, t0 - t1),
    diffusion=0.2,
)


def _turned(times, pairs, noise, twist):
    """Condition pairs seen at some of 25 times by one coordinate each; and what was seen."""
    keys = jax.random.split(jax.random.key(5), 4)
    ts, normal = jnp.linspace(0.0, 1.0, 25), jax.random.normal
    data = smdp.simulate(TURNING, normal(keys[0], (1024, 2 * pairs)), ts, key=keys[0])
    truth = smdp.simulate(TURNING, normal(keys[1], (1, 2 * pairs)), ts, key=keys[1]).xs[0]
    miss = noise * normal(keys[2], (len(times), pairs))
    values = truth[jnp.asarray(times), 1::2] + miss
    seen = [
        smdp.LinearObservation(float(ts[i]), np.s_[1::2], value, noise**2)
        for i, value in zip(times, values, strict=True)
    ]
    found = smdp.condition(
        TURNING,
        lambda t, x, args: -x,
        seen,
        ts,
        num_particles=192,
        key=keys[3],
        data=data,
        twist=twist,
    )
    return found, values


def test_a_twist_is_learned_again_where_physics_is_not_linear():
    """Mean, spread and evidence of independent pairs; each pair's by importance weights.

    Means to five standard errors of as many independent draws as are stated, spread and evidence
    likewise: 1e-5 over the ten comparisons.
    """
    noise, times = 0.12, (6, 14, 24)
    found, values = _turned(times, 3, noise, "learn")
    assert int(found.info.rounds) > 1
    independent = float(found.info.independent)
    assert independent > 40
    start = jax.random.normal(jax.random.key(10), (1 << 16, 2))
    paths = smdp.simulate(TURNING, start, jnp.linspace(0.0, 1.0, 25), key=jax.random.key(11))
    shown = paths.xs[:, jnp.asarray(times), 1]
    evidence = 0.0
    for k in range(3):
        miss = (values[:, k][None] - shown) / noise
        logs = jnp.sum(-0.5 * miss**2 - np.log(noise * np.sqrt(2 * np.pi)), axis=1)
        weights = jax.nn.softmax(logs)
        evidence += float(jax.nn.logsumexp(logs) - np.log(len(start)))
        mean = weights @ start
        spread = jnp.sqrt(weights @ (start - mean[None]) ** 2)
        own = found.samples[:, 2 * k : 2 * k + 2]
        few = 1 / independent + float((weights**2).sum())
        assert float(jnp.abs((own.mean(axis=0) - mean) / spread).max()) < 5 * few**0.5
        assert float(jnp.abs(own.std(axis=0) / spread - 1).max()) < 5 * (few / 2) ** 0.5
    assert abs(float(found.log_evidence) - evidence) < 5 * float(found.log_evidence_error)
