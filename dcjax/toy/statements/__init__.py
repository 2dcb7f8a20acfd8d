"""Tests of the paper's statements, which `dcjax toy` runs.

Every statement is a function that returns a `claims.Report`. Its arguments are options of the command and mean the same
everywhere:

  seed, seeds: the first seed, and the number of seeds.
  dim: width of the inputs and of every layer.
  amplitude: variance of the augmentation's noise on the last dim // 2 coordinates. The differences between inputs have
    variance 1, so the augmentation is strong above 1.
  depth: layers of the deepest model.
  steps: steps of SGD.
"""
