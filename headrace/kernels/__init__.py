"""Compiled loops over arrays: numba only, nothing of ours above them."""
