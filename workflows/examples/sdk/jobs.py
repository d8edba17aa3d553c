"""Start a background job, which continues when the program ends, and follow its output later."""

import gibil

with gibil.create(ttl="10m") as machine:
    job_id = machine.jobs.start("echo begins; sleep 0.2; echo ends; exit 3", timeout=60).id

    job = machine.jobs.get(job_id)  # another program can do this, with gibil.open(NAME)
    for output in job.follow():
        print(output.text, end="")
    print("exit code", job.wait())
    print([state.status for state in machine.jobs.list() if state.id == job_id])
