"""How far a set of pictures is from another: distances between the features that a network sees in them.

Shapes: n pictures, d features.
"""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]

BANDWIDTH, SCALE = 10.0, 1000.0  # of CMMD (Jayasumana et al. 2024, section 4): sigma, and the factor to be readable


def frechet_distance(first_nd: Features, second_nd: Features) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features (Dowson and Landau 1982; Heusel et al. 2017).

    With few pictures it is too large: the covariances are then mostly chance. Its authors take 10,000 and more.
    """
    (mean_1, covariance_1), (mean_2, covariance_2) = _moments(first_nd), _moments(second_nd)
    # the eigenvalues of C1 C2 are those of C1^(1/2) C2 C1^(1/2), which is symmetric, so no complex numbers arise
    root = _root(covariance_1)
    eigenvalues = np.linalg.eigvalsh(root @ covariance_2 @ root)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = np.square(mean_1 - mean_2).sum() + np.trace(covariance_1) + np.trace(covariance_2) - 2 * trace_of_root
    return max(0.0, float(distance))


def maximum_mean_discrepancy(first_nd: Features, second_nd: Features) -> float:
    """CMMD (Jayasumana et al. 2024): squared, with a Gaussian kernel on features of length one, times 1000.

    Made for CLIP's features; it supposes no distribution and can be trusted from a few hundred pictures on.
    """
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first_nd, second_nd))
    return float(SCALE * (_kernel(first, first) + _kernel(second, second) - 2 * _kernel(first, second)))


def _moments(features_nd: Features) -> tuple[Features, Features]:
    mean = features_nd.mean(axis=0)
    centred = features_nd - mean
    return mean, centred.T @ centred / (len(features_nd) - 1)


def _root(symmetric: Features) -> Features:
    values, vectors = np.linalg.eigh(symmetric)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def _kernel(first: Features, second: Features) -> float:
    """The mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of rows of length one."""
    return float(np.exp((first @ second.T - 1) / BANDWIDTH**2).mean())
