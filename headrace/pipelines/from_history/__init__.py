"""Training on history: a first model from files or a topic, and training sets for other tools."""
