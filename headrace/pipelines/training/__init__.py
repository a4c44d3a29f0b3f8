"""Parts of the trainer: its cadence, the size of its micro-batches, and events that wait to be learned from."""
