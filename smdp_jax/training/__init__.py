"""How a network is trained: updates, epochs, checkpoints, and whose run it is."""
