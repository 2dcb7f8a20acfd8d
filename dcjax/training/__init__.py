"""Parts of the training: the step, the state, the optimiser, checkpoints, logs and signals."""
