"""Run a command on a disposable machine. The machine is destroyed at the end of the block, also after an exception."""

import gibil

with gibil.create(ttl="10m", env={"GREETING": "hello"}) as machine:
    result = machine.run("echo $GREETING from $(hostname)")
    print(result.exit_code, result.stdout, end="")
