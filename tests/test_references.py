"""The stored reference of Burgers' equation: chains that agree, around the truths."""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent.parent / "benchmarks" / "references" / "burgers.npz"


def test_burgers_reference_is_converged_and_calibrated():
    with np.load(FILE) as stored:
        truths, draws, r_hat = stored["truths"], stored["draws"], stored["r_hat"]
    assert FILE.stat().st_size < 5e6
    assert r_hat.max() <= 1.01
    assert draws.shape == (*truths.shape[:1], draws.shape[1], *truths.shape[1:])
    z = (truths - draws.mean(axis=1)) / draws.std(axis=1)
    # 100 coefficients of unit variance: standard error 0.14; 4.5 of them, false alarms 7e-6.
    assert abs(np.mean(z**2) - 1) < 0.64
