"""The same matrices through other packages; `python -m experiments.metrics_elsewhere` is the command."""
