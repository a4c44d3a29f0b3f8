"""This project's views: what is known of a customer and of an item. The machinery is in `headrace.features`."""
