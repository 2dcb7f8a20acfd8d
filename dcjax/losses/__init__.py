"""Contrastive losses: pure functions of two batches of embeddings."""

from dcjax.losses.contrastive import LOSSES, info_nce, nt_xent, takes_blocks, unit_rows

__all__ = ["LOSSES", "info_nce", "nt_xent", "takes_blocks", "unit_rows"]
