"""Codecs: one wire format a module, from payloads to columns and back."""
