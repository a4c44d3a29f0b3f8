"""The demo: plays a recorded log through features, serving and learning on one machine, with a live view and report."""

from headrace.demo.declaration import Demo as Demo
