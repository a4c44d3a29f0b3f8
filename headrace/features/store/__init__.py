"""The online store: packed records in Redis."""

from headrace.features.store.store import OnlineStore as OnlineStore
