"""Run the same program with different seeds on several machines at once."""

from concurrent.futures import ThreadPoolExecutor

import gibil


def explore(machine: gibil.Machine, seed: int) -> int:
    return int(machine.run(f"echo $(({seed} * {seed}))", check=True).stdout)


with gibil.fleet(3, ttl="10m") as machines, ThreadPoolExecutor() as threads:
    print(list(threads.map(explore, machines, range(3))))
    print([result.exit_code for result in machines.run("test -d /root")])
