"""A card is named in any usual way, and what is not known of it is not made up."""

import types
from pathlib import Path

import pytest
import torch

from dpo.core.refusal import Refusal
from dpo.plan import cards
from dpo.plan.cards import CARDS, card

# As nvidia-smi and torch call them.
DRIVERS = {
    "NVIDIA H100 80GB HBM3": "H100-80GB",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200-NVL",
    "NVIDIA B200": "B200",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-PCIE-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100 80GB PCIe": "A100-80GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA L40": "L40",
    "NVIDIA A30": "A30",
    "NVIDIA GH200 480GB": "GH200-96GB",
    "NVIDIA GeForce RTX 4080": "RTX-4080",
    "NVIDIA GeForce RTX 3090": "RTX-3090",
    "NVIDIA GeForce RTX 3090 Ti": "RTX-3090-Ti",
    "NVIDIA L4": "L4",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "NVIDIA RTX A6000": "RTX-A6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX-6000-Ada",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "NVIDIA GeForce RTX 4090": "RTX-4090",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-32GB": "V100-32GB",
    "AMD Instinct MI300X": "MI300X",
}


@pytest.mark.parametrize("name", DRIVERS)
def test_a_drivers_name_is_known(name):
    assert cards.named(name) == [DRIVERS[name]]
    assert card(GPU=name).name == DRIVERS[name]


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D"),
        *("NVIDIA GeForce RTX 4080 SUPER", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "Tesla P100"),
    ],
)
def test_a_relative_or_a_part_of_a_card_is_not_taken_for_it(name):
    assert not cards.named(name)


def test_a_few_words_are_enough_if_they_tell():
    assert card(GPU="4090").name == "RTX-4090"
    assert card(GPU="h100 pcie").name == card(GPU="H100-PCIe").name == "H100-PCIe"
    assert card(GPU="L4").name == "L4"  # and not the L40S
    assert card(GPU="3090").name == "RTX-3090" and card(GPU="3090 ti").name == "RTX-3090-Ti"
    with pytest.raises(Refusal, match=r"GPU=A100 may be several.*: A100-80GB, A100-40GB"):
        card(GPU="A100")
    with pytest.raises(Refusal, match=r"GPU=RTX-4900 is not known.*RTX-4090"):
        card(GPU="RTX-4900")


def grouped(root: Path, at: str, limits: dict[str, str]) -> Path:
    """A machine's files, as a process in the group `at` sees them."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"9:cpuset:/other\n{at}\n")
    for name, limit in limits.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(f"{limit}\n")
    return root


@pytest.mark.parametrize(
    ("at", "files", "least"),
    [
        ("0::/", {"memory.max": "8000"}, 8000),  # a container's root
        ("0::/", {"memory.max": "max"}, None),
        ("0::/job/step", {"job/memory.max": "7000", "job/step/memory.max": "max"}, 7000),
        ("0::/job/step", {"memory.max": "9000", "job/step/memory.max": "6000"}, 6000),
        ("0::/job", {"unified/job/memory.max": "5000"}, 5000),
        (
            "4:cpu,memory:/slurm/job",
            {"memory/slurm/job/memory.limit_in_bytes": "4000", "memory.max": "1"},
            4000,
        ),
        ("4:memory:/of/the/host", {"memory/memory.limit_in_bytes": "3000"}, 3000),
        ("4:cpu:/", {"memory.max": "1"}, None),
    ],
)
def test_a_limit_on_any_group_of_the_process_counts(tmp_path, at, files, least):
    assert min(cards.limits(grouped(tmp_path, at, files)), default=None) == least


def test_memory_alone_is_a_card_without_a_speed():
    found = card(MEMORY="80")
    assert (found.name, found.memory, found.flops) == ("80 GB", 80e9, None)
    assert card(GPU="H100-80GB").memory > 84e9  # 80 GB and more: 79.14 GiB
    part = card(GPU="H100-80GB", MEMORY="40.5")
    assert (part.memory, part.flops) == (40.5e9, 989e12)
    for wrong in ("0", "80GB", "-1", "nan"):
        with pytest.raises(Refusal, match=f"MEMORY={wrong} is no number of GB"):
            card(MEMORY=wrong)
    with pytest.raises(Refusal, match="no card is named"):
        card()


def test_every_card_has_a_speed_that_a_card_can_have():
    for name, one in CARDS.items():
        assert one.name == name and 14 * 2**30 < one.memory < 200 * 2**30
        assert 60e12 < one.flops < 2300e12  # dense: a sparse B200 has the double
    assert {one.name for one in CARDS.values() if one.half == "float16"} == {
        *("T4", "V100-16GB", "V100-32GB")
    }


def test_of_a_part_of_a_card_memory_is_what_torch_says_and_no_speed_is_known():
    part = cards.of_driver("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 42e9)
    assert (part.memory, part.flops) == (42e9, None)


def test_this_machines_card_has_its_own_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cards.here() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    held = types.SimpleNamespace(total_memory=79 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: held)
    for name, flops in {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H300": None}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index, name=name: name)
        found = cards.here()
        assert (found.memory, found.flops) == (79 * 2**30, flops)
