"""This project's learners: features, labels and a model. The machinery is in `headrace.learners`."""
