"""The code inside a registered champion: MLflow runs a copy of this file wherever the model is loaded.

There, torch, MLflow and its requirements are installed, but not `ablation`: this file must not import it.

Legend: N images, S their side in pixels, K classes.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

BATCH_SIZE = 64  # images; does not change the result


class ChampionModel(PythonModel):
    """Images in, class probabilities out; the normalisation is part of the exported program."""

    def load_context(self, context: Any) -> None:
        """Read the exported program and the names of the classes."""
        self.program = torch.export.load(context.artifacts["program"]).module()
        self.classes: list[str] = context.model_config["classes"]

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the probability of every class.

        Args:
            context: MLflow's; not used.
            model_input: RGB images, uint8 N x S x S x 3.
            params: MLflow's; not used.

        Returns:
            A row per image and a column per class (float32), with the class's name.
        """
        with torch.inference_mode():
            batches = torch.split(torch.from_numpy(np.array(model_input)), BATCH_SIZE)
            probabilities_NK = torch.cat([self.program(images_NSSC) for images_NSSC in batches])
        return pd.DataFrame(probabilities_NK.numpy(), columns=self.classes)


set_model(ChampionModel())
