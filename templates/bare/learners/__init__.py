"""This project's learners."""
