"""The paper's statements put to the test: what `python -m dcjax.toy` runs.

Every statement is a function that returns a `claims.Report`. Its arguments are options of the command and mean the same
everywhere:

  seed, seeds: the first seed, and how many there are.
  dim: width of the inputs and of every layer.
  amplitude: variance of the augmentation's noise on the last dim // 2 coordinates. Pairs of inputs differ by the
    identity, so that augmentation is strong from 1 on.
  depth: layers of the deepest model.
  steps: steps of SGD.
"""
