# shellcheck shell=bash
# What packaging/install, packaging/uninstall, packaging/build-llama-server and tests/run share: talking to the
# user, operating-system packages (asked for once, never without consent), and Python environments.
# It is sourced, after `set -euo pipefail`. It changes nothing by itself.

ASSUME_YES=${ASSUME_YES:-0}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/accelerd
# pip obeys the user's own configuration, with one exception: into an environment of ours nothing goes "--user".
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }
step() { printf '%s==>%s %s\n' "${BOLD:-}" "${PLAIN:-}" "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}
if [ -t 2 ] && [ "${TERM:-dumb}" != dumb ]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; fi

have() { command -v "$1" >/dev/null 2>&1; }
# A path as people write it: ~ for the home directory.
short() { case $1 in "$HOME"/*) printf '~%s' "${1#"$HOME"}" ;; *) printf '%s' "$1" ;; esac }

# log_try LOG CMD...: runs CMD quietly; its status.
log_try() {
  mkdir -p "$(dirname "$1")"
  "${@:2}" >"$1" 2>&1 </dev/null
}

# log_run LOG CMD...: log_try; when CMD fails, shows the end of what it printed and where the rest is.
log_run() {
  local log=$1
  log_try "$@" && return 0
  shift
  tail -n 25 "$log" >&2
  die "this failed: $*" "all that it printed is in $log"
}

# --- operating-system packages ---

package_manager() {
  if have apt-get; then echo apt
  elif have dnf; then echo dnf
  else echo none; fi
}

# package_for NEED: what a need is called on this system.
package_for() {
  case $(package_manager):$1 in
    apt:python) echo python3 python3-venv ;;
    apt:cxx) echo g++ ;;
    apt:gi) echo python3 python3-venv python3-gi ;;
    apt:usermanager) echo systemd dbus dbus-user-session ;;
    apt:paper) echo zsh fish mandoc groff-base libglib2.0-bin ;;
    *:dbusmock) echo python3-dbusmock ;;
    apt:devices) echo umockdev gir1.2-umockdev-1.0 libudev1 ;;
    apt:containers)
      echo podman podman-toolbox uidmap slirp4netns passt fuse3 fuse-overlayfs crun catatonit netavark aardvark-dns \
        dbus-user-session mmdebstrap
      ;;
    dnf:python) echo python3 ;;
    dnf:cxx) echo gcc-c++ ;;
    dnf:gi) echo python3 python3-gobject-base ;;
    dnf:usermanager) echo systemd dbus-daemon ;;
    dnf:paper) echo zsh fish mandoc groff-base glib2 ;;
    dnf:devices) echo umockdev systemd-libs ;;
    dnf:containers)
      echo podman toolbox shadow-utils slirp4netns passt fuse3 fuse-overlayfs crun catatonit netavark aardvark-dns mmdebstrap
      ;;
    *:archive) echo tar gzip ;;
    apt:tools) echo util-linux findutils mawk ;;
    dnf:tools) echo util-linux findutils gawk ;;
    *) die "no package is known for '$1' on this system" ;;
  esac
}

# met NEED: is it on this machine already?
met() {
  case $1 in
    python) find_python >/dev/null ;;
    # wanted, but not at any price: only where a package can be had, which is for the distribution's own Python
    gi) ! can_install || ! uses_own_python || { find_python >/dev/null && has_gi "$(find_python)"; } ;;
    cxx) find_cxx >/dev/null ;;
    archive) have tar && have gzip ;;
    tools) have flock && have unshare && have setpriv && have find && have xargs && have awk ;;
    usermanager)
      have systemctl && have dbus-daemon && [ -e /usr/lib/systemd/user/dbus.socket ] &&
        { [ -x /lib/systemd/systemd ] || [ -x /usr/lib/systemd/systemd ]; }
      ;;
    paper) have zsh && have fish && have mandoc && have groff && have gdbus ;;
    dbusmock) ! can_install || /usr/bin/python3 -c 'import dbusmock' 2>/dev/null ;;
    devices) have umockdev-wrapper && has_typelib UMockdev-1.0 ;;
    containers)
      local program
      for program in podman toolbox newuidmap slirp4netns pasta fusermount3 conmon crun catatonit netavark mmdebstrap; do
        have_helper "$program" || return 1
      done
      ;;
    *) die "unknown need '$1'" ;;
  esac
}

# has_typelib NAME: are there GObject bindings of a library?
has_typelib() { compgen -G "/usr/lib*/girepository-1.0/$1.typelib" >/dev/null || compgen -G "/usr/lib/*/girepository-1.0/$1.typelib" >/dev/null; }

# have_helper NAME: on $PATH, or where podman looks beside it?
have_helper() {
  have "$1" || [ -x "/usr/libexec/podman/$1" ] || [ -x "/usr/lib/podman/$1" ]
}

# missing_packages NEED...: the packages that would meet the needs that are not met, in one line.
missing_packages() {
  local need package out=""
  for need in "$@"; do
    met "$need" && continue
    [ "$(package_manager)" = none ] && die "cannot find what is needed ($need), and this system has neither apt-get nor dnf" \
      "install Python 3.11 or newer with its venv module, a C++ compiler, tar, gzip, awk, findutils and util-linux, then run this again"
    for package in $(package_for "$need"); do
      case "$out " in *" $package "*) ;; *) out+=" $package" ;; esac
    done
  done
  printf '%s' "${out# }"
}

# can_install: is there a way to packages at all?
can_install() { [ "$(package_manager)" != none ] && { [ "$(id -u)" -eq 0 ] || have sudo; }; }

as_root_prefix() {
  if [ "$(id -u)" -eq 0 ]; then echo ""
  else echo "sudo "; fi
}

# package_commands PKG...: the shell commands that install them, one a line, exactly as they will be run.
package_commands() {
  local sudo
  sudo=$(as_root_prefix)
  case $(package_manager) in
    apt)
      echo "${sudo}apt-get -o DPkg::Lock::Timeout=600 update -q"
      echo "${sudo}env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qy --no-install-recommends $*"
      ;;
    dnf) echo "${sudo}dnf install -y $*" ;;
  esac
}

# consent COMMANDS: may these be run? Asks on a terminal; without one, says what would be run and stops.
consent() {
  [ "$ASSUME_YES" = 1 ] && return 0
  if ! [ -t 0 ]; then
    die "cannot ask for permission without a terminal; nothing has been changed" \
      "run these yourself, or give --yes:" "${@/#/  }"
  fi
  say "These commands are needed:"
  local line answer
  for line in "$@"; do say "  $line"; done
  read -r -p "Run them? [Y/n] " answer || answer=n
  case $answer in
    "" | [Yy]*) ;;
    *) die "stopped; nothing has been changed" ;;
  esac
}

# install_packages PKG...: asks, then installs. Stops with the command to run by hand when it cannot.
install_packages() {
  [ $# -gt 0 ] || return 0
  local commands line
  mapfile -t commands < <(package_commands "$@")
  if [ "$(id -u)" -ne 0 ] && ! have sudo; then
    die "packages are missing, and there is no sudo; run this as root, then start again:" "${commands[@]/#/  }"
  fi
  consent "${commands[@]}"
  step "installing packages: $*"
  for line in "${commands[@]}"; do
    # a stale or partly unreachable package list is no reason to stop: the installation decides
    if [[ $line == *" update -q" ]]; then sh -c "$line" >"$(package_log)" 2>&1 || warn "the package lists could not be refreshed"
    else sh -c "$line" >>"$(package_log)" 2>&1 || { tail -n 25 "$(package_log)" >&2; die "this failed: $line"; }; fi
  done
  hash -r
}

# install_needs NEED...: asks for and installs the packages that would meet the needs that are not met.
install_needs() {
  local packages
  packages=$(missing_packages "$@") || exit 1
  # shellcheck disable=SC2086  # a list of words
  install_packages $packages
}

package_log() {
  mkdir -p "$CACHE"
  printf '%s' "$CACHE/packages.log"
}

# --- Python ---

# The Python for which the distribution builds its modules. One thing is not on PyPI in a form that needs no compiler:
# PyGObject, by which accelerd talks to systemd. So this Python goes before others on $PATH.
OWN_PYTHON=${ACCELERD_SYSTEM_PYTHON:-/usr/bin/python3}

# find_python: the first Python that is new enough and can make environments; status 1 when there is none.
find_python() {
  local name
  for name in ${ACCELERD_PYTHON:-"$OWN_PYTHON" python3 python3.14 python3.13 python3.12 python3.11}; do
    if have "$name" && "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

# require_python: find_python, or the reason why there is none.
require_python() {
  find_python && return 0
  local found="no python3 at all"
  have python3 && found=$(python3 --version 2>&1)
  die "cannot find Python 3.11 or newer with its venv module (found: $found)" \
    "install one from your distribution, or name one: ACCELERD_PYTHON=/path/to/python3.13"
}

# uses_own_python: is the distribution's Python to be used (or would it be, once it is installed)?
uses_own_python() {
  if [ -n "${ACCELERD_PYTHON:-}" ]; then [ "$(base_of "$ACCELERD_PYTHON")" = "$(base_of "$OWN_PYTHON")" ]
  else ! have "$OWN_PYTHON" || "$OWN_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; fi
}

# base_of PYTHON: which Python it is, whatever environment it belongs to; empty when it does not run.
base_of() { "$1" -c 'import sys; print(sys.base_prefix, *sys.version_info[:2])' 2>/dev/null || true; }

has_gi() { "$1" -c 'from gi.repository import Gio, GLib' 2>/dev/null; }

# make_venv DIR: an environment that works, made anew when the Python below it is another one.
make_venv() {
  local python
  python=$(require_python) || exit 1
  if [ -x "$1/bin/python" ] && "$1/bin/python" -c 'import pip' 2>/dev/null; then
    [ "$(base_of "$1/bin/python")" = "$(base_of "$python")" ] && return 0
  fi
  rm -rf "$1"
  mkdir -p "$(dirname "$1")"
  log_run "$CACHE/venv.log" "$python" -m venv "$1"
}

# lend_gi DIR: lets the environment see the PyGObject of the Python below it; status 1 when that has none. A link and
# not --system-site-packages: then pip would take any package of the distribution for installed, and accelerd would
# break when the distribution removes or changes it.
lend_gi() {
  local python from to
  has_gi "$1/bin/python" && return 0
  python=$(find_python) || return 1
  from=$("$python" -c 'import os, gi; print(os.path.dirname(os.path.realpath(gi.__file__)))' 2>/dev/null) || return 1
  to=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/gi
  if [ -e "$to" ] && ! [ -L "$to" ]; then return 1; fi
  ln -sfn "$from" "$to"
  has_gi "$1/bin/python" && return 0
  rm -f "$to"
  return 1
}

# build_gi DIR: compiles PyGObject into the environment, where this machine can; newer ones want a newer GLib.
build_gi() {
  local wanted
  step "compiling PyGObject for $(short "$1"), as $(short "$(find_python)") has none"
  for wanted in PyGObject 'PyGObject<3.51'; do
    log_try "$CACHE/gi.log" "$1/bin/python" -m pip install "$wanted" && has_gi "$1/bin/python" && return 0
  done
  return 1
}

# build_venv REQUIREMENT...: prints the environment that builds things (never the daemon's own), with these in it.
build_venv() {
  local dir=$CACHE/build-venv wanted
  make_venv "$dir"
  for wanted in "$@"; do
    grep -qxF "$wanted" "$dir/.requirements" 2>/dev/null && continue
    log_run "$CACHE/build-venv.log" "$dir/bin/python" -m pip install "$@"
    printf '%s\n' "$@" >>"$dir/.requirements"
    break
  done
  printf '%s' "$dir"
}

# --- the compiler ---

find_cxx() {
  local name
  for name in ${CXX:-g++ c++}; do
    if have "$name"; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}
