#!/bin/sh
# A `systemd --user` below the one that the user has, which sees nothing of the user's own units, files and sockets.
#   systemd-run --user --pipe --property=Delegate=yes session_manager.sh DIR SYSTEMD
# DIR holds home/ and run/. Ends when its standard input is closed, so also when the test run is killed; the user's
# systemd then kills every process of it, as they are all in the control group of this service.
set -eu
dir=$1
mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
group=$mount$(sed -n 's/^0:://p' /proc/self/cgroup)
mkdir "$group/shell"
echo $$ >"$group/shell/cgroup.procs"
echo "$group" >"$dir/cgroup"

sh -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$group" \
  env -i -C "$dir/home" HOME="$dir/home" USER="$(id -un)" LOGNAME="$(id -un)" SHELL=/bin/sh LANG=C.UTF-8 \
  PATH=/usr/local/bin:/usr/bin:/bin XDG_RUNTIME_DIR="$dir/run" XDG_DATA_HOME="$dir/home/.local/share" \
  DBUS_SESSION_BUS_ADDRESS="unix:path=$dir/run/bus" SYSTEMD_LOG_TARGET=console \
  "$2" --user >"$dir/manager.log" 2>&1 </dev/null &

cat >/dev/null # until the other end is closed
