"""Containers that models run in: the programs for them, rootless podman, and whether each container exists.

Reports nothing where no model of the configuration runs in a container.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.text import count

# What each home needs: one of these programs for every entry.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "toolbox": (("toolbox",), ("podman",)),
    "distrobox": (("distrobox",), ("podman", "docker")),
    "podman": (("podman",),),
    "docker": (("docker",),),
    "container": (("podman", "docker"),),
}
INSTALL = {
    "toolbox": "sudo apt install podman-toolbox   (Fedora: sudo dnf install toolbox)",
    "podman": "sudo apt install podman uidmap slirp4netns   (Fedora: sudo dnf install podman)",
    "distrobox": "sudo apt install distrobox   (Fedora: sudo dnf install distrobox)",
    "docker": "sudo apt install docker.io   (Fedora: sudo dnf install moby-engine)",
}


def models_in(s: CheckContext, *homes: str) -> list[Any]:
    return [spec for spec in s.config.models.values() if spec.home in homes]


def programs(s: CheckContext) -> Iterator[Check]:
    """Are the programs installed that the configured homes need?"""
    for home, needed in NEEDED.items():
        models = models_in(s, home)
        for names in needed if models else ():
            found = first_there(s, names)
            if found is None:
                one = " or ".join(names)
                detail = f'{one} is not installed, but home = "{home}" needs it ({named(models)})'
                yield Check(home, "fail", detail, INSTALL[names[0]])
            elif names == needed[0]:
                yield Check(home, "ok", f"{found}, for {count(len(models), 'model')}")


def first_there(s: CheckContext, names: Iterable[str]) -> str | None:
    """The first of these programs that answers, in its own words."""
    for name in names:
        outcome = s.programs.run([name, "version" if name == "distrobox" else "--version"])
        if outcome.status != 127:
            return (outcome.stdout.strip().splitlines() or [name])[0]
    return None


def rootless(s: CheckContext) -> Iterator[Check]:
    """Can this user run containers with podman?"""
    homes = ("toolbox", "podman") if s.uid else ()
    if not models_in(s, *homes):
        return
    outcome = s.programs.run(["podman", "unshare", "true"], timeout=30.0)
    if outcome.status == 127:
        return  # reported already
    if outcome.status == 0:
        yield Check("rootless", "ok", "rootless podman works for this user")
        return
    reason = (outcome.stderr.strip().splitlines() or [f"it ended with status {outcome.status}"])[-1]
    lacking = "subuid" in outcome.stderr or "newuidmap" in outcome.stderr
    ids = "100000-165535"
    fix = f"sudo usermod --add-subuids {ids} --add-subgids {ids} {s.user} && podman system migrate"
    detail = f"rootless podman does not work for this user: {reason}"
    yield Check("rootless", "fail", detail, fix if lacking else "podman info")


def there(s: CheckContext) -> Iterator[Check]:
    """Does each container exist that a model runs in, and has each image been pulled?"""
    good = 0
    for home, engines in (
        ("toolbox", ("podman",)),
        ("distrobox", ("podman", "docker")),
        ("container", ("podman", "docker")),
    ):
        for name, models in by_name(models_in(s, home)).items():
            outcomes = [s.programs.run([engine, "container", "inspect", name]) for engine in engines]
            if all(outcome.status == 127 for outcome in outcomes):
                continue  # reported already
            if any(outcome.status == 0 for outcome in outcomes):
                good += 1
                continue
            kind = "container" if home == "container" else home
            flag = "name" if home == "distrobox" else "container"
            fix = "podman ps --all" if home == "container" else f"{home} create --image IMAGE --{flag} {name}"
            yield Check("containers", "fail", f"the {kind} {name} does not exist ({', '.join(models)})", fix)
    for home in ("podman", "docker"):
        for spec in models_in(s, home):
            outcome = s.programs.run([home, "image", "inspect", spec.image or ""])
            if outcome.status not in (0, 127):
                detail = f"the image {spec.image} has not been pulled yet, so its first load will take longer"
                yield Check("containers", "warn", f"{spec.name}: {detail}", f"{home} pull {spec.image}")
            elif outcome.status == 0:
                good += 1
    if good:
        yield Check("containers", "ok", f"{count(good, 'container or image', 'containers and images')} of models")


def by_name(models: Iterable[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for spec in models:
        found.setdefault(spec.container or "", []).append(spec.name)
    return found


def named(models: Iterable[Any]) -> str:
    return ", ".join(spec.name for spec in models)
