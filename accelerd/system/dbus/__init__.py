"""D-Bus for the whole daemon: the client of other services, and the exporter of our own objects.

Knows no model and no service's meaning. PyGObject and pydbus are imported when there is a bus to talk to: without them
the daemon runs, and says what is missing.
"""
