"""Contrastive losses: pure functions of two batches of embeddings."""

from dcjax.losses.contrastive import LOSSES, chance_loss, info_nce, nt_xent, takes_blocks, unit_rows

__all__ = ["LOSSES", "chance_loss", "info_nce", "nt_xent", "takes_blocks", "unit_rows"]
