"""What clients of the HTTP service can rely on, described by the service itself."""
