"""packaging/build-llama-server for a GPU: what it needs is checked first, and each backend has a build of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accelerd.config import check
from tests.packaging.machine import PACKAGING, Machine

BACKENDS = ("vulkan", "cuda", "rocm")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.fake("g++", "echo g++ 12.2.0")
    return made


def build(machine: Machine, backend: str, *, target: str = "", sees: str = "Vulkan0: a card") -> Path:
    """A finished build as the script would have left it. Its llama-server is a fake that lists a device."""
    store = machine.home / ".cache/accelerd/llama-server" / f"key-{backend}"
    (store / "bin").mkdir(parents=True)
    code = "BACKEND=$1 TARGET=$2; stamp"
    (store / "build.txt").write_text(machine.shell("build-llama-server", code, backend, target))
    binary = store / "bin/llama-server"
    binary.write_text(f'#!/bin/sh\n[ "$1" != --list-devices ] || printf "Available devices:\\n%s\\n" "  {sees}"\n')
    binary.chmod(0o755)
    return binary


def vulkan_headers(folder: Path, version: str) -> Path:
    """What matters of vulkan_core.h, as VULKAN_SDK has it."""
    major, minor, patch = version.split(".")
    file = folder / "include/vulkan/vulkan_core.h"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"#define VK_HEADER_VERSION {patch}\n"
        f"#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, {major}, {minor}, VK_HEADER_VERSION)\n"
    )
    return folder


# --- which build ---


def test_builds_for_several_backends_lie_side_by_side(machine: Machine) -> None:
    binaries = {"cpu": build(machine, "cpu"), "vulkan": build(machine, "vulkan")}
    for backend, link in (("vulkan", "current-vulkan"), ("cpu", "current")):
        done = machine.run(PACKAGING / "build-llama-server", f"--{backend}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(binaries[backend])
        assert os.readlink(binaries[backend].parents[2] / link) == f"key-{backend}"
    assert machine.run(PACKAGING / "build-llama-server").stdout.strip() == str(binaries["cpu"])


def test_flags_name_one_backend_and_those_of_a_build_for_the_cpu_are_unchanged(machine: Machine) -> None:
    flags = {
        b: machine.shell("build-llama-server", "BACKEND=$1 TARGET=7; flags", b).split() for b in ("cpu", *BACKENDS)
    }
    assert {"-DGGML_CUDA=OFF", "-DGGML_VULKAN=OFF"} < set(flags["cpu"])
    for backend, own in (
        ("vulkan", {"-DGGML_VULKAN=ON"}),
        ("cuda", {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=7"}),
        ("rocm", {"-DGGML_HIP=ON", "-DGPU_TARGETS=7"}),
    ):
        assert set(flags[backend]) - set(flags["cpu"]) == own


def test_a_build_for_another_gpu_is_not_used(machine: Machine) -> None:
    binary = build(machine, "cuda", target="89")
    find = [PACKAGING / "build-llama-server", "--cuda", "--find"]
    assert machine.run(*find, "--target", "89").stdout.strip() == str(binary)
    assert machine.run(*find, "--target", "120").returncode == 1
    machine.fake("nvidia-smi", "echo 8.9")
    assert machine.run(*find).stdout.strip() == str(binary)


# --- what is there ---


def test_gpus_are_named_as_the_compilers_name_them(machine: Machine) -> None:
    machine.fake("nvidia-smi", "printf '12.0\\n8.6\\n8.6\\n'")
    assert machine.shell("build-llama-server", "nvidia_targets").strip() == "120;86"
    for number, version in enumerate((0, 110501, 90010, 120001, 110501)):  # 0: the processor
        node = machine.home / f"kfd/{number}/properties"
        node.parent.mkdir(parents=True)
        node.write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")
    found = machine.shell("build-llama-server", "KFD=$1; amd_targets", str(machine.home / "kfd"))
    assert found.strip() == "gfx1151;gfx1201;gfx90a"
    assert machine.shell("build-llama-server", "KFD=/nowhere; amd_targets || true").strip() == ""


@pytest.mark.parametrize(
    ("version", "enough"),
    [("1.3.204", False), ("1.2.300", False), ("1.3.239", True), ("1.3.1000", True), ("1.4.309", True)],
)
def test_vulkan_headers_that_are_too_old_are_named_with_what_to_do(
    machine: Machine, version: str, enough: bool
) -> None:
    sdk = vulkan_headers(machine.home / "sdk", version)
    code = f". {PACKAGING}/build-llama-server; met() {{ true; }}; BACKEND=vulkan; need_backend"
    done = machine.run("bash", "-c", code, VULKAN_SDK=str(sdk))
    assert (done.returncode == 0) is enough
    if not enough:
        assert f"too old: {version}" in done.stderr
        assert "export VULKAN_SDK=~/Vulkan-Headers" in done.stderr
        assert "docs/gpu.md" in done.stderr


def test_what_needs_newer_headers_is_taken_out(machine: Machine) -> None:
    source = machine.home / "ggml-vulkan.cpp"
    source.write_text("""
    VkBool32 enable_best_practice = layer_settings;
    std::vector<vk::LayerSettingEXT> settings = {
        { "validate_best_practices", vk::LayerSettingTypeEXT::eBool32, 1, &enable_best_practice },
    };
    vk::LayerSettingsCreateInfoEXT layer_setting_info(settings);
    vk::InstanceCreateInfo info(vk::InstanceCreateFlags{}, &app_info, layers, extensions, &layer_setting_info);
    next();
""")
    machine.shell("build-llama-server", 'allow_old_headers "$1"', str(source))
    kept = "    vk::InstanceCreateInfo info(vk::InstanceCreateFlags{}, &app_info, layers, extensions);\n    next();"
    assert source.read_text().strip("\n") == kept


@pytest.mark.parametrize(
    ("manager", "packages"),
    [
        ("apt-get", "libvulkan-dev glslc spirv-headers"),
        ("dnf", "vulkan-headers vulkan-loader-devel glslc spirv-headers-devel"),
    ],
)
def test_packages_for_vulkan_are_asked_for(machine: Machine, manager: str, packages: str) -> None:
    machine.fake(manager, "exit 1")
    code = f'. {PACKAGING}/build-llama-server; met() {{ [ "$1" != vulkan ]; }}; BACKEND=vulkan; need_backend'
    done = machine.run("bash", "-c", code)
    assert done.returncode == 1
    assert f" {packages}\n" in done.stderr
    assert not machine.called.exists()


def test_without_a_toolkit_the_error_says_where_to_get_it(machine: Machine) -> None:
    for backend, words in (("cuda", "sudo apt install nvidia-cuda-toolkit"), ("rocm", "found: none")):
        done = machine.run(
            PACKAGING / "build-llama-server", f"--{backend}", "--check", CUDA_PATH="/no", ROCM_PATH="/no"
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "--vulkan" in done.stderr, "what works without it"


@pytest.mark.parametrize(
    ("version", "libraries", "words"),
    [
        ("5.2.21153-0", ("hipblas", "rocblas"), "found: 5.2.21153"),
        ("6.3.42131-fa1d09cbd", ("hipblas",), "not the development files of: rocblas"),
        ("6.3.42131-fa1d09cbd", ("hipblas", "rocblas"), ""),
    ],
)
def test_rocm_is_checked(machine: Machine, version: str, libraries: tuple[str, ...], words: str) -> None:
    rocm = machine.home / "rocm"
    for library in libraries:
        (rocm / "lib/cmake" / library).mkdir(parents=True)
    machine.fake(
        "hipconfig", f"case $1 in --version) echo {version} ;; --rocmpath) echo {rocm} ;; -l) echo /llvm ;; esac"
    )
    code = f". {PACKAGING}/build-llama-server; BACKEND=rocm TARGET=gfx1151; need_backend; echo $HIPCXX $HIP_PATH"
    done = machine.run("bash", "-c", code)
    assert done.stdout.strip() == ("" if words else f"/llvm/clang {rocm}")
    assert (done.returncode == 0) is not bool(words)
    assert words in done.stderr


def test_a_gpu_must_be_there_or_named(machine: Machine) -> None:
    machine.fake("nvcc", "exit 0")
    check = [PACKAGING / "build-llama-server", "--cuda", "--check"]
    done = machine.run(*check)
    assert done.returncode == 1
    assert "such as: --target 89" in done.stderr
    assert machine.run(*check, "--target", "89").returncode == 0
    done = machine.run(PACKAGING / "build-llama-server", "--vulkan", "--target", "89", "--check")
    assert "--target is for --cuda and --rocm" in done.stderr


def test_a_build_that_sees_no_gpu_says_what_is_missing(machine: Machine) -> None:
    binary = build(machine, "vulkan", sees="(none)")
    done = machine.run(PACKAGING / "build-llama-server", "--vulkan")
    assert done.stdout.strip() == str(binary)
    assert "mesa-vulkan-drivers" in done.stderr
    binary.write_text(binary.read_text().replace("(none)", "Vulkan0: AMD Radeon 8060S"))
    assert "driver" not in machine.run(PACKAGING / "build-llama-server", "--vulkan").stderr


def test_progress_is_that_of_the_whole_build(machine: Machine) -> None:
    """The compiler of the shaders is built within it, with steps of its own."""
    ninja = "[0/300] begin\n[1/2] inner\n[2/2] inner\n[150/300] middle\n[1/2] inner\n[300/300] end\n"
    code = f'. {PACKAGING}/build-llama-server; progress "$HOME/build.log"'
    lines = machine.run("bash", "-c", code, stdin=ninja).stderr.splitlines()
    assert [" ".join(line.split()[:2]) for line in lines] == ["0 %", "50 %", "100 %"]


# --- the installer ---


def install(machine: Machine, code: str, **env: str) -> tuple[str, str]:
    done = machine.run("bash", "-c", f". {PACKAGING}/install; {code}", **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_the_installer_builds_for_the_backend_and_uses_it_from_then_on(machine: Machine) -> None:
    """Also where the configuration names another one, and after an upgrade, which is told nothing."""
    build(machine, "vulkan")
    config = machine.home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[engines.llama-server]\nbinary = "/old/llama-server"\n[models.m]\npath = "/m.gguf"\n')
    link = machine.home / ".cache/accelerd/llama-server/current-vulkan/bin/llama-server"
    run = "choose_engine; ensure_engine; write_config; remember_engine; echo $BACKEND $CHANGED"
    assert install(machine, f"parse --vulkan; {run}")[0] == "vulkan 1"
    assert link.exists()
    found = check(config, machine.home)[0]
    assert found is not None
    assert found.llama_server.binary == str(link)
    out, err = install(machine, run)
    assert out == "vulkan 0"
    assert "current-vulkan" in err
    build(machine, "cpu")
    assert install(machine, f"parse --cpu; {run}")[0] == "cpu 1"
    found = check(config, machine.home)[0]
    assert found is not None
    assert found.llama_server.binary == str(link).replace("current-vulkan", "current")


def test_one_llama_server_is_named_at_a_time(machine: Machine) -> None:
    done = machine.run(PACKAGING / "install", "--vulkan", ACCELERD_LLAMA_SERVER="/bin/true")
    assert done.returncode == 1
    assert "use one of them" in done.stderr
    assert not (machine.home / ".config").exists()


def test_before_a_long_build_for_the_processor_the_owner_of_a_gpu_is_told(machine: Machine) -> None:
    node = machine.home / "renderD128"
    node.touch()
    code = f'GPU_NODES="/nowhere* {machine.home}/renderD*"; choose_engine; check_build'
    assert "./packaging/install --vulkan" in install(machine, code)[1]
    assert install(machine, f"parse --cpu; {code}")[1] == "", "it was asked for"
    node.unlink()
    assert install(machine, code)[1] == ""
