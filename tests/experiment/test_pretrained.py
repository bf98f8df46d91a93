"""Scores that come with the package: they come back as they were, and reach what was recorded."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize

import smdp_jax as smdp
from smdp_jax import models, physics
from smdp_jax.experiment import pretrained as module

HEAT = physics.Heat(size=8, noise=0.2)
TS = smdp.linear_grid(0.0, 0.2, 3)
SPECTRUM = models.Spectrum(
    TS, np.linspace(1, 2, 4 * 8 * 5).reshape(4, 8, 5).astype(np.float32), floor=0.5
)
NETWORKS = {
    "MLP": (physics.Affine(rate=0.3, noise=0.2), models.MLP((4,)), (1,), "sde"),
    "spectral": (
        HEAT,
        models.SpectralPreconditioned(
            models.UNet((4,), time_features=models.Fourier(3, 0.1, 0.8)), SPECTRUM
        ),
        (8, 8),
        "continuous_sde",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_comes_back(name, tmp_path, monkeypatch):
    """Process, network, times and figures, from the file alone; equal scores bit for bit."""
    system, model, shape, process = NETWORKS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    variables = model.init(jax.random.key(0), TS[1], x, None)
    run = SimpleNamespace(
        config=SimpleNamespace(system=lambda: system),
        sde=getattr(system, process)(),
        score=smdp.LearnedScore(model, variables, None, ts=TS[jnp.array([0, -1])]),
        data=SimpleNamespace(ts=TS),
    )
    monkeypatch.setattr(module, "load", lambda folder: run)
    metrics = {"metrics": {"error": {"value": 0.25, "target": 0.3}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    weights = tmp_path / "experiment" / "weights"
    weights.mkdir(parents=True)
    module.write_pretrained(tmp_path, weights / "mine.smdp")
    monkeypatch.setattr(module, "files", lambda package: tmp_path / "experiment")

    found = smdp.pretrained("mine")
    assert found.system == system
    assert found.sde == run.sde
    assert found.metrics == {"error": 0.25}
    np.testing.assert_array_equal(found.ts, TS)
    np.testing.assert_array_equal(found.score(TS[1], x, None), run.score(TS[1], x, None))

    with pytest.raises(ValueError, match="name must be one of mine, got 'other'"):
        smdp.pretrained("other")
    tree = msgpack_restore((weights / "mine.smdp").read_bytes())
    (weights / "mine.smdp").write_bytes(msgpack_serialize(tree | {"version": 7}))
    with pytest.raises(ValueError, match=r"must be of version 1, got 7: .*trains them again"):
        smdp.pretrained("mine")


@pytest.mark.parametrize("system", [None, physics.Affine(rate=0.1, noise=0.9)])
def test_only_processes_of_the_package_are_written(system, tmp_path, monkeypatch):
    run = SimpleNamespace(
        config=SimpleNamespace(system=lambda: system),
        sde=smdp.SDE(lambda t, x, args: -x, diffusion=0.5),
    )
    monkeypatch.setattr(module, "load", lambda folder: run)
    with pytest.raises(ValueError, match=r"must have Config\.system\(\) with its process, got"):
        module.write_pretrained(tmp_path, tmp_path / "x.smdp")


@pytest.mark.parametrize("thing", [lambda t: t, object(), np.random.default_rng])
def test_only_parts_of_the_package_are_written(thing):
    with pytest.raises(TypeError, match="a system or network must be"):
        module._described(thing)
