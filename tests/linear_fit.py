"""A training that takes seconds, for the tests of ``fit``: an Ornstein-Uhlenbeck process."""

import flax.linen as nn
import jax
import optax

import smdp_jax as smdp

KEY = jax.random.key(31)
RATE = 0.7
SDE = smdp.SDE(lambda t, x, args: -RATE * x, diffusion=0.5)
TS = smdp.linear_grid(0.0, 1.0, 10)
K_START, K_PATH, K_HELD = jax.random.split(jax.random.key(1), 3)
DATA = smdp.simulate(SDE, jax.random.normal(K_START, (64, 1)), TS, key=K_PATH)
HELD_OUT = smdp.simulate(SDE, jax.random.normal(K_HELD, (32, 1)), TS, key=K_HELD)


class Linear(nn.Module):
    """The score of a centred Gaussian whose precision is linear in time."""

    width: int = 1

    @nn.compact
    def __call__(self, t, x, args):
        a = self.param("a", nn.initializers.constant(0.1), (self.width,))
        b = self.param("b", nn.initializers.zeros, ())
        return (a.sum() + b * t) * x


def fit(objective=None, optimizer=None, *, sde=SDE, model=None, data=DATA, **settings):
    """A run of 60 small updates in epochs of 10, without bar and without preconditioning."""
    settings = {
        "steps": 60,
        "key": KEY,
        "batch_size": 16,
        "epoch_steps": 10,
        "precondition": False,
        "progress": False,
        "checkpoint_seconds": 0.0,
    } | settings
    return smdp.fit(
        sde,
        Linear() if model is None else model,
        data,
        smdp.OneStep() if objective is None else objective,
        optax.adam(0.03) if optimizer is None else optimizer,
        **settings,
    )
