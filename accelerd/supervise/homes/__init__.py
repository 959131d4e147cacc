"""Homes: where a model's process lives (child, systemd unit, container, Lemonade server), and how it is ended there."""
