"""Buoyancy-driven smoke with obstacles, on a staggered grid in a closed box."""

from smdp_jax.physics.smoke.geometry import ClosedBox
from smdp_jax.physics.smoke.grid import project
from smdp_jax.physics.smoke.obstacles import fill_enclosed, random_obstacles
from smdp_jax.physics.smoke.simulator import Smoke

__all__ = ["ClosedBox", "Smoke", "fill_enclosed", "project", "random_obstacles"]
