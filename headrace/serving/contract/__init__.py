"""The contract of the HTTP service: its OpenAPI document and documentation page."""
