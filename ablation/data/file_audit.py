"""What every image file of a set holds: the digest of its pixels, or why it cannot be read; kept beside the cache."""

import hashlib
import json
from contextlib import suppress

import numpy as np
import PIL.Image

from ablation.base.errors import StoreError
from ablation.base.files import write_atomically
from ablation.data.decoding import DECODING_VERSION, File, OpenImage, TrackProgress, fault, in_order
from ablation.data.image_cache import cache_file
from ablation.data.image_files import add_files, decode_file
from ablation.spec.tables import Data


def pixel_digest(pixels_HWC: np.ndarray) -> str:
    """Return the digest of an image's pixels: the same for images that the network cannot tell apart."""
    return hashlib.blake2b(np.ascontiguousarray(pixels_HWC).data, digest_size=16).hexdigest()


def audit_files(
    files: list[File], data: Data, track: TrackProgress, open_image: OpenImage = PIL.Image.open
) -> list[str | None]:
    """Return the digest of each file's pixels, None for one that cannot be read; or what was found the last time.

    Faults of the system are not kept: a permission may be given, a disk may recover. Only these files are
    decoded again. Another version of Pillow may read other files.

    Args:
        files: paths and statuses.
        data: the study's `[data]`: the images' size, and how they get it.
        track: shows progress.
        open_image: opens a file.
    """
    fingerprint = hashlib.sha256(f"{PIL.__version__}\0{DECODING_VERSION}\0{data.image_size}\0{data.resize}".encode())
    add_files(fingerprint, files)
    place = cache_file(f"audit-{fingerprint.hexdigest()[:32]}.json")
    digests: list[str | None] = [None] * len(files)
    faults: dict[int, str] = {}  # number of a file -> reason
    if place is not None:
        with suppress(OSError, ValueError, KeyError, AttributeError):
            stored = json.loads(place.read_text(encoding="utf-8"))
            digests, faults = stored["digests"], {int(number): reason for number, reason in stored["faults"].items()}
    unknown = [number for number, digest in enumerate(digests) if digest is None and number not in faults]

    def look(number: int) -> None:
        try:
            digests[number] = pixel_digest(decode_file(files[number][0], data.image_size, data.resize, open_image))
        except Exception as error:  # Pillow raises many kinds for broken files; its own errors have no `errno`
            if not isinstance(error, MemoryError) and getattr(error, "errno", None) is None:
                faults[number] = fault(error)

    for _ in track(in_order(look, unknown), len(unknown), "Looking at all images") if unknown else []:
        pass
    if place is not None and any(digests[number] is not None or number in faults for number in unknown):
        with suppress(StoreError):
            write_atomically(place, json.dumps({"digests": digests, "faults": faults}).encode())
    return digests
