# shellcheck shell=bash
# Functions shared by packaging/install, packaging/uninstall, packaging/build-llama-server and tests/run: messages,
# operating-system packages (installed only with the user's consent) and Python environments.
# Source it after `set -euo pipefail`. It changes nothing by itself.

ASSUME_YES=${ASSUME_YES:-0}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/accelerd
# pip uses the user's configuration, except that "--user" must not apply to our environments.
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
# short PATH: the path with ~ for the home directory.
short() { case $1 in "$HOME"/*) printf '~%s' "${1#"$HOME"}" ;; *) printf '%s' "$1" ;; esac }

# log_try LOG CMD...: runs CMD with its output in LOG; returns its status.
log_try() {
  mkdir -p "$(dirname "$1")"
  "${@:2}" >"$1" 2>&1 </dev/null
}

# log_run LOG CMD...: like log_try; if CMD fails, shows the end of LOG and exits.
log_run() {
  local log=$1
  log_try "$@" && return 0
  shift
  tail -n 25 "$log" >&2
  die "command failed: $*" "the full output is in $log"
}

# --- operating-system packages ---

package_manager() {
  if have apt-get; then echo apt
  elif have dnf; then echo dnf
  else echo none; fi
}

# package_for NEED: the packages that provide NEED on this system.
package_for() {
  case $(package_manager):$1 in
    apt:python) echo python3 python3-venv ;;
    apt:cxx) echo g++ ;;
    apt:vulkan) echo libvulkan-dev glslc spirv-headers ;;
    *:lavapipe) echo mesa-vulkan-drivers ;;
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
    dnf:vulkan) echo vulkan-headers vulkan-loader-devel glslc spirv-headers-devel ;;
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
    *) die "no known package provides '$1' on this system" ;;
  esac
}

# met NEED: is it already installed?
met() {
  case $1 in
    python) find_python >/dev/null ;;
    # optional: required only if a package can be installed, which exists for the distribution's own Python
    gi) ! can_install || ! uses_own_python || { find_python >/dev/null && has_gi "$(find_python)"; } ;;
    cxx) find_cxx >/dev/null ;;
    vulkan) have glslc && has_library vulkan && has_spirv_headers ;;
    lavapipe) compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' >/dev/null ;;
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

# has_library NAME: can programs be linked against it?
has_library() { compgen -G "/usr/lib*/lib$1.so" >/dev/null || compgen -G "/usr/lib/*/lib$1.so" >/dev/null; }
has_spirv_headers() { compgen -G "/usr/share/cmake/SPIRV-Headers" >/dev/null || compgen -G "/usr/lib*/cmake/SPIRV-Headers" >/dev/null; }

# has_typelib NAME: are the GObject bindings of a library installed?
has_typelib() { compgen -G "/usr/lib*/girepository-1.0/$1.typelib" >/dev/null || compgen -G "/usr/lib/*/girepository-1.0/$1.typelib" >/dev/null; }

# have_helper NAME: is it on $PATH or in one of podman's directories?
have_helper() {
  have "$1" || [ -x "/usr/libexec/podman/$1" ] || [ -x "/usr/lib/podman/$1" ]
}

# missing_packages NEED...: the packages that provide what is missing, on one line.
missing_packages() {
  local need package out=""
  for need in "$@"; do
    met "$need" && continue
    [ "$(package_manager)" = none ] && die "a requirement is missing ($need), and this system has neither apt-get nor dnf" \
      "install Python 3.11 or newer with its venv module, a C++ compiler, tar, gzip, awk, findutils and util-linux, then run this again"
    for package in $(package_for "$need"); do
      case "$out " in *" $package "*) ;; *) out+=" $package" ;; esac
    done
  done
  printf '%s' "${out# }"
}

# can_install: can packages be installed at all?
can_install() { [ "$(package_manager)" != none ] && { [ "$(id -u)" -eq 0 ] || have sudo; }; }

as_root_prefix() {
  if [ "$(id -u)" -eq 0 ]; then echo ""
  else echo "sudo "; fi
}

# package_commands PKG...: the shell commands that install the packages, one per line.
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

# consent COMMANDS: asks for permission to run them. Without a terminal, prints them and exits.
consent() {
  [ "$ASSUME_YES" = 1 ] && return 0
  if ! [ -t 0 ]; then
    die "cannot ask for permission without a terminal; nothing was changed" \
      "run these commands yourself, or use --yes:" "${@/#/  }"
  fi
  say "These commands need to be run:"
  local line answer
  for line in "$@"; do say "  $line"; done
  read -r -p "Run them? [Y/n] " answer || answer=n
  case $answer in
    "" | [Yy]*) ;;
    *) die "cancelled; nothing was changed" ;;
  esac
}

# install_packages PKG...: asks, then installs them. If that is impossible, exits with the commands to run by hand.
install_packages() {
  [ $# -gt 0 ] || return 0
  local commands line
  mapfile -t commands < <(package_commands "$@")
  if [ "$(id -u)" -ne 0 ] && ! have sudo; then
    die "packages are missing, and sudo is not installed; run these commands as root, then try again:" "${commands[@]/#sudo /  }"
  fi
  consent "${commands[@]}"
  step "installing packages: $*"
  for line in "${commands[@]}"; do
    # continue with a stale package list: the installation itself shows whether it works
    if [[ $line == *" update -q" ]]; then sh -c "$line" >"$(package_log)" 2>&1 || warn "could not update the package lists"
    else sh -c "$line" >>"$(package_log)" 2>&1 || { tail -n 25 "$(package_log)" >&2; die "command failed: $line"; }; fi
  done
  hash -r
}

# install_needs NEED...: asks, then installs the packages that provide what is missing.
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

# The Python that the distribution builds its modules for. It takes precedence over others on $PATH, because PyGObject,
# which accelerd uses to talk to systemd, has no binary wheels on PyPI.
OWN_PYTHON=${ACCELERD_SYSTEM_PYTHON:-/usr/bin/python3}

# find_python: prints the first Python that is new enough and can create environments; status 1 if there is none.
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

# require_python: like find_python, but exits with an error if there is none.
require_python() {
  find_python && return 0
  local found="no python3"
  have python3 && found=$(python3 --version 2>&1)
  die "cannot find Python 3.11 or newer with its venv module (found: $found)" \
    "install it from your distribution, or set ACCELERD_PYTHON=/path/to/python3.13"
}

# uses_own_python: is the distribution's Python used (or will it be, once it is installed)?
uses_own_python() {
  if [ -n "${ACCELERD_PYTHON:-}" ]; then [ "$(base_of "$ACCELERD_PYTHON")" = "$(base_of "$OWN_PYTHON")" ]
  else ! have "$OWN_PYTHON" || "$OWN_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; fi
}

# base_of PYTHON: identifies the Python installation behind an environment; empty if it does not run.
base_of() { "$1" -c 'import sys; print(sys.base_prefix, *sys.version_info[:2])' 2>/dev/null || true; }

has_gi() { "$1" -c 'from gi.repository import Gio, GLib' 2>/dev/null; }

# make_venv DIR: creates the environment, or recreates it if it belongs to another Python.
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

# lend_gi DIR: links the system's PyGObject into the environment; status 1 if the system has none. This is a link rather than
# --system-site-packages, because pip would then consider all packages of the distribution installed, and accelerd would
# break when the distribution removes or changes one.
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

# build_gi DIR: compiles PyGObject into the environment if possible; newer versions need a newer GLib.
build_gi() {
  local wanted
  step "compiling PyGObject for $(short "$1"), because $(short "$(find_python)") has none"
  for wanted in PyGObject 'PyGObject<3.51'; do
    log_try "$CACHE/gi.log" "$1/bin/python" -m pip install "$wanted" && has_gi "$1/bin/python" && return 0
  done
  return 1
}

# build_venv REQUIREMENT...: prints the path of the environment for building (never the daemon's own) with these installed.
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
