"""Where a model lives: what each home needs, what it cannot use, and what the values may be."""

from __future__ import annotations

import pytest

from tests.config.config_home import Home


def said(home: Home, settings: str) -> list[str]:
    home.write(f"[models.m]\nmodel = 'a/b'\n{settings}\n")
    return [f"{p.severity} {p.key}: {p.message}" for p in home.check()[1]]


GOOD = [
    'home = "child"\nnice = 5\noom_score_adjust = 500',
    'home = "systemd"\nmemory_max = "8GiB"\nmemory_high = "7GiB"\ncpu_weight = 50\nio_class = "idle"\ntasks_max = 200',
    'home = "toolbox"\ncontainer = "llama-vulkan-radv"\nbinary = "/opt/inside/only/llama-server"',
    'home = "distrobox"\ncontainer = "llama"\nsurvive = false',
    'home = "container"\ncontainer = "llama_1.2"',
    'home = "podman"\nimage = "ghcr.io/ggml-org/llama.cpp:server-vulkan"\ndevices = ["/dev/dri", "nvidia.com/gpu=all"]'
    '\nmounts = ["/data", "/models:/m:ro"]',
    'home = "docker"\nimage = "localhost:5000/llama@sha256:abc"',
    'memory_max = "none"',
]


@pytest.mark.parametrize("settings", GOOD)
def test_what_each_home_takes(home: Home, settings: str) -> None:
    assert said(home, settings) == []


BAD = [
    ('home = "cloud"', 'home: expected one of "auto", "child"'),
    ('home = "toolbox"', 'home: set container = "…", the name of a toolbox'),
    ('home = "container"', 'home: set container = "…", the name of an existing container'),
    ('container = "x"', "container: set home ="),
    ('home = "systemd"\ncontainer = "x"', 'container: has no effect with home = "systemd"'),
    ('home = "podman"', 'home: home = "podman" requires image'),
    ('image = "x"', 'image: requires home = "podman" or "docker"; home is "auto"'),
    ('home = "toolbox"\ncontainer = "x"\ndevices = ["/dev/dri"]', "devices: requires home"),
    ('home = "toolbox"\ncontainer = "--privileged"', "container: expected a container's name"),
    ('home = "podman"\nimage = "--privileged"', "image: expected an image"),
    ('home = "podman"\nimage = "x"\ndevices = ["/etc"]', "devices[0]: expected a device"),
    ('home = "podman"\nimage = "x"\nmounts = ["models"]', 'mounts[0]: expected "HOST"'),
    ('home = "podman"\nimage = "x"\nmounts = ["/a:/b:exec"]', 'mounts[0]: expected "HOST"'),
    ('memory_max = "1KiB"', "memory_max: expected"),
    ('memory_max = "1GiB"\nmemory_high = "2GiB"', "memory_high: expected at most memory_max = 1GiB"),
    ('memory_max = "1GiB"\nmemory = "2GiB"', "memory: expected at most memory_max = 1GiB"),
    ("nice = -5", "nice: expected a whole number from 0 to 19"),
    ("cpu_weight = 0", "cpu_weight: expected a whole number from 1 to 10000"),
    ("oom_score_adjust = -1000", "oom_score_adjust: expected a whole number from 0 to 1000"),
    ('io_class = "realtime"', 'io_class: expected one of "idle", "best-effort"'),
]


@pytest.mark.parametrize(("settings", "says"), BAD)
def test_what_a_home_cannot_do_is_an_error_at_the_setting(home: Home, settings: str, says: str) -> None:
    found = said(home, settings)
    assert len(found) == 1, found
    assert found[0].startswith(f"error models.m.{says}")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('home = "child"\nmemory_max = "1GiB"', 'memory_max: has no effect with home = "child"'),
        ('home = "child"\ntasks_max = 10', "tasks_max: has no effect"),
        ('home = "child"\nsurvive = true', 'survive: a model with home = "child"'),
    ],
)
def test_what_a_plain_child_cannot_keep_is_a_warning(home: Home, settings: str, says: str) -> None:
    found = said(home, settings)
    assert len(found) == 1, found
    assert found[0].startswith(f"warning models.m.{says}")


def test_a_home_can_be_everybodys_default(home: Home) -> None:
    models = '[models.a]\nmodel = "o/a"\n[models.b]\nmodel = "o/b"\nmemory_max = "9G"\n'
    home.write(f'[defaults]\nhome = "toolbox"\ncontainer = "box"\n{models}')
    config, problems = home.check()
    assert problems == []
    assert config is not None
    assert {m.home for m in config.models.values()} == {"toolbox"}
    assert config.models["a"].memory_max is None
    assert config.models["b"].memory_max is not None
    assert config.models["a"].launch_key() != config.models["b"].launch_key()
