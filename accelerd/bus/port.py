"""The bus as the objects see it, see accelerd/system/dbus/port.py."""

from accelerd.system.dbus.port import Bus, Call, Handler, Variant

__all__ = ["Bus", "Call", "Handler", "Variant"]
