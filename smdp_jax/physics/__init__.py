"""Physical systems: each a process, its prior, and closed forms where they exist.

States, conditions and numbers that do not fit a system are refused with a ValueError that names it.
"""

from smdp_jax.physics.affine import Affine as Affine
from smdp_jax.physics.burgers import Burgers as Burgers
from smdp_jax.physics.exact.cole_hopf import cole_hopf as cole_hopf
from smdp_jax.physics.exact.fokker_planck import transition_density as transition_density
from smdp_jax.physics.exact.gaussian_modes import LinearRates as LinearRates
from smdp_jax.physics.exact.transition import Transition as Transition
from smdp_jax.physics.heat import Heat as Heat
from smdp_jax.physics.jax_cfd import finite_volume_drift as finite_volume_drift
from smdp_jax.physics.jax_cfd import finite_volume_projection as finite_volume_projection
from smdp_jax.physics.quadratic import Quadratic as Quadratic
from smdp_jax.physics.quadratic import Reference as Reference
from smdp_jax.physics.quadratic import reference as reference
from smdp_jax.physics.smoke import Smoke as Smoke
from smdp_jax.physics.spectral.gaussian_field import mode_variance as mode_variance
from smdp_jax.physics.spectral.gaussian_field import spectral_modes as spectral_modes
from smdp_jax.physics.spectral.periodic import coarsen as coarsen
from smdp_jax.physics.spectral.periodic import refine as refine
from smdp_jax.physics.system import CourantWarning as CourantWarning
from smdp_jax.physics.system import balanced_signs as balanced_signs
from smdp_jax.physics.system import spin_up as spin_up
from smdp_jax.physics.turbulence import Turbulence as Turbulence
