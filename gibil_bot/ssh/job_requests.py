"""Starting jobs through the SSH server of a local machine, whose PID 1 knows how they end. Pure.

A server that calls itself SERVER_VERSION has two subsystems (RFC 4254, 6.5). The request is the whole input:

    START_JOB   the job as JSON → on stderr the line of a start: gibil:started, gibil:again, or gibil:failed REASON
    JOB_STATUS  the id of a job → on stdout, once it has ended, "exit STATUS", or "unknown" for one that was not started here

Everything else about a job is as scripts/jobs.py says, and done by its scripts.
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
    """Raises UsageError for a job that cannot be started anywhere."""
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
        raise UsageError(f"job {job.id}: its script and environment are {len(data)} bytes; {MOST_REQUESTED} are possible")
    return data


def read_status(answer: bytes) -> int | None:
    """None: unknown. Raises BadAnswer."""
    word, _, rest = answer.decode("ascii", "replace").strip().partition(" ")
    if word == "unknown":
        return None
    if word != "exit":
        raise BadAnswer("the machine's server does not say how a job ended")
    return exit_status(rest)
