"""This project's dataflow modules, each with a `flow` to run."""
