"""Buoyancy-driven smoke with obstacles, on a staggered grid in a closed box."""

from smdp_jax.physics.smoke.geometry import ClosedBox as ClosedBox
from smdp_jax.physics.smoke.grid import project as project
from smdp_jax.physics.smoke.obstacles import fill_enclosed as fill_enclosed
from smdp_jax.physics.smoke.obstacles import random_obstacles as random_obstacles
from smdp_jax.physics.smoke.simulator import Smoke as Smoke
