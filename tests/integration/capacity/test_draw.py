"""The picture of a job."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from capacity.draw import draw
from capacity.policy import Limits, decide
from capacity.simulate import Job, simulate
from capacity.synthetic import make_trace


@pytest.mark.parametrize("deadline_h", [12.6, 24.0])
def test_a_picture_is_written_of_jobs_that_end_early_or_at_the_deadline(tmp_path: Path, deadline_h: float) -> None:
    trace, job = make_trace(1, days=3), Job(12, deadline_h)
    draw(trace, job, simulate(trace, job, decide, Limits(max_machines=1)), tmp_path / "job.png", title="one")
    height, width, _ = matplotlib.image.imread(tmp_path / "job.png").shape
    assert width > height > 500
