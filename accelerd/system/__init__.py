"""The operating system: service manager, journal, sockets, instance lock, private files, suspend; D-Bus in `dbus/`.

Knows no models and no HTTP. Everything here works without systemd, and reports what is missing.
"""
