#!/bin/sh
# A real `systemd --user` for an unprivileged user, on a machine that was not booted with systemd.
#   unshare --mount private_manager.sh DIR UID GID
# DIR holds passwd (with an entry for UID), home/ and run/, the last two owned by UID. Nothing outside this mount
# namespace changes but one control group, which is removed at the end. Ends when its standard input is closed, so also
# when the test run is killed; then every process of the manager is killed at once.
set -eu
dir=$1 uid=$2 gid=$3
mount --make-rprivate /
mount --make-rshared / # among themselves: toolbox wants it of every mount that it hands on
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount -l /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system # sd_booted(3): without it the manager refuses to run
mount --bind "$dir/passwd" /etc/passwd

group=/sys/fs/cgroup/accelerd-test-$$-$(basename "$dir") # numbers of processes come again
mkdir "$group" "$group/shell"
for delegated in "$group" "$group/shell"; do
  chown "$uid:$gid" "$delegated" "$delegated/cgroup.procs" "$delegated/cgroup.threads" "$delegated/cgroup.subtree_control"
done
echo "$group" >"$dir/cgroup"

if [ -n "${JOURNALD:-}" ]; then
  # What it writes gets this user's group, who may read it then.
  mkdir -p /run/log /run/systemd/journald.conf.d
  mount -t tmpfs tmpfs /run/log
  mkdir -m 2755 /run/log/journal
  chgrp "$gid" /run/log/journal
  printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\n' >/run/systemd/journald.conf.d/test.conf
  sh -c 'echo $$ >"$1/shell/cgroup.procs"; exec "$2"' sh "$group" "$JOURNALD" >"$dir/journald.log" 2>&1 </dev/null &
  for _ in $(seq 100); do [ -S /run/systemd/journal/stdout ] && [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
fi

sh -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$group" \
  setpriv --reuid="$uid" --regid="$gid" --clear-groups --inh-caps=-all \
  env -i -C "$dir/home" HOME="$dir/home" USER=accelerd-test LOGNAME=accelerd-test SHELL=/bin/sh LANG=C.UTF-8 \
  PATH=/usr/local/bin:/usr/bin:/bin XDG_RUNTIME_DIR="$dir/run" \
  DBUS_SESSION_BUS_ADDRESS="unix:path=$dir/run/bus" SYSTEMD_LOG_TARGET=console \
  "$4" --user >"$dir/manager.log" 2>&1 </dev/null &

cat >/dev/null # until the other end is closed

echo 1 >"$group/cgroup.kill"
for _ in 1 2 3 4 5 6 7 8 9 10; do
  find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
  sleep 0.05
done
