"""Homes inside containers: toolbox and distrobox, containers made by podman or docker, and existing ones.

A signal to `toolbox run` or `podman exec` never reaches the program inside; so here the main process is always the
program's own process on the host, and the command line tools that start it in there may come and go.
"""
