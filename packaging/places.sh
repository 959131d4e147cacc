# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by those who source it
# Where packaging/install puts things, and where packaging/uninstall finds them; what the user's configuration says
# about them. Sourced after lib.sh.

REPO=$(dirname "$HERE")
CONFIG_DIR=${XDG_CONFIG_HOME:-$HOME/.config}
CONFIG=$CONFIG_DIR/accelerd/accelerd.toml
UNITS=$CONFIG_DIR/systemd/user
UNIT_MARK="# Written by accelerd's packaging/install; changes here are lost when it runs again (use: systemctl --user edit)."
HELLO=${XDG_DATA_HOME:-$HOME/.local/share}/accelerd/models/hello.gguf
STATE=${XDG_STATE_HOME:-$HOME/.local/state}/accelerd

DATA=${XDG_DATA_HOME:-$HOME/.local/share}
EXTRA_MARK="packaging/install" # in the first lines of every file that install_extras puts somewhere

# extras: what lies beside the programs for other programs to find, one a line: file in the checkout, place, file's name.
# Shells, man and the session bus look in these places by themselves, but for zsh, which wants the directory in \$fpath.
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

# extra_is_ours PATH: was it put there by install_extras? The names of our interfaces are nobody else's.
extra_is_ours() {
  case $1 in */dbus-1/interfaces/org.accelerd1.*.xml) return 0 ;; esac
  head -n 4 "$1" 2>/dev/null | grep -qF "$EXTRA_MARK"
}

# reload_bus: a session bus that runs learns of the new file (some watch their directories, not all).
reload_bus() {
  have busctl || return 0
  busctl --user --quiet call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig >/dev/null 2>&1 || true
}

# set_prefix DIR: the program goes below it.
set_prefix() {
  PREFIX=$(realpath -m -- "$1")
  VENV=$PREFIX/share/accelerd/venv
}
set_prefix "$HOME/.local"

# config_query WHAT: "binary" or "models" as the user's files say, read without accelerd; empty where nothing is said.
config_query() {
  local python files
  python=$(find_python) || return 0
  files=()
  [ -f "$CONFIG" ] && files+=("$CONFIG")
  [ -d "$CONFIG.d" ] && files+=("$CONFIG.d"/*.toml)
  "$python" - "$1" "${files[@]}" <<'PY'
import sys, tomllib

what, *files = sys.argv[1:]
binary, models = "", []
for file in files:
    try:
        with open(file, "rb") as f:
            data = tomllib.load(f)
    except (OSError, tomllib.TOMLDecodeError):
        continue  # `accelctl config check` reports it where it can be read
    binary = data.get("engines", {}).get("llama-server", {}).get("binary", binary)
    models += data.get("models", {})
print(binary if what == "binary" else " ".join(models))
PY
}
configured_binary() { config_query binary; }
configured_models() { config_query models; }

# user_manager: does systemd manage this user here? Finds its runtime directory when the session did not say.
user_manager() {
  if [ -z "${XDG_RUNTIME_DIR:-}" ] && [ -d "/run/user/$(id -u)" ]; then
    XDG_RUNTIME_DIR=/run/user/$(id -u)
    export XDG_RUNTIME_DIR
  fi
  have systemctl && systemctl --user show-environment >/dev/null 2>&1
}

# private_runtime: a runtime directory of our own where the session has none.
private_runtime() {
  [ -d "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}" ] && return 0
  PRIVATE_RUNTIME=1
  export XDG_RUNTIME_DIR=$STATE/run
  mkdir -p "$XDG_RUNTIME_DIR"
  chmod 700 "$XDG_RUNTIME_DIR"
}

# stop_background: ends the daemon that packaging/install started by hand, if it is still that one.
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
  die "the accelerd that was started by hand does not stop; end it with: kill -9 $pid"
}
