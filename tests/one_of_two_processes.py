"""One of two processes with four devices each, for ``tests/test_mesh.py``: the verbs over all 8.

Run as ``one_of_two_processes.py NUMBER PORT FOLDER``; says whether they are those of one.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import smdp_jax as smdp
from smdp_jax import datasets
from smdp_jax.datasets.store import Store


def main(number: int, port: int, folder: str) -> None:
    """Compare with the same on one device of this process."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
    key, ts = jax.random.key(0), smdp.linear_grid(0.0, 1.0, 4)
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    x0 = jax.random.normal(key, (16, 2))

    def everything(mesh):
        data = smdp.simulate(sde, x0, ts, key=key, mesh=mesh)
        fit = smdp.fit(
            sde,
            smdp.models.MLP((8,)),
            data,
            smdp.OneStep(),
            optax.adam(1e-3),
            steps=20,
            key=key,
            batch_size=16,
            mesh=mesh,
            directory=None if mesh is None else folder,
            checkpoint_seconds=0,
            progress=False,
        )
        past = smdp.sample_posterior(sde, fit.score, x0[0], ts, num_samples=16, key=key, mesh=mesh)
        return data.xs, fit.score.variables, past.samples

    calls = {"made": 0, "read": 0}

    def generate(key):
        calls["made"] += 1
        return smdp.simulate(sde, jax.random.normal(key, (4, 2)), ts, key=key)

    def counted(store, index, read=Store.read):
        calls["read"] += 1
        return read(store, index)

    def stored(mesh):
        data = datasets.open_trajectories(path, mesh=mesh)
        read = calls["read"]
        stream = datasets.open_stream(path, chunks_per_block=8, mesh=mesh)
        fit = smdp.fit(
            sde,
            smdp.models.MLP((8,)),
            stream,
            smdp.OneStep(),
            optax.adam(1e-3),
            steps=20,
            epoch_steps=10,
            key=key,
            batch_size=16,
            mesh=mesh,
            directory=None if mesh is None else f"{folder}/streamed",
            progress=False,
        )
        return (data.xs, fit.score.variables), read

    mesh = jax.make_mesh((8,), ("data",))
    path = datasets.write(f"{folder}/paths.zarr", generate, chunks=16, key=key, progress=False)
    assert calls["made"] == 8, calls  # the other process makes the other half
    calls["made"] = 0
    datasets.write(path, generate, chunks=16, key=key, progress=False)
    assert calls["made"] == 1, calls  # the first of its own, for comparison
    Store.read = counted  # pyright: ignore[reportAttributeAccessIssue]
    calls["read"] = 0
    apart, read = stored(mesh)
    assert read == 8, read
    together = everything(mesh), apart
    alone = everything(None), stored(None)[0]
    whole = multihost_utils.process_allgather(together, tiled=True)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)
    assert jnp.isfinite(jax.tree.leaves(alone)[0]).all()
    sys.stdout.write("the same\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
