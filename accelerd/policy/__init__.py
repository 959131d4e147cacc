"""What reacts to the world: memory pressure, lost devices, sleep and battery, clock boost, notifications, event log.

Never on the path of a request.
"""
