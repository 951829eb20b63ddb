"""Options that trackers have in common; a tracker takes those that its service really has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dumbo.config.section import Section

Name = Annotated[str, Field(min_length=1)]


class NamedRunOptions(Section):
    """Options of a tracker whose runs have names."""

    name: Name | None = None
    """Name of the run there; by default the name of the run's folder."""


class ProjectOptions(NamedRunOptions):
    """Options of a tracker that sorts runs into projects and groups."""

    project: Name | None = None
    """Project that the run belongs to; by default what `WANDB_PROJECT` says to wandb, or `dumbo`."""
    group: Name | None = None
    """Group of runs within the project that belong together, such as the seeds of one experiment."""
