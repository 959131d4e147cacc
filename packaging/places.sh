# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file use the variables
# Paths that packaging/install creates and packaging/uninstall removes, and what the user's configuration says about
# them. Source it after lib.sh.

REPO=$(dirname "$HERE")
CONFIG_DIR=${XDG_CONFIG_HOME:-$HOME/.config}
CONFIG=$CONFIG_DIR/accelerd/accelerd.toml
DATA=${XDG_DATA_HOME:-$HOME/.local/share}
UNITS=$DATA/systemd/user
OLD_UNITS=$CONFIG_DIR/systemd/user # of 0.6 and earlier: there "systemctl mask" cannot take the place of a unit
SOCKET_DROPIN=$UNITS/accelerd-http.socket.d/10-listen.conf # accelerd writes it if [server] listen is not the default
UNIT_MARK="# Written by accelerd's packaging/install; changes here are lost when it runs again (use: systemctl --user edit)."
# What the installer was told or had to choose; it may write this again, and later files override it.
CHOICES=$CONFIG.d/00-install.toml
HELLO=$DATA/accelerd/models/hello.gguf
STATE=${XDG_STATE_HOME:-$HOME/.local/state}/accelerd

EXTRA_MARK="packaging/install" # in the first lines of every file that install_extras creates

# extras: completions, manual pages and D-Bus files, one per line: file in the checkout, target directory, file name.
# Shells, man and the session bus find them there; zsh needs the directory in \$fpath.
extras() {
  local file
  printf '%s|%s|%s\n' contrib/completions/accelctl.bash "$DATA/bash-completion/completions" accelctl
  printf '%s|%s|%s\n' contrib/completions/_accelctl "$DATA/zsh/site-functions" _accelctl
  printf '%s|%s|%s\n' contrib/completions/accelctl.fish "$DATA/fish/vendor_completions.d" accelctl.fish
  for file in "$REPO"/docs/man/*.[1-8]; do
    printf '%s|%s|%s\n' "docs/man/$(basename "$file")" "$PREFIX/share/man/man${file##*.}" "$(basename "$file")"
  done
  for file in "$REPO"/accelerd/bus/interfaces/*.xml; do
    [ -e "$file" ] || continue
    printf '%s|%s|%s\n' "accelerd/bus/interfaces/$(basename "$file")" "$DATA/dbus-1/interfaces" "$(basename "$file")"
  done
  printf '%s|%s|%s\n' packaging/dbus/org.accelerd1.service "$DATA/dbus-1/services" org.accelerd1.service
}

# extra_is_ours PATH: did install_extras create it? The names of our interfaces are unique.
extra_is_ours() {
  case $1 in */dbus-1/interfaces/org.accelerd1.*.xml) return 0 ;; esac
  head -n 4 "$1" 2>/dev/null | grep -qF "$EXTRA_MARK"
}

# reload_bus: makes a running session bus read the new files (not every implementation watches its directories).
reload_bus() {
  have busctl || return 0
  busctl --user --quiet call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig >/dev/null 2>&1 || true
}

# refuse_sudo [HINT]: what root would find belongs to root.
refuse_sudo() {
  [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] || return 0
  die "accelerd is installed for a single user: run this as $SUDO_USER, without sudo" "$@"
}

# set_prefix DIR: sets the installation prefix.
set_prefix() {
  PREFIX=$(realpath -m -- "$1")
  VENV=$PREFIX/share/accelerd/venv
}
set_prefix "$HOME/.local"

# config_query WHAT: "binary", "listen" or "models" of the user's configuration, read without accelerd; empty if not set.
config_query() {
  local python files
  python=$(find_python) || return 0
  files=()
  [ -f "$CONFIG" ] && files+=("$CONFIG")
  [ -d "$CONFIG.d" ] && files+=("$CONFIG.d"/*.toml)
  "$python" - "$1" "${files[@]}" <<'PY'
import sys, tomllib

what, *files = sys.argv[1:]
binary, listen, models = "", [], []
for file in files:
    try:
        with open(file, "rb") as f:
            data = tomllib.load(f)
    except (OSError, tomllib.TOMLDecodeError):
        continue  # `accelctl config check` reports it
    binary = data.get("engines", {}).get("llama-server", {}).get("binary", binary)
    listen = data.get("server", {}).get("listen", listen)
    models += data.get("models", {})
listen = [listen] if isinstance(listen, str) else listen
print({"binary": binary, "listen": " ".join(listen), "models": " ".join(models)}[what])
PY
}
configured_binary() { config_query binary; }
configured_models() { config_query models; }
configured_listen() { config_query listen; }

# user_manager: is a systemd user manager running? Sets XDG_RUNTIME_DIR if the session did not.
user_manager() {
  if [ -z "${XDG_RUNTIME_DIR:-}" ] && [ -d "/run/user/$(id -u)" ]; then
    XDG_RUNTIME_DIR=/run/user/$(id -u)
    export XDG_RUNTIME_DIR
  fi
  have systemctl && systemctl --user show-environment >/dev/null 2>&1
}

# masked: has the user masked the service, so that nothing may start it?
masked() { [ "$(systemctl --user show --property=LoadState --value accelerd.service 2>/dev/null)" = masked ]; }

# private_runtime: creates a runtime directory if the session has none.
private_runtime() {
  [ -d "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}" ] && return 0
  PRIVATE_RUNTIME=1
  export XDG_RUNTIME_DIR=$STATE/run
  mkdir -p "$XDG_RUNTIME_DIR"
  chmod 700 "$XDG_RUNTIME_DIR"
}

# stop_background: stops the daemon that packaging/install started without systemd, if it is still running.
stop_background() {
  local pid _
  pid=$(cat "$STATE/background.pid" 2>/dev/null) || return 0
  rm -f "$STATE/background.pid"
  grep -qz -- "$VENV/bin/accelerd" "/proc/$pid/cmdline" 2>/dev/null || return 0
  kill "$pid"
  for _ in $(seq 150); do
    [ -e "/proc/$pid" ] || return 0
    sleep 0.2
  done
  die "accelerd (started in the background, pid $pid) does not stop; end it with: kill -9 $pid"
}
