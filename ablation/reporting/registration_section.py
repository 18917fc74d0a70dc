"""The section on a study's registration."""

import json

from ablation.analysis.registration import registration_changes
from ablation.analysis.results import StudyResult
from ablation.base.text import Table
from ablation.reporting.content import Block, Items


def registration_blocks(result: StudyResult) -> list[Block]:
    """Return what was sealed before the first trial, and what differs from it; none without a registration."""
    registration = result.registration
    if registration is None:
        return []
    differing = [f"Differs: {change}." for change in registration_changes(result)]
    sealed = registration.content or {}
    rows = [["sha256 of registration.json", registration.digest], ["sealed", f"{registration.time:%Y-%m-%d %H:%M} UTC"]]
    for name, value in sealed.items():
        items = value.items() if isinstance(value, dict) and name != "settings" else [("", value)]
        for item, part in items:
            text = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            rows.append([f"{name} {item}".strip(), text])
    return [
        Items(differing or ["Nothing differs from what was sealed before the first trial."]),
        Table("", ["what", "registered"], rows),
    ]
