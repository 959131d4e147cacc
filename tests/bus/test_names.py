"""Names on the bus: paths, errors, and the interfaces' XML as a manual."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gi.repository import GLib
from hypothesis import given
from hypothesis import strategies as st

from accelerd import bus
from accelerd.base import names
from accelerd.base.errors import BUS_NAMES, KINDS, AccelError
from accelerd.bus.paths import device_path, error_name, escape, job_path, model_path

INTERFACES = sorted((Path(bus.__file__).parent / "interfaces").glob("*.xml"))
SINCE = re.compile(r"^\s*Since: \d+\.\d+$", re.MULTILINE)
NOT_SET = re.compile(r'\b(empty|0 if|0 while|never 0|omitted)|"\/" if|-1 if', re.IGNORECASE)


def unescape(part: str) -> str:
    return re.sub(rb"_([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), part.encode()).decode()


@given(st.text(min_size=1))
def test_a_name_is_found_again_in_its_path(name: str) -> None:
    assert unescape(escape(name)) == name
    assert GLib.Variant.is_object_path(model_path(name))


def test_paths() -> None:
    assert model_path("qwen3-8b") == "/org/accelerd1/models/qwen3_2d8b"
    assert device_path("0000:c5:00.0") == "/org/accelerd1/devices/0000_3ac5_3a00_2e0"
    assert job_path(17) == "/org/accelerd1/jobs/17"
    assert escape("") == "_"


@pytest.mark.parametrize("code", KINDS)
def test_every_error_has_a_name_on_the_bus(code: str) -> None:
    name = error_name(AccelError(code, "cannot do it"))
    assert re.fullmatch(r"org\.accelerd1\.Error\.[A-Z][A-Za-z]+", name)


def test_every_interface_has_one_file_of_its_name() -> None:
    found = [file.stem for file in INTERFACES]
    assert sorted([names.BUS_MANAGER, names.BUS_MODEL, names.BUS_DEVICE, names.BUS_JOB]) == found
    for file in INTERFACES:
        [interface] = ElementTree.parse(file).getroot().findall("interface")
        assert interface.get("name") == file.stem


def documented(file: Path) -> list[tuple[ElementTree.Element, str]]:
    """Each member with the comment before it."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    root = ElementTree.parse(file, ElementTree.XMLParser(target=builder)).getroot()
    interface = root.find("interface")
    assert interface is not None
    found, comment = [], ""
    for child in interface:
        if child.tag is ElementTree.Comment:
            comment = child.text or ""
        else:
            found.append((child, comment))
            comment = ""
    return found


MEMBERS = [(file.stem, element, text) for file in INTERFACES for element, text in documented(file)]


@pytest.mark.parametrize(("interface", "element", "text"), MEMBERS, ids=[f"{i}.{e.get('name')}" for i, e, _ in MEMBERS])
def test_the_xml_is_the_manual(interface: str, element: ElementTree.Element, text: str) -> None:
    """Every member says what it means and since when; methods their arguments and errors, properties what empty is."""
    name = element.get("name")
    assert text.strip().startswith(f"{name}:"), f"{interface}.{name} has a comment that begins with its name"
    assert SINCE.search(text)
    for argument in element.findall("arg"):
        assert re.search(rf"^\s*@{argument.get('name')}: \S", text, re.MULTILINE), f"@{argument.get('name')}"
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", argument.get("name", ""))
    if element.tag == "method":
        assert re.search(r"^\s*Errors: \S", text, re.MULTILINE)
    if element.tag == "property" and element.get("type") != "b":
        assert NOT_SET.search(text), "what an empty value, or 0, means"
    if name and name.endswith("USec"):
        assert "microseconds" in text
    errors = text.partition("Errors:")[2] if element.tag == "method" else ""
    for error in re.findall(r"\b[A-Z][a-z]+[A-Z]\w+\b(?!\.)|\bBusy\b", errors.replace("Manager.", "")):
        known = {*BUS_NAMES.values(), "LoadModel", "UnloadModel", "ErrorName", "ErrorMessage"}
        assert error in known
