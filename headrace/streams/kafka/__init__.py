"""The Kafka client: connections, offsets, and which errors a retry can fix."""
