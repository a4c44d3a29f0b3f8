"""Where events come from and go to: files, Kafka topics, and the intake that turns payloads into checked frames."""
