"""D-Bus for the whole daemon: one GLib thread, and one connection for each bus, shared by everything that uses the bus.

`client.py` is what other rooms call; it, `object_exporter.py`, `properties.py` and `port.py` run on the event loop and
import without PyGObject. `connection.py`, `glib_export.py`, `peers.py` and `values.py` need it. Knows no models and
no meaning of any service.
"""
