"""Linear probe: logistic regression on frozen features, a small convex problem per label that is solved exactly, without JAX."""

import numpy as np
from jaxtyping import Float, Real
from scipy.optimize import minimize
from scipy.special import expit

_FLAT = 1e-6  # a feature that deviates less than this share of the largest one is constant but for rounding


def fit_probe(
    features: Real[np.ndarray, "N D"], labels: Real[np.ndarray, "N L"], l2: float = 1e-3
) -> tuple[Float[np.ndarray, "D L"], Float[np.ndarray, "L"]]:
    """Logistic regression with a ridge, one for each label.

    Minimises mean_i log(1 + exp(-s_i (w . z_i + b))) + l2 / 2 |w|^2, where s_i is 1 or -1 and z are the features with mean 0 and deviation 1 over all
    rows, so that `l2` means the same for features of any scale; what is returned applies to the features as they are. scikit-learn's C is 1 / (n l2).

    Args:
      features: of frozen encoders.
      labels: 1 present, 0 absent, NaN left out.
      l2: strength of the ridge, above 0.

    Returns:
      Weights and biases: `features @ weights + bias` are log-odds. NaN for a label without both classes.

    Raises:
      ValueError: `l2` is not positive, or a label is none of 0, 1 and NaN.
    """
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; expected a positive number")
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        raise ValueError("labels contain a value other than 0, 1 and NaN; map uncertain labels to one of these first")
    features = np.asarray(features, np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > _FLAT * deviation.max(initial=0.0), deviation, np.inf)  # constant: no weight
    scaled = (features - mean) / deviation
    columns = [_fit_label(scaled, np.asarray(column, np.float64), l2) for column in labels.T]
    weights = np.asarray([weights for weights, _ in columns]).reshape(-1, len(deviation)).T / deviation[:, None]
    return weights, np.asarray([bias for _, bias in columns]) - mean @ weights


def _fit_label(
    features: Float[np.ndarray, "N D"], labels: Float[np.ndarray, "N"], l2: float
) -> tuple[Float[np.ndarray, "D"], float]:
    """Weights and bias of one label by L-BFGS, from zero; NaN where a class is missing."""
    known = ~np.isnan(labels)
    if len(np.unique(labels[known])) < 2:
        return np.full(features.shape[1], np.nan), float("nan")
    features, signs = features[known], 2.0 * labels[known] - 1.0

    def objective(parameters: Float[np.ndarray, "E"]) -> tuple[float, Float[np.ndarray, "E"]]:
        """Loss and gradient; the bias stands last and has no ridge."""
        weights, margin = parameters[:-1], signs * (features @ parameters[:-1] + parameters[-1])
        slope = -signs * expit(-margin) / len(signs)
        loss = np.logaddexp(0.0, -margin).mean() + 0.5 * l2 * weights @ weights
        return float(loss), np.append(features.T @ slope + l2 * weights, slope.sum())

    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-8}
    solved = minimize(objective, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x
    return solved[:-1], float(solved[-1])
