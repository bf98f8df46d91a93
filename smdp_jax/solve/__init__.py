"""How a process is solved: fixed and adaptive steps, solvers, noise, time grids, the way back."""
