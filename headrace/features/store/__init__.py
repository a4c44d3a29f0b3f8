"""The online store: records in Redis."""

from headrace.features.store.store import OnlineStore as OnlineStore
