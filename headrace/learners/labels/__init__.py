"""Declarations of labels: which events label an example, and when the example is learned."""
