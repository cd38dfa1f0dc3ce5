"""The process of Ray Tune that runs the trials of a slot, one after another, with a crew."""

from typing import Any

from ray.tune import PlacementGroupFactory, Trainable
from ray.tune.result import RESULT_DUPLICATE

from medray.study.crew import Crew, Workers, hire
from medray.training.assignment import Assignment


class TrialActor(Trainable):
    crew: Crew | None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        if config["launcher"] == "inline":
            return PlacementGroupFactory(
                [{"CPU": config["cpus"], **({"GPU": config["gpus"]} if config["gpus"] else {})}]
            )
        # A CPU of this process would be missing for the workers that it waits for.
        return PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])

    def setup(self, config: dict[str, Any]) -> None:
        self.crew = None
        self._assign(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._assign(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next report of the trial, which has been going on since the last one."""
        assert self.crew is not None
        row = self.crew.next_message().row
        return {RESULT_DUPLICATE: True} if row is None else row  # Tune's word for the end

    def cleanup(self) -> None:
        if self.crew:
            self.crew.dismiss()

    def _assign(self, config: dict[str, Any]) -> None:
        if self.crew and self.crew.workers != Workers.of(config):
            if not self.crew.dismiss():
                raise RuntimeError("the workers of the trial before it do not end")
            self.crew = None
        self.crew = self.crew or hire(config)
        self.crew.desk.assign(Assignment(**config["assignment"]), config["max_failures"])
