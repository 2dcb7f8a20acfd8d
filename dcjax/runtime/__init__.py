"""The ground under a run: devices, processes, randomness, files, errors and the command line."""
