"""Tallies: how often each value occurred, per tile, in bounded memory."""
