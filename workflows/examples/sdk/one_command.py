"""Run a command on a disposable machine. The machine is destroyed at the end of the block, also after an exception."""

import asyncio

from gibil_bot import machines


async def main() -> None:
    async with machines.create(ttl="10m", env={"GREETING": "hello"}) as machine:
        result = await machine.run("echo $GREETING from $(hostname)")
        print(result.exit_code, result.stdout, end="")


asyncio.run(main())
