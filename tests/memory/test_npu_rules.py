"""The rules of NPUs as data: conflicts are symmetric, what is unknown is taken carefully."""

from __future__ import annotations

from itertools import product

import pytest

from accelerd.devices.inventory import NPUS
from accelerd.devices.model import Device
from accelerd.memory.model import RAM, Claim, MemoryRequirement, Pool
from accelerd.memory.npu_rules import (
    CONTEXTS,
    FAMILIES,
    apart,
    claimed,
    clash,
    conflict,
    contexts,
    first_device,
    lacking,
    on_npu,
)

NPU, OTHER, GPU = "0000:c2:00.1", "0000:c6:00.1", "0000:c1:00.0"
KINDS = ("llm", "asr", "embed")
HALO = Device("npu", "RyzenAI-npu5", "amdxdna", NPU, vendor="1022", device="17f0", columns=8)


def need(*claims: Claim, devices: tuple[str, ...] = ()) -> MemoryRequirement:
    return MemoryRequirement({RAM: 1}, "test", devices or tuple(claim.device for claim in claims), claims=claims)


def test_what_a_rule_says_of_one_family_it_says_of_the_other() -> None:
    claims = [
        Claim(device, family, kind, host=host)
        for device, family, kind, host in product((NPU, OTHER), (*FAMILIES, "new"), KINDS, ("", "Lemonade"))
    ]
    for a, b in product(claims, claims):
        assert (conflict(a, b) is None) == (conflict(b, a) is None), (a, b)
        if a.device != b.device:
            assert conflict(a, b) is None


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (("flm", "llm"), ("flm", "llm"), None),  # B: three `flm serve` ran at once
        (("flm", "llm"), ("flm", "asr"), None),
        (("flm", "llm"), ("whispercpp", "asr"), "flm and whispercpp cannot use the NPU at the same time"),
        (("flm", "llm"), ("ryzenai-llm", "llm"), "flm and ryzenai-llm cannot use the NPU at the same time"),
        (
            ("ryzenai-llm", "llm"),
            ("whispercpp", "asr"),
            "ryzenai-llm and whispercpp cannot use the NPU at the same time",
        ),
        (("whispercpp", "asr"), ("whispercpp", "asr"), "whispercpp has the NPU for itself, one model at a time"),
        (("new", "llm"), ("new", "llm"), "new has the NPU for itself, one model at a time"),
        (("new", "llm"), ("flm", "llm"), "new and flm cannot use the NPU at the same time"),
    ],
)
def test_families_on_one_npu(a: tuple[str, str], b: tuple[str, str], why: str | None) -> None:
    assert conflict(Claim(NPU, *a), Claim(NPU, *b)) == why


@pytest.mark.parametrize(
    ("hosts", "kinds", "together"),
    [
        (("Lemonade", "Lemonade"), ("llm", "llm"), False),
        (("Lemonade", "Lemonade"), ("llm", "embed"), True),
        (("Lemonade", "another"), ("llm", "llm"), True),
        (("Lemonade", ""), ("llm", "llm"), True),
        (("", ""), ("llm", "llm"), True),
    ],
)
def test_one_server_holds_one_flm_model_of_a_kind(
    hosts: tuple[str, str], kinds: tuple[str, str], together: bool
) -> None:
    a, b = (Claim(NPU, "flm", kind, host=host) for kind, host in zip(kinds, hosts, strict=True))
    assert conflict(a, b) == (None if together else "Lemonade holds one flm model of the kind llm at a time")


def test_any_two_claims_of_two_models_may_clash() -> None:
    both = need(Claim(NPU, "flm", "llm"), Claim(OTHER, "flm", "asr"))
    assert clash(both, need(Claim(OTHER, "whispercpp", "asr")))
    assert clash(both, need(Claim(OTHER, "flm", "asr"))) is None
    assert clash(both, need()) is None


# --- contexts ---


def test_B_contexts_by_generation() -> None:
    assert contexts(HALO) == 16
    assert contexts(Device("npu", "Phoenix", vendor="1022", device="1502")) == 6
    assert contexts(Device("npu", "Intel", vendor="8086", device="7d1d")) is None, "unknown: no limit"
    assert contexts(Device("gpu", "no NPU", vendor="1022", device="17f0")) is None


def test_every_npu_of_amd_that_is_known_has_its_contexts() -> None:
    assert {ids for ids in NPUS if ids[0] == "1022"} == set(CONTEXTS)


def test_contexts_are_summed_over_a_models_claims() -> None:
    three = need(*(Claim(NPU, "flm", kind) for kind in KINDS))
    pool = Pool(NPU, "NPU", 0, contexts=5)
    assert claimed([three, three], NPU) == 6
    assert list(lacking(three, [three], [pool])) == [(pool, 3, 3)]
    assert list(lacking(three, [], [pool])) == []
    assert list(lacking(three, [three], [Pool(NPU, "NPU", 0)])) == [], "nobody knows how many there are"
    assert list(lacking(need(), [three, three], [pool])) == [], "who wants none lacks none"


# --- the two kinds ---


def test_apart() -> None:
    npu, gpu = need(Claim(NPU, "flm", "llm")), MemoryRequirement({GPU: 1}, "test", (GPU,))
    assert (on_npu(npu), on_npu(gpu)) == (True, False)
    assert apart(npu, gpu)
    assert apart(gpu, npu)
    assert not apart(npu, npu)
    assert not apart(gpu, MemoryRequirement({RAM: 1}, "test"))


def test_a_model_on_both_works_on_the_gpu_first() -> None:
    claim = Claim(NPU, "ryzenai-llm", "llm")
    assert first_device(need(claim, devices=(NPU, GPU))) == GPU
    assert first_device(need(claim)) == NPU
    assert first_device(MemoryRequirement({RAM: 1}, "test")) == ""


def test_what_is_scaled_keeps_its_place() -> None:
    claim = Claim(NPU, "flm", "llm")
    assert need(claim).scaled(100, "more").claims == (claim,)
