"""Requests to the SSH server of a local machine, whose PID 1 starts jobs and knows their exit status. No I/O.

A server whose version string is SERVER_VERSION has two subsystems (RFC 4254, 6.5). The request is the whole input:

    START_JOB   the job as JSON → on stderr the line of a start: gibil:started, gibil:again, or gibil:failed REASON
    JOB_STATUS  the id of a job → on stdout, after its end, "exit STATUS", or "unknown" for a job that PID 1 didn't start

Everything else about a job is described in scripts/jobs.py and done by its scripts.
"""

from __future__ import annotations

import json

from gibil_bot.errors import UsageError
from gibil_bot.model import Job
from gibil_bot.scripts.jobs import check_job, no_folder, shell_words
from gibil_bot.ssh.answers import BadAnswer, exit_status

SERVER_VERSION = "gibil_1"
START_JOB = "gibil-start-job"
JOB_STATUS = "gibil-job-status"
MOST_REQUESTED = 32 * 1024 * 1024


def start_request(job: Job) -> bytes:
    """Return the request that starts a job. Raises UsageError for a job that can't be started on any machine."""
    check_job(job)
    request = {
        "folder": job.id,
        "script": job.script,
        "env": {**job.env, "GIBIL_JOB": job.id},
        "cwd": job.working_directory,
        "no_folder": no_folder(job),
        "argv": shell_words(job),
        "merged": job.merged,
        "returns": list(job.returns),
        "limit": job.most_output_bytes,
    }
    data = json.dumps(request).encode()
    if len(data) > MOST_REQUESTED:
        raise UsageError(f"job {job.id}: its script and environment have {len(data)} bytes, more than {MOST_REQUESTED}")
    return data


def read_status(answer: bytes) -> int | None:
    """Parse the answer to JOB_STATUS; None: unknown job. Raises BadAnswer."""
    word, _, rest = answer.decode("ascii", "replace").strip().partition(" ")
    if word == "unknown":
        return None
    if word != "exit":
        raise BadAnswer("the machine's server didn't answer with the exit status of a job")
    return exit_status(rest)
