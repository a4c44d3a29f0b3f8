"""Embedding tables: rows by id, their optimizers, and the compiled kernels of both."""
