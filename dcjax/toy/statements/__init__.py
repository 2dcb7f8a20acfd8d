"""The paper's statements put to the test: what `python -m dcjax.toy` runs."""
