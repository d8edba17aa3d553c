"""What a machine says of a job while it is followed."""

from __future__ import annotations

import pytest

from gibil_bot.machines.follow import Follow

WHY = b"gibil:failed the working directory /no/such/folder does not exist\n"
AFTER = b"gibil:failed its supervisor ended at once (is the disk full?)\n"


@pytest.mark.parametrize("pieces", [(WHY, AFTER), (WHY + AFTER,), (WHY[:20], WHY[20:] + AFTER)])
def test_the_first_reason_why_a_job_could_not_start_is_the_one_that_counts(pieces: tuple[bytes, ...]) -> None:
    follow = Follow("stdout", 0)
    for piece in pieces:
        follow.on_data("stderr", piece)
    assert follow.failed == "the working directory /no/such/folder does not exist"
