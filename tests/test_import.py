"""Importing the package costs no optional dependency and starts no device."""

import os
import subprocess
import sys

OPTIONAL = ("beartype", "matplotlib", "numpydoc", "pytest")


def test_import_is_light():
    """A started backend would make ``jax.distributed.initialize`` fail in the user's script."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL}))\n"  # None: importing them raises
        "import smdp_jax\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
