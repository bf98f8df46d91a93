"""Foreign simulators, one module each."""
