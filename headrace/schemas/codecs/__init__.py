"""Codecs between payloads and columns, one module per wire format."""
