"""The demo: plays a recorded log through features, serving and learning on one machine, shows it, and reports."""

from headrace.demo.declaration import Demo as Demo
