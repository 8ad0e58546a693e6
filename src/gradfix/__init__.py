"""Move a fine-tune to a new release of its base model, by gradient-sign masking of its task vector."""

__version__ = "0.1.0"
