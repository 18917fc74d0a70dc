"""Whether the CPU would be faster for a study than the GPU that it would run on."""

import time
from dataclasses import replace

import torch

from ablation.planning.forecast import Span, StudyPlan, planned_budget, study_span
from ablation.planning.probe import Conditions, Failure, Kind, Speed, probe
from ablation.planning.workload import feature_bytes, shared_conditions

SECONDS = 30.0  # after which the CPU is given up: where measuring takes so long, training does, too
IMAGES = 64  # that a step trains on, at most; with more, an image takes the CPU the same time
UNKNOWN = Speed(0.0, 0.0, 0.0, 0.0)  # of what has not been measured: it makes the study's time a lower bound


def faster_on_cpu(study: StudyPlan) -> Span | None:
    """Measure a study on the CPU, too; return its seconds there, or None if they are not less.

    The trainings that compute the most for each image are measured first, and nothing more is measured once the study
    would take longer than on its device.

    Args:
        study: with its measurements on another device.
    """
    conditions = shared_conditions(study.spec, study.size, torch.device("cpu"))
    if _has_failure(study) or _loses_its_cache(study, conditions.precision):
        return None
    budget, known = planned_budget(study.spec), study.probe
    known = replace(known, speeds=dict.fromkeys(known.speeds, UNKNOWN), frozen=dict.fromkeys(known.frozen, (0.0, 0.0)))
    on_device, span = study_span(study, budget), None
    began = time.monotonic()
    for kinds, parts, few in _work(study, conditions):
        if time.monotonic() > began + SECONDS:
            return None
        measured = probe(kinds, parts, few)
        known = replace(known, speeds=known.speeds | measured.speeds, frozen=known.frozen | measured.frozen)
        on_cpu = replace(study, conditions=conditions, probe=known)
        span = study_span(on_cpu, budget)
        if _has_failure(on_cpu) or span.least >= on_device.least or span.most >= on_device.most:
            return None
    return span


def _work(study: StudyPlan, conditions: Conditions) -> list[tuple[list[Kind], list[tuple[str, int]], Conditions]]:
    """Return what is to be measured, the costliest first, each with the conditions of its measurement."""
    few = replace(conditions, train_images=min(IMAGES, conditions.train_images))
    kinds = study.probe.speeds
    return [
        *(([kind], [], few) for kind in kinds if not kind.reads_features),
        *(([], [part], few) for part in study.probe.frozen),
        *(([kind], [], conditions) for kind in kinds if kind.reads_features),
    ]


def _has_failure(study: StudyPlan) -> bool:
    """Return whether something cannot run, whose time is unknown."""
    results = [*study.probe.speeds.values(), *study.probe.frozen.values()]
    return any(isinstance(result, Failure) for result in results)


def _loses_its_cache(study: StudyPlan, precision: str) -> bool:
    """Return whether cached features fit on the disk in the device's precision, but not in this one."""
    sizes = [feature_bytes(study.spec, study.size, each) for each in (study.conditions.precision, precision)]
    return sizes[0] <= study.feature_limit < sizes[1]
