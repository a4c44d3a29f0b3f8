"""This project's views: features of a customer and of an item. The machinery is in `headrace.features`."""
