"""Embedding tables: rows of ids, their optimizers, and the compiled loops of both."""
