"""What features say about the classes without any training: a ridge probe, nearest neighbours and LogME.

Everything is computed in float64, on the features' device where it has float64.

Legend: N training images, M other images, D features, R their rank, K classes.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize, one_hot

RIDGE_STRENGTHS = tuple(10 ** (number / 2) for number in range(-2, 13))  # 0.1 to 1e6, for standardised features
NEIGHBOURS, TEMPERATURE = 20, 0.07  # Caron et al. (2021, DINO), appendix F
SMALLEST_SPREAD = 0.1  # of the average standard deviation, as in `transfer_model.calibrate`
LOGME_ITERATIONS = 11  # of the published code, which usually needs two or three
ROWS_AT_ONCE = 500  # whose similarities to all training images are in memory


def exact(features: torch.Tensor) -> torch.Tensor:
    """Return features as float64; Apple's GPUs have none, so theirs are copied to the CPU."""
    return features.to("cpu" if features.device.type == "mps" else features.device, torch.float64)


def standardise(train_ND: torch.Tensor, other_MD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in float64, less the mean and over the standard deviation of the training images' features.

    The constants are made as those before a trial's head: a feature that hardly varies is not enlarged.
    """
    train_ND, other_MD = exact(train_ND), exact(other_MD)
    mean_D, std_D = train_ND.mean(0), train_ND.std(0, correction=0)
    smallest = SMALLEST_SPREAD * std_D.mean()
    std_D = torch.where(smallest > 0, std_D.clamp(min=smallest), 1.0)
    return (train_ND - mean_D) / std_D, (other_MD - mean_D) / std_D


def class_targets(labels_N: torch.Tensor, classes: int) -> torch.Tensor:
    """Return N x K targets (float64): 1 for an image's class, else 0, less each class's mean.

    For centred features this is what an intercept amounts to.
    """
    targets_NK = one_hot(labels_N, classes).double()
    return targets_NK - targets_NK.mean(0)


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a matrix of features, without the right singular vectors.

    Attributes:
        left_NR: the left singular vectors, float64.
        squares_R: the squares of the singular values, all above zero.
    """

    left_NR: torch.Tensor
    squares_R: torch.Tensor


def decompose(features_ND: torch.Tensor) -> Decomposition:
    """Decompose features by the eigenvectors of the smaller of their two Gram matrices."""
    features_ND = exact(features_ND)
    N, D = features_ND.shape
    is_wide = D > N
    squares, vectors = torch.linalg.eigh(features_ND @ features_ND.T if is_wide else features_ND.T @ features_ND)
    is_kept = squares > squares[-1] * max(N, D) * torch.finfo(torch.float64).eps
    squares_R, vectors = squares[is_kept], vectors[:, is_kept]
    return Decomposition(vectors if is_wide else features_ND @ vectors / squares_R.sqrt(), squares_R)


@dataclass(frozen=True)
class RidgeProbe:
    """A linear classifier by ridge regression on the classes' targets.

    Attributes:
        strength: the chosen weight of the penalty.
        left_out_N: the class predicted for each training image by the probe of all others.
        left_out_error: the mean squared error of these probes.
        weights_DK: of the features.
        offset_K: the share of each class among the training images.
    """

    strength: float
    left_out_N: torch.Tensor
    left_out_error: float
    weights_DK: torch.Tensor
    offset_K: torch.Tensor

    def predict(self, features_MD: torch.Tensor) -> torch.Tensor:
        """Return the classes of other images, int64 M."""
        return (exact(features_MD) @ self.weights_DK + self.offset_K).argmax(1)


def ridge_probe(
    features_ND: torch.Tensor, decomposition: Decomposition, labels_N: torch.Tensor, classes: int
) -> RidgeProbe:
    """Fit ridge regression with an intercept, with the strength that has the smallest leave-one-out error.

    The error of leaving out each image in turn follows from one fit to all (the PRESS shortcut; Golub, Heath and Wahba,
    1979), for any strength from one decomposition.

    Args:
        features_ND: standardised, so that their mean is zero.
        decomposition: of these features.
        labels_N: int64, on their device.
        classes: their number.
    """
    left_NR, squares_R = decomposition.left_NR, decomposition.squares_R
    targets_NK = class_targets(labels_N, classes)
    offset_K = one_hot(labels_N, classes).double().mean(0)
    projections_RK = left_NR.T @ targets_NK
    squared_left_NR = left_NR**2
    left_out, errors = [], []
    for strength in RIDGE_STRENGTHS:
        shrinkage_R = squares_R / (squares_R + strength)
        residuals_NK = targets_NK - left_NR @ (shrinkage_R[:, None] * projections_RK)
        leverage_N = 1 / len(targets_NK) + squared_left_NR @ shrinkage_R
        residuals_NK = residuals_NK / (1 - leverage_N)[:, None]
        left_out.append(targets_NK - residuals_NK + offset_K)
        errors.append((residuals_NK**2).mean())
    errors_of_strengths = torch.stack(errors)
    best = int(errors_of_strengths.argmin())
    strength = RIDGE_STRENGTHS[best]
    weights_DK = exact(features_ND).T @ (left_NR @ (projections_RK / (squares_R + strength)[:, None]))
    error = float(errors_of_strengths[best])
    return RidgeProbe(strength, left_out[best].argmax(1), error, weights_DK, offset_K)


def nearest_neighbours(
    train_ND: torch.Tensor,
    labels_N: torch.Tensor,
    other_MD: torch.Tensor,
    classes: int,
    neighbours: int = NEIGHBOURS,
) -> torch.Tensor:
    """Return the classes for which each image's nearest training images vote, int64 M.

    The similarity is the cosine, and a vote weighs exp(similarity / 0.07), as Wu et al. (2018) and DINO evaluate
    features.
    """
    train_ND, targets_NK = normalize(exact(train_ND)), one_hot(labels_N, classes).double()
    predicted = []
    for other_BD in torch.split(normalize(exact(other_MD)), ROWS_AT_ONCE):
        similarities_BP, nearest_BP = (other_BD @ train_ND.T).topk(min(neighbours, len(train_ND)), dim=1)
        votes_BPK = (similarities_BP / TEMPERATURE).exp()[:, :, None] * targets_NK[nearest_BP]
        predicted.append(votes_BPK.sum(1).argmax(1))
    return torch.cat(predicted)


def logme(decomposition: Decomposition, targets_NK: torch.Tensor) -> float:
    """Return LogME: the logarithm of the features' maximum evidence per image, averaged over targets.

    You et al. (2021, "LogME: Practical assessment of pre-trained models for transfer learning", ICML), by the fixed
    point iteration of You et al. (2022, "Ranking and tuning pre-trained models", JMLR), with the constants of the code
    published at github.com/thuml/LogME. Where there are more features than images, that code's fixed point adds
    (D - N) / 2 logarithms of alpha too many; there, this function agrees with the code's version for the first paper.

    Args:
        decomposition: of the features, raw or standardised.
        targets_NK: float64; 1 and 0 in the paper, `class_targets` for features whose mean is zero.
    """
    squares_R1 = decomposition.squares_R[:, None]
    N, K = targets_NK.shape
    projections_RK = (decomposition.left_NR.T @ targets_NK) ** 2
    outside_K = (targets_NK**2).sum(0) - projections_RK.sum(0)  # of what no weights can explain
    alpha_K = beta_K = torch.ones(K, dtype=torch.float64, device=targets_NK.device)
    for _ in range(LOGME_ITERATIONS):
        ratio_K = alpha_K / beta_K
        shrinkage_RK = squares_R1 / (squares_R1 + ratio_K)
        gamma_K = shrinkage_RK.sum(0)
        weights_K = (squares_R1 * projections_RK / (squares_R1 + ratio_K) ** 2).sum(0)
        residual_K = (projections_RK * (1 - shrinkage_RK) ** 2).sum(0) + outside_K
        alpha_K = gamma_K / (weights_K + 1e-5)
        beta_K = (N - gamma_K) / (residual_K + 1e-5)
    determinant_K = torch.log(alpha_K / (alpha_K + beta_K * squares_R1)).sum(0)
    fit_K = N * torch.log(beta_K / (2 * torch.pi)) - beta_K * residual_K - alpha_K * weights_K
    return float(((determinant_K + fit_K) / (2 * N)).mean())
