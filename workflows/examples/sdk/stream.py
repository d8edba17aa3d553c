"""Read the output while the command runs, and handle commands that fail or take too long."""

import gibil

with gibil.create(ttl="10m") as machine:
    with machine.stream("for number in 1 2 3; do echo $number; done; exit 4") as stream:
        for output in stream:
            print(output.text, end="")
    print("exit code", stream.result.exit_code)

    try:
        machine.run(["ls", "no such file"], check=True)
    except gibil.CommandFailed as error:
        print(error.code, error.result.exit_code)

    print("timed out:", machine.run("sleep 60", timeout=0.5).timed_out)
