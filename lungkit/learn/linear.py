"""A linear classifier of features, fitted at once: no steps, no seed."""

from __future__ import annotations

import numpy as np

PENALTY = 0.01  # scikit-learn's C, as in benchmarks/features_lc25000.py


def fit(features: np.ndarray, labels: np.ndarray):
    """What says a class, by its `predict`, of features as float [N, D] `features` of `labels`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000))
    return head.fit(features, labels)
