"""What every run needs: devices, processes, randomness, files, errors and the command line."""
