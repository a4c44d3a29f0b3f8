"""History: replay of event logs, point-in-time features for spines, and the check of a store against its log."""
