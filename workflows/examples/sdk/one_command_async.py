"""The same in asynchronous code: `async with`, and the same methods."""

import asyncio

import gibil


async def main() -> None:
    async with gibil.create(ttl="10m", env={"GREETING": "hello"}) as machine:
        result = await machine.run("echo $GREETING from $(hostname)")
        print(result.exit_code, result.stdout, end="")


asyncio.run(main())
