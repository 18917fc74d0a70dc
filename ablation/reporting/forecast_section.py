"""The forecast before training: its table, and how well it foretold the order of the trained arms."""

from collections.abc import Sequence

from ablation.analysis.cut_forecasts import MEASURES, CutForecast, cut_name
from ablation.analysis.rankings import FEWEST_CUTS, Ranking, rankings
from ablation.analysis.results import StudyResult
from ablation.analysis.wording import points
from ablation.base.text import Table
from ablation.reporting.content import Block, Paragraph

MEANING = (
    "The ridge probe is a linear classifier in closed form. Each left out: its accuracy on the training images, each "
    "predicted from all others.",
    "Nearest neighbours are the 20 training images with the most similar features (cosine), which vote.",
    "LogME is the logarithm of the features' evidence, per image and class; only differences mean anything.",
    "Features are pooled as before the head, and standardised. Accuracies are those of validation images, with their "
    "standard error; test images are not used, and the forecast chooses nothing.",
)


def forecast_table(forecast: Sequence[CutForecast], title: str, notes: Sequence[str] = MEANING) -> Table:
    """Return the forecast as a table with a row for each cut."""
    rows = [
        [
            cut_name(forecast, cut),
            f"{cut.features:,}",
            _with_error(cut, cut.ridge_accuracy),
            f"{cut.ridge_left_out_accuracy:.4f}",
            _with_error(cut, cut.neighbour_accuracy),
            f"{cut.logme:.4f}",
        ]
        for cut in forecast
    ]
    columns = ["cut", "features", "ridge probe", "each left out", "nearest neighbours", "LogME"]
    return Table(title, columns, rows, list(notes))


def _with_error(cut: CutForecast, accuracy: float) -> str:
    return f"{accuracy:.4f} \u00b1 {cut.standard_error(accuracy):.4f}"


def images_text(forecast: Sequence[CutForecast]) -> str:
    """Return how many images a forecast used."""
    return f"{forecast[0].train_images:,} training and {forecast[0].val_images:,} validation images"


def forecast_blocks(result: StudyResult) -> list[Block]:
    """Return the forecast's table, and how well it foretold the order of the trained arms; nothing without one."""
    if not result.forecast:
        return []
    about = (
        "What the pretrained features of each cut say about the classes before any training, from "
        f"{images_text(result.forecast)}."
    )
    blocks: list[Block] = [Paragraph(about), forecast_table(result.forecast, "")]
    ranked = rankings(result)
    return [*blocks, _agreement_table(ranked)] if ranked else blocks


def _agreement_table(ranked: Sequence[Ranking]) -> Table:
    goal = ranked[0].objective
    rows = [
        [
            ranking.arms,
            str(len(ranking.values)),
            name,
            _tau(ranking, measure),
            ranking.best,
            ranking.agreements[measure].first,
            points(ranking.agreements[measure].behind, goal),
        ]
        for ranking in ranked
        for measure, name in MEASURES.items()
    ]
    columns = ["arms", "n (cuts)", "forecast by", "tau", "best cut", "foretold to be best"]
    columns.append(f"behind the best ({goal.unit})")
    ordered_by, worse = goal.label, f"worse by {goal.label}"
    if goal.name == "accuracy":
        ordered_by, worse = "accuracies", "less accurate"
    notes = [
        f"Tau: Kendall's rank correlation between the forecast and the trained arms' {ordered_by}: 1 is the same "
        f"order, 0 is none in common, -1 is the reverse. With fewer than {FEWEST_CUTS} cuts it says too little.",
        f"Behind the best: by how much the arm that was foretold to be the best is {worse} than the best arm.",
        _order_note(ranked, goal.label),
    ]
    return Table("How well it foretold the order of the trained arms", columns, rows, notes)


def _tau(ranking: Ranking, measure: str) -> str:
    if len(ranking.values) < FEWEST_CUTS:
        return "too few"
    tau = ranking.agreements[measure].tau
    return "no order" if tau is None else f"{tau:.2f}"


def _order_note(ranked: Sequence[Ranking], label: str) -> str:
    tuned = [ranking.arms for ranking in ranked if not ranking.is_tested]
    if not tuned:
        return f"Trained arms are ordered by their mean test {label}."
    if len(tuned) == len(ranked):
        return f"Trained arms are ordered by their best tuned validation {label}, because not all are confirmed."
    return (
        f"Trained arms are ordered by their mean test {label}, or ({'; '.join(tuned)}) best tuned validation {label}."
    )
