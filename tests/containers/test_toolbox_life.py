"""A model in a toolbox: how it is handed in, what it sees, how its end is told, how another daemon takes it over."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from accelerd.supervise.homes.containers.handoff import NOT_FOUND, inner_environment
from accelerd.supervise.homes.home import HomeError, NoProgram

from .world import Life, World, find, parent, read

HARD = "a'b\"c $HOME `id` \\ \n second line\ttab é"


def command_lines() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue  # it ended
    return found


async def test_it_serves_and_is_the_leader_itself(containers: World) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch()).start()
    await life.ready()
    assert life.members() == [life.main.pid]
    assert read(f"/proc/{life.main.pid}/comm").strip() == "python3"
    assert await life.stop() == 0
    assert "listening on unix://" in life.text
    assert "cleaning up before exit" in life.text  # also what came last


async def test_environment_arrives_whole_and_on_no_command_line(containers: World) -> None:
    """toolbox passes a dozen variables only; --env would show them all in `ps`."""
    show = 'printf "%s\\0" "$HARD" "$LLAMA_API_KEY" "$PATH" "$HSA_OVERRIDE_GFX_VERSION"; sleep 60'
    env = (("HARD", HARD), ("HSA_OVERRIDE_GFX_VERSION", "11.5.1"))
    life = await Life(
        containers, containers.toolbox_home(), containers.launch(argv=("sh", "-c", show), env=env)
    ).start()
    await life.until(lambda: life.output.count(b"\0") == 4)
    hard, key, path, version = life.text.split("\0")[:4]
    assert (hard, version) == (HARD, "11.5.1")
    assert key == f"secret-{life.launch.tag.instance}"
    assert path != "/nowhere"  # the container's own
    assert "/usr/bin" in path
    assert not any(key.encode() in line or b"second line" in line for line in command_lines())
    names = [f.name for f in containers.roots.instances.iterdir() if f.name.startswith(life.launch.tag.instance)]
    assert f"{life.launch.tag.instance}.env" not in names  # read once
    assert f"{life.launch.tag.instance}.env.taken" not in names
    await life.stop()


def test_of_the_host_passes_only_what_was_asked_for(containers: World) -> None:
    env = {"PATH": "/host", "LD_PRELOAD": "/x.so", "UID": "0", "A": "1", "odd-name": "2", "INVOCATION_ID": "3"}
    assert inner_environment(containers.launch().spec, env) == {"A": "1"}
    spec = containers.launch(env=(("PATH", "/mine"),)).spec
    assert inner_environment(spec, env | {"PATH": "/mine"}) == {"PATH": "/mine", "A": "1"}


@pytest.mark.parametrize("code", [0, 1, 7, 96, 125, 126, 127])
async def test_exit_statuses_are_exact(containers: World, code: int) -> None:
    """`toolbox run` itself turns 127 into 0."""
    argv = ("sh", "-c", f"sleep 0.3; echo over; exit {code}")
    life = await Life(containers, containers.toolbox_home(), containers.launch(argv=argv)).start()
    await life.ended.wait()
    assert await life.gone() == code
    assert life.text.endswith("over\n")


@pytest.mark.parametrize("code", [3, NOT_FOUND])
async def test_a_program_that_ends_at_once_has_ended(containers: World, code: int) -> None:
    argv = ("sh", "-c", f"echo no such flag >&2; exit {code}")
    life = await Life(containers, containers.toolbox_home(), containers.launch(argv=argv)).start()
    await life.ended.wait()
    assert await life.gone() == code
    assert life.text == "no such flag\n"


async def test_killed_by_a_signal(containers: World) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch()).start()
    await life.ready()
    os.kill(life.main.pid, signal.SIGKILL)
    await life.ended.wait()
    assert await life.gone() == -signal.SIGKILL
    assert life.main.result is None


async def test_a_missing_program_is_said_and_leaves_nothing(containers: World) -> None:
    life = Life(containers, containers.toolbox_home(), containers.launch(argv=("llama-not-there", "--host", "x")))
    with pytest.raises(NoProgram, match=f"no such program in toolbox {containers.toolbox}"):
        await life.start()
    life.nothing_left()


async def test_a_missing_toolbox_is_said(containers: World) -> None:
    life = Life(containers, containers.toolbox_home(), containers.launch(container="not-there"))
    with pytest.raises(HomeError, match="there is no toolbox called not-there: see toolbox list"):
        await life.start()
    assert life.members() == []


async def test_a_file_that_cannot_be_executed(containers: World) -> None:
    broken = containers.home / "broken"
    broken.write_text("#!/not/there\n")
    broken.chmod(0o755)
    life = await Life(containers, containers.toolbox_home(), containers.launch(argv=(str(broken),))).start()
    await life.ended.wait()
    assert await life.gone() in (126, 127)
    assert "not found" in (life.main.unexecuted(life.text.splitlines()[-1]) or "")


async def test_working_directory_and_a_login_shell_that_talks(containers: World) -> None:
    with containers.at_login("echo welcome; echo welcome >&2; export HARD=profile PATH=$PATH:/from-profile\n"):
        argv = ("sh", "-c", 'echo "$PWD $HARD $PATH"; sleep 60')
        launch = containers.launch(argv=argv, env=(("HARD", "mine"),))
        life = await Life(containers, containers.toolbox_home(), launch).start()
        await life.until(lambda: b"\n" in life.output)
        cwd, hard, path = life.text.split()
        assert (cwd, hard) == (str(containers.home), "mine")
        assert path.endswith("/from-profile")
        assert "welcome" not in life.text
        await life.stop()


async def test_a_login_shell_that_never_comes_to_it(containers: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerd.supervise.homes.containers.toolbox.START_PATIENCE", 5.0)
    with containers.at_login("echo waiting for godot; sleep 61\n"):
        life = Life(containers, containers.toolbox_home(), containers.launch())
        with pytest.raises(HomeError, match=r"login shell wait.*waiting for godot"):
            await life.start()
        assert life.members() == []
        for pid in find("sleep", "61"):
            os.kill(pid, signal.SIGKILL)


async def test_a_stopped_toolbox_is_started_in_a_scope_of_its_own(containers: World) -> None:
    name = containers.new_toolbox(started=False)
    life = await Life(containers, containers.toolbox_home(), containers.launch(container=name)).start()
    await life.ready()
    monitor = containers.inspect(name)["State"]["ConmonPid"]
    mine = read("/proc/self/cgroup").splitlines()[-1]
    assert read(f"/proc/{monitor}/cgroup").splitlines()[-1] != mine
    assert await life.stop() == 0
    assert containers.inspect(name)["State"]["Running"]  # it is the user's


async def test_nice_and_oom_score_hold_inside(containers: World) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch(nice=19, oom_score_adjust=321)).start()
    await life.ready()
    fields = read(f"/proc/{life.main.pid}/stat").rpartition(")")[2].split()
    assert int(fields[16]) == 19  # the tests themselves may be nice
    assert read(f"/proc/{life.main.pid}/oom_score_adj").strip() == "321"
    await life.stop()


@pytest.mark.parametrize("when", ["at once", "handed over", "taken"])
async def test_cancelled_while_it_starts_leaves_nothing(containers: World, when: str) -> None:
    slow = ("sh", "-c", "sleep 5")
    life = Life(containers, containers.toolbox_home(), containers.launch(argv=slow))
    env = containers.roots.instances / f"{life.launch.tag.instance}.env"
    task = asyncio.create_task(life.start())
    await asyncio.sleep(0)
    if when != "at once":
        await life.until(env.exists)
    if when == "taken":
        await life.until(lambda: not env.exists())
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        await asyncio.sleep(0.3)  # what was on its way would have arrived
        life.nothing_left()
    else:
        assert when == "taken"  # from there it is soon done: it may have been faster than this test
        await life.stop()


async def test_a_flood_of_output_stops_neither_side(containers: World) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch("flood")).start()
    await life.ready()
    assert await life.stop() == 0
    assert len(life.output) > 10_000


# --- survival ---------------------------------------------------------------------------------------------------


async def test_the_next_daemon_takes_it_over(containers: World) -> None:
    first = await Life(containers, containers.toolbox_home(), containers.launch()).start()
    await first.ready()
    await first.daemon_dies()
    second = Life(containers, containers.toolbox_home(), first.launch)
    assert await second.adopt() is not None
    assert second.main.pid == first.main.pid
    await second.ready()
    assert await second.stop() == 0  # the exit status too is known
    assert "cleaning up before exit" in second.text


async def test_what_it_prints_meanwhile_is_kept_and_never_kills_it(containers: World) -> None:
    argv = ("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    first = await Life(containers, containers.toolbox_home(), containers.launch(argv=argv)).start()
    await first.until(lambda: b"tick" in first.output)
    shell = parent(first.main.pid)
    await first.daemon_dies()
    for pid in (parent(shell), *find("podman", "exec", first.launch.tag.instance)):
        os.kill(pid, signal.SIGKILL)  # conmon and its client
    await asyncio.sleep(0.3)
    second = Life(containers, containers.toolbox_home(), first.launch)
    assert await second.adopt() is not None
    await second.until(lambda: second.output.count(b"tick") > 10)
    second.main.signal(signal.SIGTERM)
    await second.until(second.main.exited.is_set)
    await second.main.release()
    assert second.members() == []


async def test_killed_before_it_began_it_never_begins(containers: World) -> None:
    """The environment is taken back, and without it nothing starts."""
    home = containers.toolbox_home()
    first = Life(containers, home, containers.launch())
    task = asyncio.create_task(first.start())
    env = containers.roots.instances / f"{first.launch.tag.instance}.env"
    await first.until(env.exists)
    second = Life(containers, containers.toolbox_home(), first.launch)
    assert await second.adopt() is None
    with pytest.raises(HomeError):
        await task
    second.nothing_left()


async def test_adopting_what_has_ended_cleans_up(containers: World) -> None:
    first = await Life(containers, containers.toolbox_home(), containers.launch()).start()
    await first.ready()
    await first.daemon_dies()
    os.kill(first.main.pid, signal.SIGKILL)
    await first.until(lambda: not first.members())
    second = Life(containers, containers.toolbox_home(), first.launch)
    assert await second.adopt() is None
    await second.until(lambda: containers.inspect(containers.toolbox)["ExecIDs"] == [])
    second.nothing_left()


@pytest.mark.parametrize("where", ["home", "model"])
async def test_without_survival_it_ends_with_the_daemon(containers: World, where: str) -> None:
    home = containers.toolbox_home(survives=where != "home")
    life = await Life(containers, home, containers.launch(survive=where != "model")).start()
    await life.ready()
    await life.daemon_dies()  # closes what the guard inside waits for
    await life.until(lambda: not life.members())
    assert "cleaning up before exit" not in life.text  # nobody read it any more
    assert await Life(containers, home, life.launch).adopt() is None
