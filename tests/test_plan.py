import pytest

from ablation.architecture import BACKBONES
from ablation.data import DataSize
from ablation.plan import feature_bytes, plan
from ablation.spec import StudySpec

SPEC = {
    "name": "s",
    "question": "?",
    "trials_per_arm": 1,
    "epochs": 1,
    "backbone": {"name": "vgg16", "weights": "imagenet"},
    "data": {"source": "cifar10"},
}
EXTRACTION = {"strategy": ["feature_extraction"], "truncate_at": ["block1", "conv2_1"]}
TOP = {"strategy": ["fine_tune_top"], "truncate_at": ["block3"]}
DEPTHS = {"search": {"freeze_depth": {"low": 1, "high": 3}}}

# Of 1,000 training images 100 are for validation, and there are 200 test images; in 4 bytes unless the precision is 16.
BLOCK1, BLOCK1_POOLED, CONV2_1_POOLED = 64 * 16 * 16, 64 * 4, 128 * 4
BLOCK2, BLOCK3_POOLED = 128 * 8 * 8, 256 * 4


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"factors": EXTRACTION}, 1000 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "precision": "bfloat16"}, 1000 * (BLOCK1_POOLED + CONV2_1_POOLED) * 2),
        ({"factors": EXTRACTION, "fixed": {"augmentation": "flip"}}, 1900 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "fixed": {"augmentation": "crop_flip"}}, 100 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "confirm": {"seeds": 2}}, 1200 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        (
            {"factors": EXTRACTION, "confirm": {"seeds": 2}, "precision": "bfloat16"},
            (1000 * 2 + 200 * 4) * (BLOCK1_POOLED + CONV2_1_POOLED),
        ),
        (
            {"factors": EXTRACTION, "trials_per_arm": 3, "backbone": {"name": "vgg16", "missing_layers": "random"}},
            3 * 1000 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4,
        ),
        ({"factors": EXTRACTION, "fixed": {"head_pool": "flatten"}}, 1000 * (BLOCK1 + 128 * 16 * 16) * 4),
        ({"factors": TOP} | DEPTHS, 1000 * (BLOCK1 + BLOCK2 + BLOCK3_POOLED) * 4),
        ({"factors": {"strategy": ["fine_tune_all", "from_scratch"]}}, 0),
    ],
)
def test_bytes_of_features_by_hand(more: dict[str, object], expected: int) -> None:
    assert feature_bytes(StudySpec(**(SPEC | more)), DataSize(10, 1000, 200)) == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_can_be_planned(name: str) -> None:
    weights = "w.pth" if name == "vgg16_narrow" else "imagenet"
    more = {"backbone": {"name": name, "weights": weights}, "data": {"image_size": 224}}
    (arm,) = plan(StudySpec(**(SPEC | more | {"fixed": {"strategy": "fine_tune_all"}})), 10)
    assert arm.trained_parameters == arm.all_parameters > 10_000


def test_convnext_features_stay_in_float32() -> None:
    more = {"backbone": {"name": "convnext_tiny"}, "data": {"image_size": 32}}
    spec = StudySpec(**(SPEC | more | {"precision": "bfloat16", "fixed": {"truncate_at": "block1"}}))
    assert feature_bytes(spec, DataSize(10, 1000, 200)) == 1000 * 96 * 4 * 4
