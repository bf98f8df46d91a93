"""Periodic grids in Fourier space."""
