"""What is done with pixels before the first layer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalisation:
    """The preprocessing before the first layer.

    Attributes:
        mean: per channel, subtracted from pixels scaled to 0..1.
        std: per channel; divides the difference.
        image_size: height and width in pixels to which images are resized first; None leaves their size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int | None = None
