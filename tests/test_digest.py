"""One digest for equal trees of arrays, another for every difference."""

import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.files import digest_of

BASE = {"a": np.arange(6.0, dtype=np.float32), "b": np.zeros(2, np.float32)}


def test_equal_trees_agree():
    assert digest_of(BASE) == digest_of({name: jnp.asarray(leaf) for name, leaf in BASE.items()})
    strided = np.arange(12.0, dtype=np.float32)[::2] / 2
    assert digest_of(BASE | {"a": strided}) == digest_of(BASE)


def test_every_difference_is_seen():
    others = [
        BASE | {"a": BASE["a"].reshape(2, 3)},
        BASE | {"a": BASE["a"].view(np.int32)},
        BASE | {"a": np.nextafter(BASE["a"], np.float32(9))},
        {"a": BASE["b"], "b": BASE["a"]},
        {"a": BASE["a"], "c": BASE["b"]},
        [BASE["a"], BASE["b"]],
        BASE | {"b": np.zeros(2, np.float16)},
        BASE | {"b": np.float32(0)},
        BASE | {"b": np.zeros(1, np.float32)},
        BASE | {"b": jnp.zeros(2, jnp.bfloat16)},
    ]
    assert len({digest_of(tree) for tree in [BASE, *others]}) == len(others) + 1


def test_numbers_names_and_nothing_are_content_too():
    base = {"x": np.arange(2.0), "n": 1, "name": "heat", "none": None}
    others = [
        base | {"n": 2},
        base | {"n": 1.0},
        base | {"n": True},
        base | {"name": "Heat"},
        base | {"none": 0},
        {key: value for key, value in base.items() if key != "none"},
    ]
    assert digest_of(base) == digest_of(dict(reversed(base.items())))
    assert len({digest_of(tree) for tree in [base, *others]}) == len(others) + 1


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="arrays, numbers and strings, got <object"):
        digest_of({"x": object()})
