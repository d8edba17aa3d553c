"""Commit on a machine, and push the commits from this host: python push.py REPOSITORY

The machine has no credentials: its commits are copied, checked, and pushed with yours, to a new branch.
"""

import sys

import gibil

with gibil.create(name="greeter", repo=sys.argv[1], ttl="10m") as machine:
    machine.files.write("greeting.txt", "hello\n")
    machine.run("git config user.name Agent; git config user.email agent@example.com", check=True)
    machine.run("git add greeting.txt && git commit -qm 'Add a greeting'", check=True)
    pushed = machine.push()  # machine.open_pull_request(draft=True) also opens a pull request
    print(pushed.branch, *pushed.subjects, *pushed.files, sep=": ")
