"""Reports on runs: one HTML file of what a run did, or of several runs side by side.

Nothing here loads JAX or executes a file of a run, so a report takes seconds and is safe on a folder from elsewhere.
"""
