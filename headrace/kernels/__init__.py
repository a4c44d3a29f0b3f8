"""Compiled loops over arrays, built on numba; they import no other part of the engine except its errors."""
