"""docker and distrobox for machines that have neither: programs that speak their dialect, with real containers behind.

The stand-in for docker refuses what only podman knows, writes names with a slash, and hands the rest to podman. The
one for distrobox enters as distrobox-enter does: the whole environment on a command line, then a login shell.
"""

from __future__ import annotations

from pathlib import Path

DOCKER = r"""#!/usr/bin/env python3
import json, subprocess, sys

args = sys.argv[1:]
ONLY_PODMAN = ("--replace", "--userns", "--sdnotify", "--group-add=keep-groups", "--log-driver=passthrough", "unshare")
for arg in args[: args.index("--") if "--" in args else None]:
    if arg.startswith(ONLY_PODMAN):
        sys.exit(f"unknown flag: {arg}")
if args[0] == "run":
    keep = [a for a in args[1:] if a not in ("--log-driver=local",) and not a.startswith("--log-opt")]
    sys.exit(subprocess.call(["podman", "run", "--userns=keep-id", "--log-driver=k8s-file", *keep]))
if args[:2] == ["rm", "--force"] and len(args) > 3:
    sys.exit(f"unknown flag: {args[2]}")
if args[0] == "rm":  # docker kills at once
    sys.exit(subprocess.call(["podman", "rm", "--time", "0", *args[1:]]))
if args[:2] == ["container", "inspect"]:
    done = subprocess.run(["podman", *args], capture_output=True, text=True)
    if done.returncode:
        print("[]")
        sys.exit(f"Error response from daemon: No such container: {args[2]}")
    found = json.loads(done.stdout)
    for one in found:
        one["Name"] = "/" + one["Name"]
        one["Config"]["Image"] = one.pop("ImageName")
        one["ExecIDs"] = one["ExecIDs"] or None
        one["Image"] = "sha256:" + one["Image"]
    print(json.dumps(found))
    sys.exit(0)
sys.exit(subprocess.call(["podman", *args]))
"""

DISTROBOX = r"""#!/usr/bin/env python3
import os, subprocess, sys

args = sys.argv[1:]
assert args[:3] == ["enter", "--no-tty", "--name"] and args[4] == "--", args
name = args[3]
subprocess.run(["podman", "start", name], stdout=subprocess.DEVNULL, check=True)
env = [f"--env={k}={v}" for k, v in os.environ.items() if k not in ("PATH", "HOST", "HOSTNAME", "_")]
shell = ["/bin/bash", "-l", "-c", '"$0" "$@"', *args[5:]]
os.execvp("podman", ["podman", "exec", "--interactive", "--detach-keys=", f"--user={os.environ['USER']}",
                     f"--workdir={os.environ['HOME']}", *env, name, *shell])
"""


def install(folder: Path, *names: str) -> Path:
    """Write the stand-ins called `names` into a directory, which is to come first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        path.write_text({"docker": DOCKER, "distrobox": DISTROBOX}[name])
        path.chmod(0o755)
    return folder
