"""Whether `--plan` says that the CPU would be faster, by made-up speeds."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ablation.planning import device_choice as module
from ablation.planning.device_choice import IMAGES, faster_on_cpu
from ablation.planning.forecast import Span, StudyPlan, planned_budget, study_span
from ablation.planning.probe import Conditions, Failure, Kind, Probe, Speed
from ablation.planning.tables import arms_table
from tests.planning.test_forecast import STUDY, study_of

Measured = list[tuple[list[Kind], list[tuple[str, int]], Conditions]]


@pytest.fixture
def study() -> StudyPlan:
    """The study of `test_forecast`, as if it had been measured on a GPU."""
    study = study_of(STUDY | {"precision": "float32"})
    return replace(study, conditions=replace(study.conditions, device=torch.device("mps")))


@pytest.fixture
def measured() -> Measured:
    return []


def cpu_takes(times: float, study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every speed on the CPU a multiple of the device's."""

    def probe(kinds: list[Kind], parts: list[tuple[str, int]], conditions: Conditions) -> Probe:
        measured.append((kinds, parts, conditions))
        speeds: dict[Kind, Any] = {}
        for kind in kinds:
            speed = study.probe.speeds[kind]
            assert isinstance(speed, Speed)
            speeds[kind] = Speed(*(times * seconds for seconds in vars(speed).values()))
        frozen: dict[tuple[str, int], Any] = dict.fromkeys(parts, (0.01 * times, 0.02 * times))
        return Probe(speeds, frozen, 1.0, 0.0, 7, 7)

    monkeypatch.setattr(module, "probe", probe)


def test_a_cpu_of_twice_the_speed(study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_takes(0.5, study, measured, monkeypatch)
    on_cpu = faster_on_cpu(study)
    on_device = study_span(study, planned_budget(study.spec))
    # Of the time, 10 s for the start and 0.1 s for each of the 52 runs are the same.
    same = 10 + 52 * 0.1
    assert on_cpu is not None
    assert on_cpu.least == pytest.approx(same + (on_device.least - same) / 2)
    assert on_cpu.most == pytest.approx(same + (on_device.most - same) / 2)
    # Everything has been measured once, on the CPU: what computes the most for an image first, on few images.
    assert [kind for kinds, _, _ in measured for kind in kinds if not kind.reads_features] == [
        kind for kinds, _, _ in measured[:2] for kind in kinds
    ]
    assert {kind for kinds, _, _ in measured for kind in kinds} == set(study.probe.speeds)
    assert [part for _, parts, _ in measured for part in parts] == list(study.probe.frozen)
    assert len(measured) == len(study.probe.speeds) + len(study.probe.frozen)
    assert {conditions.device.type for _, _, conditions in measured} == {"cpu"}
    assert [c.train_images for kinds, _, c in measured if kinds] == [
        1800 if kinds[0].reads_features else IMAGES for kinds, _, _ in measured if kinds
    ]
    notes = arms_table(study, on_cpu).notes
    assert f"The CPU would be faster: about {on_cpu.text()} instead of {on_device.text()}; use --device cpu." in notes
    assert not any("CPU would be faster" in note for note in arms_table(study).notes)


def test_the_note_by_hand(study: StudyPlan) -> None:
    assert any(
        note.startswith("The CPU would be faster: about 40 to 50 s instead of 85 min to 1 h 32 min; use --device cpu.")
        for note in arms_table(study, Span(40.0, 50.0)).notes
    )


@pytest.mark.parametrize(("times", "measurements"), [(1.0, 7), (20.0, 1)])
def test_a_cpu_that_is_not_faster_is_measured_no_longer_than_needed(
    times: float, measurements: int, study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning block1 alone takes 20 times as long there as on the device: longer than the whole study there."""
    cpu_takes(times, study, measured, monkeypatch)
    assert faster_on_cpu(study) is None
    assert len(measured) == measurements
    assert not measured[0][0][0].reads_features


def test_a_cpu_that_is_faster_only_with_luck_is_not_recommended(
    study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search's cheapest choices are faster on the CPU, its costliest are not."""
    cpu_takes(1.0, study, measured, monkeypatch)
    real = module.probe
    cheapest = {arm.cheapest for arm in study.arms} - {arm.costliest for arm in study.arms}
    assert cheapest

    def faster(kinds: list[Kind], parts: list[tuple[str, int]], conditions: Conditions) -> Probe:
        result = real(kinds, parts, conditions)
        fast = {kind: Speed(0.0, 0.0, 0.0, 0.0) for kind in kinds if kind in cheapest}
        return replace(result, speeds=result.speeds | fast)

    monkeypatch.setattr(module, "probe", faster)
    assert faster_on_cpu(study) is None


def test_what_cannot_run_is_not_compared(study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on the device, whose time is unknown then, nor on the CPU."""
    cpu_takes(0.5, study, measured, monkeypatch)
    kind = study.arms[0].costliest
    broken = replace(study, probe=replace(study.probe, speeds=study.probe.speeds | {kind: Failure("out of memory")}))
    assert faster_on_cpu(broken) is None
    assert measured == []

    failure: dict[Kind, Speed | Failure] = {kind: Failure("out of memory")}
    monkeypatch.setattr(module, "probe", lambda *_: replace(study.probe, speeds=failure))
    assert faster_on_cpu(study) is None


def test_features_that_the_cpu_cannot_cache_end_the_comparison(
    study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 they take twice the bytes that they take in the GPU's bfloat16."""
    cpu_takes(0.5, study, measured, monkeypatch)
    halved = {"bfloat16": 1000, "float32": 2000}
    monkeypatch.setattr(module, "feature_bytes", lambda spec, size, precision: halved[precision])
    on_gpu = replace(study, conditions=replace(study.conditions, precision="bfloat16"), feature_limit=1500)
    assert faster_on_cpu(on_gpu) is None
    assert faster_on_cpu(replace(on_gpu, feature_limit=2000)) is not None
    assert faster_on_cpu(replace(on_gpu, feature_limit=500)) is not None  # neither can


def test_a_measurement_that_takes_too_long_is_given_up(
    study: StudyPlan, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_takes(0.5, study, measured, monkeypatch)
    monkeypatch.setattr(module, "SECONDS", -1.0)
    assert faster_on_cpu(study) is None
    assert measured == []
