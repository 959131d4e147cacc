"""The session bus: org.accelerd1 and its tree. Mirrors what others own, and asks them; holds no state of its own.

PyGObject and pydbus are imported when the bus is started: a machine without them has only the reason why.
"""
