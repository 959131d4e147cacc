"""The room towards the operating system: service manager, journal, sockets given by systemd, lock, small state file.

Owns no knowledge of models or HTTP and calls no other room; app.py wires it. Everything here works, and says what is
missing, when there is no systemd at all.
"""
