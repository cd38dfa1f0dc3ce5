"""What few validation rows gain or lose by a temperature and by thresholds, on rows kept aside: the mean over 20 splits.

`python jobs/bench/calibration.py --data abstracts/raw` fits TF-IDF models of three strengths to half of the abstracts.
"""

import argparse
from functools import partial

import numpy as np

from medray.config.load import plugin_options
from medray.data.formats.base import protocol as formats
from medray.evaluation import calibration, metrics
from medray.evaluation import calibration as prior
from medray.evaluation import calibration as thresholds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of raw abstracts")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64, 128], help="validation rows")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--priors", type=int, nargs="+", default=[0, 20, 50, 100], help="rows that the prior is worth")
    args = parser.parse_args()
    examples = list(formats.read(plugin_options("data.formats", f"name=raw_abstracts,path={args.data}")))
    labels = sorted({example.labels[0] for example in examples})
    texts = np.array([example.text for example in examples], dtype=object)
    truth = np.array([labels.index(example.labels[0]) for example in examples])
    order = np.random.default_rng(0).permutation(len(truth))
    train, rest = order[: len(order) // 2], order[len(order) // 2 :]
    print(f"{len(train)} abstracts train, {len(rest)} are split: gain of log loss by a temperature, and of macro F1 by class thresholds")
    print("model, accuracy, validation rows, rows of the prior: log loss, macro F1, splits with a temperature, with thresholds")
    for strength in (1, 10, 1000):
        probabilities = _probabilities(texts, truth, train, rest, strength)
        accuracy = (probabilities.argmax(axis=1) == truth[rest]).mean()
        for num_rows in args.rows:
            for rows_of_prior in args.priors:
                prior.PRIOR_ROWS = rows_of_prior  # type: ignore[misc]
                gains = [_gains(truth[rest], probabilities, num_rows, split) for split in range(args.splits)]
                loss, f1 = np.mean(gains, axis=0)
                fitted, kept = np.count_nonzero(gains, axis=0)
                print(f"C={strength}, {accuracy:.3f}, {num_rows}, {rows_of_prior}: {loss:+.4f}, {f1:+.4f}, {fitted}, {kept}", flush=True)


def _probabilities(texts: np.ndarray, truth: np.ndarray, train: np.ndarray, rest: np.ndarray, strength: float) -> np.ndarray:  # type: ignore[type-arg]
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=strength, max_iter=3000))
    return np.asarray(model.fit(texts[train], truth[train]).predict_proba(texts[rest]))


def _gains(truth: np.ndarray, probabilities: np.ndarray, num_rows: int, seed: int) -> tuple[float, float]:  # type: ignore[type-arg]
    order = np.random.default_rng(seed).permutation(len(truth))
    validation, aside = order[:num_rows], order[num_rows:]
    one_hot = np.eye(probabilities.shape[1], dtype=np.bool_)[truth]
    temperature = calibration.fit_temperature(probabilities[validation], one_hot[validation], multi_label=False)
    loss = partial(calibration.log_loss, truth=one_hot[aside], multi_label=False)
    scaled = calibration.rescale(probabilities[aside], temperature, multi_label=False)
    limits = thresholds.fit_thresholds(truth[validation], probabilities[validation])
    own = _f1(truth[aside], probabilities[aside].argmax(axis=1))
    decided = own if limits is None else _f1(truth[aside], thresholds.decide(probabilities[aside], np.array(limits)))
    return loss(probabilities[aside]) - loss(scaled), decided - own


def _f1(truth: np.ndarray, predicted: np.ndarray) -> float:  # type: ignore[type-arg]
    labels = sorted(map(str, set(truth.tolist())))
    one_hot = np.eye(len(labels))
    return metrics.single_label(
        truth.tolist(), one_hot[predicted], predicted.tolist(), labels, labels[0] if len(labels) == 2 else None
    ).values["f1_macro"]


if __name__ == "__main__":
    main()
