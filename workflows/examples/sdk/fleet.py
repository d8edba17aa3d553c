"""Run the same program with different seeds on several machines at once."""

import asyncio

from gibil_bot import machines


async def explore(connected: machines.Connected, seed: int) -> int:
    async with connected.create(ttl="10m") as machine:
        result = await machine.run(f"echo $(({seed} * {seed}))")
        return int(result.stdout)


async def main() -> None:
    async with machines.connect() as connected:
        print(await asyncio.gather(*(explore(connected, seed) for seed in range(3))))


asyncio.run(main())
