"""``python -m smdp_jax new``: what it writes runs, and it touches nothing that exists."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import __main__ as command_line
from smdp_jax.experiment import load, load_config_file, run_experiment

KINDS = {
    "scalar": [],
    "ring": ["--field", "24", "--periodic"],
    "plate": ["--field", "6", "8"],
    "box": ["--field", "4", "5", "6", "--periodic"],
}
AXES = {"scalar": (1,), "ring": (24,), "plate": (6, 8), "box": (4, 5, 6)}


def written(folder, kind):
    path = folder / f"{kind}.py"
    assert command_line.main(["new", str(path), *KINDS[kind]]) == 0
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_is_short_and_conserves_what_diffusion_conserves(tmp_path, kind):
    path = written(tmp_path, kind)
    lines = path.read_text().split('"""', 2)[2].splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 26
    assert max(map(len, lines)) <= 100
    config = load_config_file(path).presets["small"]
    x = config.prior(jax.random.key(0), 2)
    assert x.shape == (2, *AXES[kind])
    speed = config.sde().drift(0.0, x[0], None)
    assert speed.shape == AXES[kind]
    if kind != "scalar":  # no flux leaves: through walls, or around the ring
        np.testing.assert_allclose(speed.sum(), 0, atol=1e-4)
        bump = jnp.zeros(AXES[kind]).at[(0,) * x[0].ndim].set(1.0)
        across = config.sde().drift(0.0, bump, None)[(-1,) * x[0].ndim]
        assert float(across) == (0 if kind in ("plate", "box") else 3.0)


@pytest.mark.parametrize("kind", ["scalar", pytest.param("plate", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:one backward step misses")  # few updates
def test_runs(tmp_path, kind):
    file = load_config_file(written(tmp_path, kind))
    config = dataclasses.replace(
        file.presets["small"],
        time_steps=6,
        trajectories=80,
        steps=6,
        test_cases=20,
        posterior_samples=9,
        batch_size=8,
    )
    folder = run_experiment(
        file, config, preset="small", runs_dir=tmp_path / "runs", say=lambda line: None
    )
    assert (folder / "report.html").exists()
    run = load(folder)  # a kernel comes back as it was
    x_end = run.data.at(0, -1)
    ask = {"num_samples": 3, "key": jax.random.key(1)}
    past = smdp.sample_posterior(run.sde, run.kernel, x_end, run.data.ts, **ask)
    assert past.info.finite.all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine.txt"], "path must be a file NAME.py, got"),
        (["a b.py"], "path must be a file NAME.py, got"),
        (["none/mine.py"], "path must lie in a folder that exists, got"),
        (["there.py"], "path must be a new file, got"),
        (["mine.py", "--field", "3"], "each at least 4, got 3"),
        (["mine.py", "--field", "8", "8", "8", "8"], "1 to 3 numbers of points"),
        (["mine.py", "--periodic"], "periodic needs a field, such as --field 64, got a scalar"),
    ],
)
def test_refuses(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").write_text("mine")
    assert command_line.main(["new", *words]) == 1
    assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"
