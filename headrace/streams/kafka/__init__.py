"""The Kafka client: connections, offsets, and the errors that a retry can fix."""
