#!/bin/sh
# What rootless podman and toolbox need beside a user manager, on a machine that was not booted with systemd.
#   unshare --mount container_world.sh DIR UID GID SYSTEMD
# DIR holds passwd, group and subid (with entries for UID), home/ and run/, the last two owned by UID. Everything here
# is in this mount namespace; private_manager.sh, beside this script, goes on from there and waits for the end.
set -eu
dir=$1
mount --make-rprivate /
mount --bind "$dir/group" /etc/group
mount --bind "$dir/subid" /etc/subuid
mount --bind "$dir/subid" /etc/subgid
mount -t tmpfs -o mode=1777 tmpfs /dev/shm # podman's locks are named after the uid only
mkdir "$dir/dev"
for node in fuse:/dev/fuse:229 tun:/dev/net/tun:200; do
  name=${node%%:*} rest=${node#*:}
  mknod -m 666 "$dir/dev/$name" c 10 "${rest#*:}"
  [ ! -e "${rest%%:*}" ] || mount --bind "$dir/dev/$name" "${rest%%:*}"
done
# toolbox mounts the system bus' socket into its containers; nobody has to listen there
mkdir -p /run/dbus
mount -t tmpfs tmpfs /run/dbus
python3 -c 'import os, socket; path = "/run/dbus/system_bus_socket"
socket.socket(socket.AF_UNIX).bind(path); os.chmod(path, 0o666)'
exec sh "$(dirname "$0")/private_manager.sh" "$@"
