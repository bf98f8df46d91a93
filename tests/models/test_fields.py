import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models.layout import (
    cell_centres,
    cell_grid,
    from_channels,
    split_conditions,
    to_channels,
)

# Shapes of a state, the grid of its cells, and how many channels it takes.
STATES = [
    ({"u": (6, 4)}, (6, 4), 1),
    ({"u": (6, 4), "v": (6, 4, 2)}, (6, 4), 3),
    ({"marker": (6, 4), "vx": (7, 4), "vy": (6, 5)}, (6, 4), 5),  # all faces
    ({"marker": (6, 4), "vx": (5, 4), "vy": (6, 3)}, (6, 4), 3),  # inner faces
    ({"marker": (6, 4), "vx": (6, 4), "vy": (6, 4)}, (6, 4), 3),
    ({"vx": (7, 4), "vy": (6, 5)}, (6, 4), 4),  # nothing at the centres
    ({"marker": (6, 4), "stream": (7, 5)}, (6, 4), 5),  # at the corners
    ({"marker": (6, 4), "vx": (7, 4, 3)}, (6, 4), 7),
    ({"density": (8,), "flux": (9,)}, (8,), 3),
    ({"a": (3, 4, 5), "w": (3, 4, 6)}, (3, 4, 5), 3),
]


def draw(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=s), jnp.float32) for name, s in shapes.items()}


@pytest.mark.parametrize(("shapes", "grid", "channels"), STATES)
def test_there_and_back_is_exact(shapes, grid, channels):
    x = draw(shapes)
    assert cell_grid(x, len(grid)) == grid
    fields = to_channels(x, grid, jnp.float32)
    assert fields.shape == (*grid, channels)
    back = from_channels(fields, x)
    assert back.keys() == x.keys()
    for name, leaf in x.items():
        np.testing.assert_array_equal(back[name], leaf)


def test_where_faces_go():
    faces = jnp.arange(5.0)[:, None] + jnp.zeros((5, 3))  # on 4 cells, walls included
    low, high = jnp.moveaxis(to_channels(faces, (4, 3), jnp.float32), -1, 0)
    np.testing.assert_array_equal(low[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(high[:, 0], [1, 2, 3, 4])
    inner = jnp.arange(1.0, 4.0)[:, None] + jnp.zeros((3, 3))
    low = to_channels(inner, (4, 3), jnp.float32)[..., 0]
    np.testing.assert_array_equal(low[:, 0], [0, 1, 2, 3])


def test_shared_faces_take_the_mean():
    cells = jnp.stack([jnp.arange(4.0), 10 + jnp.arange(4.0)], axis=-1)  # low and high faces
    faces = from_channels(cells, jnp.zeros(5))
    np.testing.assert_array_equal(faces, [0, (1 + 10) / 2, (2 + 11) / 2, (3 + 12) / 2, 13])


@pytest.mark.parametrize(
    ("shapes", "dims", "message"),
    [
        ({"u": (6, 4), "v": (6, 6)}, 2, "share one grid"),
        ({"u": (6, 4), "v": (4, 6)}, 2, "share one grid"),
        ({"u": (6,)}, 2, "dims=2"),
        ({"u": (6, 4, 3, 2)}, 2, "use jax.vmap"),
    ],
)
def test_states_on_no_common_grid(shapes, dims, message):
    with pytest.raises(ValueError, match=message):
        cell_grid(draw(shapes), dims)


def test_conditions_are_sorted():
    conditions = {
        "mask": np.ones((4, 3), bool),
        "faces": np.ones((5, 3), bool),
        "nu": 0.5,
        "row": np.arange(3),
    }
    fields, numbers = split_conditions(conditions, (4, 3), jnp.float32)
    assert fields.shape == (4, 3, 3)
    np.testing.assert_allclose(numbers, [0.5, 0, 1, 2])
    # On one axis a vector is a field where it has the grid's length, and numbers elsewhere.
    fields, numbers = split_conditions({"f": np.ones(4), "n": np.ones(5)}, (4,), jnp.float32)
    assert (fields.shape, numbers.shape) == ((4, 1), (5,))
    with pytest.raises(ValueError, match="conditions must be fields on the grid"):
        split_conditions(np.ones((6, 3)), (4, 3), jnp.float32)
    with pytest.raises(TypeError, match="real numbers or masks"):
        split_conditions(jax.random.key(0), (4, 3), jnp.float32)


def test_cell_centres():
    centres = cell_centres((2, 4), jnp.dtype("float32"))
    np.testing.assert_allclose(centres[0, :, 1], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(centres[:, 0, 0], [-0.5, 0.5])
