"""Parts of the trainer: its cadence, and the size of its micro-batches."""
