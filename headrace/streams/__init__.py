"""Sources and sinks of events: files, Kafka topics, and the intake that turns payloads into checked frames."""
