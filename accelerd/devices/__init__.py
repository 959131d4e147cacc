"""The devices of this machine: inventory, drivers, readings, memory users, and problems.

Must never know models. Reads /sys, /dev, /proc and udev, and vendor libraries only where they add something.
"""
