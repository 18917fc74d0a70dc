"""Search spaces, samplers and parameter importances."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from ablation.base.seeds import named_seed, repeat_seed
from ablation.spec.architectures import kept_blocks
from ablation.spec.arms import Arm, arms
from ablation.spec.parameters import Choices, Hyperparameters
from ablation.spec.reuse import Reuse
from ablation.spec.study import StudySpec

QUASI_RANDOM_UP_TO = 20  # trials per arm; the Tuning Playbook advises quasi-random search for small budgets


def distribution(spec: StudySpec, parameter: str, cut: str | None = None) -> BaseDistribution:
    """Return Optuna's distribution for a searched parameter; `freeze_depth` is at most what the cut keeps."""
    entry = spec.search.get(parameter)
    if isinstance(entry, Choices):
        return CategoricalDistribution(entry.choices)
    if isinstance(entry.low, int):
        step, upper = entry.step or 1, entry.largest
        if parameter == "freeze_depth" and cut is not None:
            upper = min(upper, kept_blocks(spec.backbone.name, cut))
        return IntDistribution(entry.low, upper - (upper - entry.low) % step, log=entry.log, step=step)
    return FloatDistribution(entry.low, entry.largest, log=entry.log, step=entry.step)


def optuna_name(spec: StudySpec, parameter: str, truncate_at: str) -> str:
    """Return the parameter's name in Optuna: one per case where its range depends on another searched parameter."""
    depends = parameter == "freeze_depth" and spec.search.get("truncate_at") is not None
    return f"{parameter}_{truncate_at}" if depends else parameter


def full_space(spec: StudySpec, arm: Arm) -> dict[str, BaseDistribution]:
    """Return every parameter that some trial of an arm may sample."""
    space = {}
    for parameter in spec.search.entries():
        for cut in spec.possible("truncate_at", arm.levels):
            space[optuna_name(spec, parameter, cut)] = distribution(spec, parameter, cut)
    return space


def known_params(spec: StudySpec, arm: Arm, number: int) -> dict[str, Any] | None:
    """Return what is known of an arm's trial, by the parameters' names in Optuna; None for a trial that is drawn."""
    known = spec.known_number(number)
    if known is None:
        return None
    values = spec.known[known].entries()
    cuts = spec.possible("truncate_at", arm.levels | values)
    return {optuna_name(spec, name, cut): value for name, value in values.items() for cut in cuts}


def suggest(trial: optuna.Trial, spec: StudySpec, arm: Arm) -> dict[str, Any]:
    """Return all hyper-parameters of a trial: its arm's levels, those that Optuna samples, and the fixed ones.

    A parameter that does not apply is not sampled; it becomes None (`head_warmup_epochs`: 0).
    """
    params: dict[str, Any] = {}
    first = ["strategy", "truncate_at", "freeze_depth", "learn"]  # they decide what else applies
    for parameter in first + [name for name in Hyperparameters.model_fields if name not in first]:
        if spec.leaves_out(parameter):
            continue
        reuse = {name: params[name] for name in first if params.get(name) is not None}
        if len(reuse) >= 2 and not Reuse(spec.backbone.name, **reuse).applies(parameter):
            params[parameter] = 0 if parameter == "head_warmup_epochs" else None
        elif parameter in arm.levels:
            params[parameter] = arm.levels[parameter]
        elif spec.search.get(parameter) is not None:
            name = optuna_name(spec, parameter, params.get("truncate_at", ""))
            params[parameter] = _suggest_one(trial, name, distribution(spec, parameter, params.get("truncate_at")))
        else:
            params[parameter] = spec.default(parameter)
    return params


def _suggest_one(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(name, dist.choices)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, log=dist.log, step=dist.step)
    assert isinstance(dist, FloatDistribution)
    return trial.suggest_float(name, dist.low, dist.high, log=dist.log, step=dist.step)


class NumberedQMCSampler(QMCSampler):
    """Optuna's scrambled Sobol sequence, of which a trial gets the point with its number.

    Optuna's QMCSampler counts requests, so that a trial's point depends on the order in which workers ask. The space is
    passed, not inferred from trials, because arms with conditional parameters must get the same points. It contains
    every parameter that can occur.

    Args:
        space: the parameters.
        seed: of the scrambling.
        number_of: returns the number of a trial's point by that of the trial.
    """

    def __init__(self, space: dict[str, BaseDistribution], seed: int, number_of: Callable[[int], int]):
        super().__init__(scramble=True, seed=seed, warn_asynchronous_seeding=False)
        self._space = space
        self._number_of = number_of
        self._number = 0

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the space that was passed."""
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the trial's point."""
        self._number = self._number_of(trial.number)
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class NumberedRandomSampler(RandomSampler):
    """Optuna's random sampler, seeded by the trial's number and the parameter's name."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self._seed = seed

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value for the parameter."""
        seed = named_seed(self._seed, trial.number, param_name) % 2**32
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)


def sampler_kind(spec: StudySpec) -> Literal["qmc", "random", "tpe"]:
    """Return which sampler draws a study's next trials, in place of `auto`."""
    if spec.search.sampler != "auto":
        return spec.search.sampler
    is_small = spec.trials_per_arm <= QUASI_RANDOM_UP_TO or spec.confirm.repeats > 1
    return "qmc" if is_small else "tpe"


def make_sampler(spec: StudySpec, arm: Arm, number: int) -> BaseSampler:
    """Return the sampler of an arm's trial with this number.

    `qmc` and `random` depend on (study seed, trial number) alone. Each repeat of the tuning has a quasi-random sequence
    of its own, because every second point of one would leave parts of the space out.
    """
    kind = sampler_kind(spec)
    # Optuna's samplers accept seeds of 32 bits.
    seed = named_seed(repeat_seed(spec.seed, spec.repeat_of(number)), "sampler") % 2**32
    if kind == "qmc":
        # One space for all arms, in one order: a longer or reordered one would move the points.
        space = {name: dist for other in arms(spec) for name, dist in full_space(spec, other).items()}
        return NumberedQMCSampler(dict(sorted((space | full_space(spec, arm)).items())), seed, spec.place_of)
    if kind == "random":
        return NumberedRandomSampler(seed)
    return TPESampler(group=True, seed=named_seed(seed, number) % 2**32)


def parameter_importances(spec: StudySpec, trials: Sequence[tuple[dict[str, Any], float]]) -> dict[str, float]:
    """Return the share of each searched parameter in the variance of an arm's values; they sum to 1.

    By functional ANOVA over a random forest (Hutter et al., 2014), Optuna's `FanovaImportanceEvaluator`.

    Args:
        spec: the study.
        trials: the searched parameters and the value of the arm's finished trials; a parameter that some trials lack is
            left out.

    Returns:
        Parameter -> share, the largest first; empty if parameters or values do not vary.
    """
    if len({value for _, value in trials}) < 2 or len({str(params) for params, _ in trials}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    for params, value in trials:
        distributions = {name: distribution(spec, name) for name in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    try:
        shares = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except RuntimeError:  # no tree of the forest found a split
        return {}
    return {name: float(share) for name, share in shares.items()} if any(shares.values()) else {}
