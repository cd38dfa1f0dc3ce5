"""A report of a trial comes back unchanged through Ray Tune."""

from ray.tune.utils import flatten_dict

from medray.records import Evaluation
from medray.training.assignment import TrialReport


def test_a_report_survives_tune_which_flattens_it_and_adds_keys_of_its_own() -> None:
    evaluation = Evaluation(
        2,
        60,
        0.5,
        {"f1_macro": 0.7, "log_loss": 0.4},
        is_best=True,
        epochs=1.5,
        is_last=False,
        seconds=3.0,
        tokens_per_s=100.0,
    )
    report = TrialReport(evaluation, first_step_at=1.0, num_parameters=10, num_trainable=1)
    result = {
        **report.as_row(),
        "training_iteration": 2,
        "config": {"assignment": {"trial": "one"}},
    }
    assert TrialReport.from_row(flatten_dict(result)) == report
    assert not any(isinstance(value, dict) for value in report.as_row().values())
