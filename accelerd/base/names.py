"""Every string that crosses a boundary of the process: paths, environment, journal fields, control routes.

Owns no logic but how a command line is quoted. Change a name here, and the whole program, its units and its tests
follow.
"""

from typing import Final

PROGRAM: Final = "accelerd"

# --- units of the user's systemd ---
SERVICE_UNIT: Final = f"{PROGRAM}.service"
SOCKET_UNIT: Final = f"{PROGRAM}.socket"  # the control socket
HTTP_SOCKET_UNIT: Final = f"{PROGRAM}-http.socket"
REAPER_UNIT: Final = f"{PROGRAM}-reaper@.service"  # with an instance for each way in which the service ends

# --- files, below the XDG directory named in the comment ---
CONFIG_DIR: Final = "accelerd"  # $XDG_CONFIG_HOME
CONFIG_FILE: Final = "accelerd.toml"
RUNTIME_DIR: Final = "accelerd"  # $XDG_RUNTIME_DIR, mode 0700
CONTROL_SOCKET: Final = "accelerd.sock"
LOCK_FILE: Final = "accelerd.lock"
INSTANCE_DIR: Final = "instances"  # sockets of the engines
KEY_SUFFIX: Final = ".key"  # of a file there with the key of an engine that cannot take it otherwise
STATE_DIR: Final = "accelerd"  # $XDG_STATE_HOME
STATE_FILE: Final = "state.json"
LAST_GOOD_FILE: Final = "configuration.json"  # the files of the last configuration that could be used
YIELD_FILE: Final = "yield.json"  # in the runtime directory: what a person wants yielded
TOOLBOX_FILE: Final = "toolboxes.json"  # a refresh of a toolbox that has begun
CACHE_DIR: Final = "accelerd"  # $XDG_CACHE_HOME

# --- environment read by accelerd ---
ENV_CONFIG: Final = "ACCELERD_CONFIG"  # path of the configuration file instead of the XDG one
ENV_SOCKET: Final = "ACCELERD_SOCKET"  # path of the control socket, for accelctl
ENV_LOG_LEVEL: Final = "ACCELERD_LOG_LEVEL"

# --- environment given to an engine's process: how its processes are found again ---
ENV_INSTANCE: Final = "ACCELERD_INSTANCE"  # unique per start of a model
ENV_OWNER: Final = "ACCELERD_OWNER"  # the runtime directory of the daemon that started it

# --- journal fields; system/records.py makes the others from the arguments of `event` ---
FIELD_MODEL: Final = "ACCELERD_MODEL"

# --- journal message ids: a contract with operators, never reused ---
MSG_STARTED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b01"
MSG_STOPPING: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b02"
MSG_STATE_CHANGED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b03"
MSG_LOAD_FAILED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b04"
MSG_CHILD_DIED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b05"
MSG_CONFIG_REJECTED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b07"
MSG_CONFIG_LOADED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b08"
MSG_STATE_FILE: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b09"
MSG_UNHEALTHY: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b0a"
MSG_BUG: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b0b"
MSG_LEFTOVER: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b0c"
MSG_OUT_OF_MEMORY: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b0d"
MSG_ADOPTED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b0e"
MSG_RESIDUE: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b0f"
MSG_REAPED: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b10"
MSG_STUCK: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b11"
MSG_TOOLBOX: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b12"
MSG_DEVICE: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b20"  # one came, went, changed or was reset

MSG_LEVEL: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b23"  # a device's performance level was set, restored, taken over
MSG_LEVEL_UNABLE: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b21"
MSG_CLOCK_STUCK: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b22"

MSG_YIELD: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b30"  # memory was yielded to a person or a game, or yielding ended
MSG_PRESSURE: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b31"  # models make room for other programs
MSG_PIN: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b32"  # a program holds a model, or holds it no longer

MSG_SLEEP: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b33"  # the machine is about to be suspended, or awake again
MSG_POWER: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b34"  # power is saved on battery, or not any more
MSG_REQUEST: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b35"  # an inference request has its answer
MSG_BUS: Final = "a1c4b6d0e5f34c7a9b0d2e8f6a7c1b40"  # the session bus was reached, lost, or its name is another's

# --- the session bus ---
BUS_NAME: Final = "org.accelerd1"
BUS_PATH: Final = "/org/accelerd1"  # the Manager, and the root of the tree
BUS_MODELS: Final = "/org/accelerd1/models"  # each below it; accelerd.bus.paths writes and reads the last part
BUS_DEVICES: Final = "/org/accelerd1/devices"
BUS_JOBS: Final = "/org/accelerd1/jobs"
BUS_MANAGER: Final = "org.accelerd1.Manager"
BUS_MODEL: Final = "org.accelerd1.Model"
BUS_DEVICE: Final = "org.accelerd1.Device"
BUS_JOB: Final = "org.accelerd1.Job"
BUS_ERROR: Final = "org.accelerd1.Error."  # and a name of accelerd.base.errors
BUS_NO_OBJECT: Final = "/"  # an object path that means none
ENV_SESSION_BUS: Final = "DBUS_SESSION_BUS_ADDRESS"

# --- the root helper, on the system bus ---
HELPER_NAME: Final = "org.accelerd1.Helper"  # the interface has the same name
HELPER_PATH: Final = "/org/accelerd1/Helper"
HELPER_ERROR: Final = "org.accelerd1.Helper.Error."
HELPER_ACTION: Final = "org.accelerd1.helper.set-level"  # polkit's
HELPER_RUNTIME: Final = "/run/accelerd-helper"
HELPER_CONFIG: Final = "/etc/accelerd/helper.conf"
LEVELS_FILE: Final = "levels.json"  # in the runtime directory of whoever sets levels: what to restore

# --- models ---
TRIAL_SUFFIX: Final = "@tune"  # of the name of a model that is being measured; no configured name ends like it

# --- HTTP ---
ANY: Final = "*"  # in an alias: any characters
HEADER_MODEL: Final = "X-Accelerd-Model"  # the configured name that answered, on every relayed response
HEADER_ROUTE: Final = "X-Accelerd-Route"  # by which route it was asked
HEADER_ATTEMPTS: Final = "X-Accelerd-Attempts"  # how many models were asked
CONTROL_PREFIX: Final = "/accelerd/v1"  # control routes, on the unix socket only
# The same of llama.cpp's router and of llama-swap, with the methods that mean them.
ROUTER_PATHS: Final = {
    "/models/load": ("POST",),
    "/models/unload": ("POST",),
    "/running": ("GET",),
    "/unload": ("GET", "POST"),
    "/api/models/unload": ("POST",),
}
UNLOAD_PREFIX: Final = "/api/models/unload/"  # and then the name of a model, for POST


def accelctl(*words: str) -> str:
    """A command line of accelctl that can be copied, whatever characters a name has."""
    from shlex import join  # rarely needed

    return join(("accelctl", *words))
