"""How the lines that a machine sends about a followed job are read."""

from __future__ import annotations

import json

import pytest

from gibil_bot.model import Job
from gibil_bot.ssh.job_requests import start_request
from gibil_bot.ssh.jobs import JobFollower

WHY = b"gibil:failed the working directory /no/such/folder does not exist\n"
AFTER = b"gibil:failed the supervisor ended at once (is the disk full?)\n"


@pytest.mark.parametrize("pieces", [(WHY, AFTER), (WHY + AFTER,), (WHY[:20], WHY[20:] + AFTER)])
def test_the_first_reason_for_a_failed_start_is_reported(pieces: tuple[bytes, ...]) -> None:
    follow = JobFollower("stdout", 0)
    for piece in pieces:
        follow.on_data("stderr", piece)
    assert follow.failed == "the working directory /no/such/folder does not exist"


def test_a_line_break_in_the_name_of_a_missing_working_directory_does_not_cut_the_reason() -> None:
    request = json.loads(start_request(Job(id="job-1", script="true", working_directory="/no/such\nfolder")))
    follow = JobFollower("stdout", 0)
    follow.on_data("stderr", f"gibil:failed {request['no_folder']}\n".encode())
    assert follow.failed == "the working directory /no/such folder does not exist"
