"""The report's section on what a study set, and on the machines and versions of its runs."""

import json
from collections import Counter

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.results import StudyResult
from ablation.base.text import Table, format_value, plural
from ablation.reporting.content import Block, Code, Paragraph
from ablation.reporting.method_sections import SAMPLERS
from ablation.search.space import QUASI_RANDOM_UP_TO, sampler_kind
from ablation.spec.study import StudySpec


def environment_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return the fixed settings of the study, the machines and versions of its runs, and the command to repeat it."""
    result = analysis.result
    spec = result.spec
    runs = [run for arm in result.arms for run in arm.runs]
    variants = Counter(json.dumps({**run.environment, "trained on": run.device}, sort_keys=True) for run in runs)
    parsed = [json.loads(text) for text in variants]
    keys = sorted({key for variant in parsed for key in variant})
    counts = [plural(count, "run") for count in variants.values()]
    columns = ["what", *counts]
    rows = [[key, *(variant.get(key, "-") for variant in parsed)] for key in keys]
    notes = [] if len(parsed) == 1 else [f"The runs have {len(parsed)} different environments, one per column."]
    about = [
        ["study", spec.name],
        ["study seed", str(spec.seed)],
        ["confirmation seeds", _all_seeds_text(result)],
        ["precision", _precision_text(result)],
        *([["sampler", _sampler_text(spec)]] if spec.search.entries() else []),
        ["pruner", spec.search.pruner],
        ["data", f"{spec.data.source}, digest {result.data_digest}"],
        *([["data as read", result.data_reading]] if result.data_reading else []),
        ["pretrained weights", f"digest {result.weights_digest}" if result.weights_digest else "none"],
        ["images", f"{result.train_images:,} training, {result.val_images:,} validation, {result.test_images:,} test"],
        *([name, format_value(value)] for name, value in spec.fixed.entries().items()),
    ]
    return [
        Table("Study", ["what", "value"], about),
        Table("Environment of the runs", columns, rows, notes),
        Paragraph("The command that reproduces the study:"),
        Code(result.command),
    ]


def _precision_text(result: StudyResult) -> str:
    """Return what the runs computed in, which 'auto' settles once per study."""
    settled = " and ".join(sorted({run.spec.precision for arm in result.arms for run in arm.runs}))
    return f"{settled} (auto)" if result.spec.precision == "auto" else settled


def _sampler_text(spec: StudySpec) -> str:
    """Return what draws points; the store does not say whether the budget was once small enough for another."""
    kind = sampler_kind(spec)
    if spec.search.sampler != "auto":
        return SAMPLERS[kind]
    earlier = f": trials made while at most {QUASI_RANDOM_UP_TO} per arm were planned are quasi-random"
    return f"{SAMPLERS[kind]} (auto{earlier if kind == 'tpe' else ''})"


def _all_seeds_text(result: StudyResult) -> str:
    seeds = sorted({run.spec.seed for arm in result.arms for run in arm.confirmations})
    return f"{len(seeds)} different, listed with the runs" if len(seeds) > 10 else ", ".join(map(str, seeds)) or "none"
