"""A study's plan, measured on its device."""

from ablation.base.device import make_deterministic, select_device
from ablation.data.reading import measure_data
from ablation.planning.forecast import StudyPlan
from ablation.planning.probe import probe
from ablation.planning.workload import feature_bytes, frozen_parts, plan, shared_conditions
from ablation.spec.study import StudySpec


def measured_plan(spec: StudySpec, device_name: str, feature_limit: int) -> StudyPlan:
    """Return a study's plan, with what each kind of training took on the study's device."""
    size = measure_data(spec.data)
    setup = shared_conditions(spec, size, select_device(device_name))
    if spec.deterministic:
        make_deterministic()
    stores_features = feature_bytes(spec, size, setup.precision) <= feature_limit
    arm_plans = plan(spec, size.classes, stores_features=stores_features)
    kinds = [kind for arm in arm_plans for kind in (arm.cheapest, arm.costliest)]
    speeds = probe(kinds, frozen_parts(spec) if stores_features else [], setup)
    return StudyPlan(spec, size, feature_limit, arm_plans, setup, speeds)
