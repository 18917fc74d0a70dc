"""The forecast of a study: what the pretrained features of each cut say about the classes, before any training."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from ablation.spec.parameters import HeadPool


@dataclass(frozen=True)
class CutForecast:
    """What the features of one cut say about the classes; accuracies are fractions, of validation images.

    Attributes:
        truncate_at: the cut.
        head_pool: how its features are pooled.
        features: their number, after that.
        ridge_accuracy: of ridge regression on the training images' features.
        ridge_left_out_accuracy: the same on the training images, each left out in turn.
        neighbour_accuracy: of the vote of the nearest training images.
        logme: the logarithm of the maximum evidence per training image, in nats.
        train_images: how many training images were used.
        val_images: how many validation images were used.
    """

    truncate_at: str
    head_pool: HeadPool
    features: int
    ridge_accuracy: float
    ridge_left_out_accuracy: float
    neighbour_accuracy: float
    logme: float
    train_images: int
    val_images: int

    def standard_error(self, accuracy: float) -> float:
        """Return the standard error of one of its accuracies of validation images."""
        return math.sqrt(accuracy * (1 - accuracy) / self.val_images)


MEASURES = {
    "ridge_accuracy": "ridge probe",
    "ridge_left_out_accuracy": "each left out",
    "neighbour_accuracy": "nearest neighbours",
    "logme": "LogME",
}


def forecast_to_json(forecast: Sequence[CutForecast]) -> str:
    """Return a table as MLflow keeps tables, with a row for each cut and a column for each attribute."""
    columns = [field.name for field in fields(CutForecast)]
    return json.dumps({"columns": columns, "data": [astuple(cut) for cut in forecast]})


def forecast_from_json(text: str) -> list[CutForecast]:
    """Return the forecast that `forecast_to_json` returned.

    Raises:
        ValueError: the text is something else.
    """
    try:
        table: dict[str, Any] = json.loads(text)
        return [CutForecast(**dict(zip(table["columns"], row, strict=True))) for row in table["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"is not a forecast ({error})") from None


def cut_name(forecast: Sequence[CutForecast], cut: CutForecast) -> str:
    """Return the name of a cut in a forecast; with its pool if the forecast has several of them."""
    has_pools = len({other.head_pool for other in forecast}) > 1
    return f"{cut.truncate_at}, head_pool={cut.head_pool}" if has_pools else cut.truncate_at
