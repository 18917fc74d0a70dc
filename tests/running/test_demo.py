from pathlib import Path

import pytest

from ablation.running.demo import demo_cut, demo_overrides
from ablation.spec.reading import load_study, read_study_file
from ablation.storage.store import find_store

STUDY = """
question = "Which cut?"
trials_per_arm = 1
epochs = 1
[backbone]
name = "resnet50"
[factors]
truncate_at = ["unit2_1", "unit3_4", "unit3_5", "block5"]
[confirm]
seeds = 1
control = { truncate_at = "unit3_5" }
"""


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("block2", "block2"), ("conv3_2", "conv3_2"), ("unit3_2", "conv3_2"), ("unit4_6", "conv4_3"),
        ("unit1_1", "conv1_1"), ("block7", "block5"), ("unit6_1", "block5"), ("unit0_0", "unit0_0"),
        ("nonsense", "nonsense"), (3, 3),
    ],
)  # fmt: skip
def test_cuts_of_other_networks_become_the_nearest(cut: object, expected: object) -> None:
    assert demo_cut(cut) == expected


def test_a_study_of_another_network_has_a_demo(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(STUDY)
    changes = demo_overrides(read_study_file(path), find_store(str(tmp_path / "store")))
    spec = load_study(path, name="other-demo", overrides=changes)
    assert spec.factors.get("truncate_at") == ["conv2_1", "conv3_3", "block5"]
    assert spec.confirm.control == {"truncate_at": "conv3_3"}
