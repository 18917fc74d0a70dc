"""The forecast with which a study of cuts begins: what each cut's features say about the classes before any training.

It chooses nothing, and no trial depends on it. It is computed once for a study, from training and validation images
alone, and kept with the summary run.

Legend: N images, D features, K classes.
"""

import time
from collections.abc import Sequence

import torch

from ablation.analysis.cut_forecasts import MEASURES, CutForecast, forecast_from_json, forecast_to_json
from ablation.base.device import free_memory, make_deterministic, select_device
from ablation.base.generators import generator
from ablation.base.machine import available_memory
from ablation.base.terminal import say, say_prose, show_table, waiting
from ablation.base.text import first_line, format_duration
from ablation.data.images import Images, evaluation_batch_size, normalisation_for, normalise, to_device
from ablation.networks.transfer_model import feature_count
from ablation.reporting.forecast_section import forecast_table, images_text
from ablation.running.session import Session
from ablation.search.studies import all_ended
from ablation.spec.parameters import CACHEABLE, STRATEGIES, HeadPool
from ablation.spec.study import StudySpec
from ablation.storage.locks import study_lock
from ablation.training.closed_form import (
    class_targets,
    decompose,
    logme,
    nearest_neighbours,
    ridge_probe,
    standardise,
)
from ablation.training.feature_cache import FeatureCache, Pretrained, frozen_cuts, network_to_cuts, pretrained_cuts
from ablation.training.sources import FeatureSource, FrozenPart, run_layers

TRAIN_IMAGES, VAL_IMAGES = 3000, 2000
MOST_FEATURES = 20_000  # of a cut; more would take minutes and gigabytes
MOST_SECONDS = 60  # for features that no trial needs


class NoForecast(Exception):
    """A forecast is not worth its time or memory, or there is nothing to compare."""


def show_forecast(session: Session, device_name: str) -> None:
    """Print the forecast of a study that compares cuts of a pretrained network, computing it unless it is kept.

    A failure is said in one line, and the study runs.
    """
    spec = session.spec
    if session.weights is None or sum(map(len, pretrained_cuts(spec).values())) < 2:
        return
    try:
        with session.locks.exclusive(f"{study_lock(spec.name)}/forecast"):  # of several processes, one computes it
            forecast, origin = _kept(session), "Kept from the study's start"
            if forecast is None and all_ended(spec, session.studies):
                return  # it could not be computed when there were trials to come
            if forecast is None:
                began = time.perf_counter()
                with waiting("Forecast from the features of each cut, before any training"):
                    forecast = _compute(session, select_device(device_name))
                seconds = time.perf_counter() - began
                reused = _is_cached_anyway(spec, session.options.feature_limit)
                origin = f"Computed in {seconds:.1f} s{' with features that trials reuse' if reused else ''}"
                _keep(session, forecast, seconds)
    except Exception as error:  # whatever it is: what also concerns the trials, they meet again
        say_prose(f"No forecast before training: {first_line(error)}")
        return
    title = "Before any training: what each cut's features say about the classes"
    about = f"{origin}, from {images_text(forecast)}; the report explains it. It chooses nothing."
    say("")
    show_table(forecast_table(forecast, title, [about]))
    say("")


def _kept(session: Session) -> list[CutForecast] | None:
    """Return the forecast that an earlier process has computed; None if there is none, or it is damaged."""
    text = session.summary.forecast()
    if text is None:
        return None
    try:
        return forecast_from_json(text)
    except ValueError:
        return None


def _keep(session: Session, forecast: Sequence[CutForecast], seconds: float) -> None:
    metrics = {f"forecast_{measure}": [float(getattr(cut, measure)) for cut in forecast] for measure in MEASURES}
    metrics["forecast_seconds"] = [seconds]
    session.summary.log_forecast(forecast_to_json(forecast), metrics)


def _compute(session: Session, device: torch.device) -> list[CutForecast]:
    """Return the forecast, cuts in the network's order.

    Raises:
        NoForecast: it would take too long or too much memory, or there are fewer than two cuts to compare.
    """
    spec, images, split = session.spec, session.images, session.split
    if spec.deterministic:
        make_deterministic()
    network = network_to_cuts(spec, pretrained_cuts(spec), session.weights, device)
    parts = _parts(session, network, device)
    cache = None
    if _is_cached_anyway(spec, session.options.feature_limit):
        folder = session.store.work_root / "features"
        cache = FeatureCache(folder, session.options.feature_limit, lambda: network, say)
    features, labels = [], []
    for indices_N, most in ((split.train_N, TRAIN_IMAGES), (split.val_N, VAL_IMAGES)):
        order_N = torch.randperm(len(indices_N), generator=generator(spec.seed, "forecast"))
        chosen_N = order_N[:most].sort().values
        pixels, labels_N = images.train_images_NHWC, images.train_labels_N
        cached = None
        if cache is not None:
            cached = _cached_features(cache, to_device(pixels, labels_N, indices_N, device), parts, chosen_N)
        chosen = to_device(pixels, labels_N, indices_N[chosen_N.numpy()], device)
        features.append(cached or _computed_features(chosen, list(parts.values())))
        labels.append(chosen.labels_N)
    try:
        forecast = [
            _forecast(place, (train_ND.to(device), val_ND.to(device)), labels, len(images.classes))
            for place, train_ND, val_ND in zip(parts, *features, strict=True)
            if train_ND.isfinite().all() and val_ND.isfinite().all()  # half precision may overflow
        ]
    finally:
        free_memory(device)
    return forecast


def _parts(session: Session, network: Pretrained, device: torch.device) -> dict[tuple[str, HeadPool], FrozenPart]:
    """Return the network up to each of its cuts and pools, the shortest first; without those with too many features.

    Raises:
        NoForecast: fewer than two remain, or they need more than half of the free memory.
    """
    spec = session.spec
    normalisation = normalisation_for(session.weights, spec.data.image_size)
    parts, widths = {}, []
    for (cut, pool), point in zip(network.cuts, network.points, strict=True):
        width = feature_count(spec.backbone.name, cut, spec.data.image_size, pool)
        if width <= MOST_FEATURES:
            parts[cut, pool] = FrozenPart(network.layers[: point.layers], point.pool, normalisation, session.precision)
            widths.append(width)
    if len(parts) < 2:
        raise NoForecast(f"fewer than two cuts have all their weights and at most {MOST_FEATURES:,} features")
    # The features of all cuts in float32, and five copies of the widest in float64: raw, standardised, normalised, ...
    needed = (TRAIN_IMAGES + VAL_IMAGES) * (4 * sum(widths) + 5 * 8 * max(widths))
    if device.type != "cuda" and needed > available_memory() / 2:
        raise NoForecast(f"it needs {needed / 1e9:.1f} GB of memory")
    return parts


def _is_cached_anyway(spec: StudySpec, feature_limit: int) -> bool:
    """Return whether trials cache the features of all cuts of the forecast."""
    frozen = [
        levels
        for levels in spec.combinations()
        if any(STRATEGIES[strategy].freezes == "all" for strategy in spec.possible("strategy", levels))
    ]
    augmentations = {kind for levels in frozen for kind in spec.possible("augmentation", levels)}
    return feature_limit > 0 and frozen_cuts(spec) == pretrained_cuts(spec) and bool(augmentations & set(CACHEABLE))


def _cached_features(
    cache: FeatureCache, images: Images, parts: dict[tuple[str, HeadPool], FrozenPart], chosen_N: torch.Tensor
) -> list[torch.Tensor] | None:
    """Return cached features of the chosen images at each cut; None where there is no room for them."""
    features = []
    for part in parts.values():
        source = cache.source(images, part, "none")
        if not isinstance(source, FeatureSource):
            return None
        features.append(source.subset(chosen_N).features)
    return features


def _computed_features(images: Images, parts: Sequence[FrozenPart]) -> list[torch.Tensor]:
    """Return the features of all images at each cut, computed in one pass, in the host's memory.

    Raises:
        NoForecast: the pass would take longer than `MOST_SECONDS`.
    """
    longest = parts[-1]
    points = [part.end for part in parts]
    batch_size = evaluation_batch_size(images, longest.normalisation)
    outputs = []
    began = time.perf_counter()
    for number, images_BCHW in enumerate(images.in_order(batch_size)):
        activations = normalise(images_BCHW, longest.normalisation)
        rows = run_layers(activations, longest.layers, points, longest.precision)
        outputs.append([of_cut.cpu() for of_cut in rows])
        seconds, began = time.perf_counter() - began, time.perf_counter()
        left = seconds * (len(images) / batch_size - number - 1)
        if number == 1 and left > MOST_SECONDS:  # the first batch is slower: libraries are loaded
            raise NoForecast(f"the features, which no trial needs, would take {format_duration(left)}")
    return [torch.cat(of_cut) for of_cut in zip(*outputs, strict=True)]


def _forecast(
    place: tuple[str, HeadPool],
    features: tuple[torch.Tensor, torch.Tensor],
    labels: Sequence[torch.Tensor],
    classes: int,
) -> CutForecast:
    """Return what features say about the classes; features and labels of training and of validation images."""
    train_ND, val_ND = standardise(*features)
    train_labels_N, val_labels_N = (labels_N.to(train_ND.device) for labels_N in labels)
    decomposition = decompose(train_ND)
    probe = ridge_probe(train_ND, decomposition, train_labels_N, classes)
    votes_N = nearest_neighbours(train_ND, train_labels_N, val_ND, classes)
    cut, pool = place
    return CutForecast(
        truncate_at=cut,
        head_pool=pool,
        features=train_ND.shape[1],
        ridge_accuracy=_share(probe.predict(val_ND) == val_labels_N),
        ridge_left_out_accuracy=_share(probe.left_out_N == train_labels_N),
        neighbour_accuracy=_share(votes_N == val_labels_N),
        logme=logme(decomposition, class_targets(train_labels_N, classes)),
        train_images=len(train_labels_N),
        val_images=len(val_labels_N),
    )


def _share(is_right_N: torch.Tensor) -> float:
    return float(is_right_N.double().mean())
