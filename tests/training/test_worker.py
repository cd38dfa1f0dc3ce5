"""A process with a part of a GPU takes no more than that part of its memory."""

from pathlib import Path

import pytest
import torch
from support import tiny

from medray.config.load import public_settings
from medray.training import worker
from medray.training.assignment import Assignment


class MemoryLimit(Exception):
    """Ends a trial where it would begin to load its model."""


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.25), (1.0, 1.0)])
def test_a_trial_is_bound_to_its_part_of_a_gpu_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, share: float
) -> None:
    def limit(fraction: float) -> None:
        raise MemoryLimit(fraction)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    study = tiny.study(tmp_path, f"resources.gpus_per_worker={gpus}")
    config = public_settings(study.trial(study.base_models[0]))
    assignment = Assignment("a", config, str(tmp_path / "none"), str(tmp_path / "a"), ())
    with pytest.raises(MemoryLimit) as error:
        worker.run(assignment, lambda row: None, node="here")
    assert error.value.args == (share,)


def test_a_trial_without_a_gpu_limits_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", pytest.fail)
    worker.limit_memory(0.0)
