"""The main job on one machine: play a recorded log through the whole loop, watch it, and report what is true."""

from headrace.demo.declaration import Demo as Demo
