"""python3 -m sexagesimal 4000"""

from __future__ import annotations

import argparse
import sys

from sexagesimal.cuneiform import wedges
from sexagesimal.numbers import read, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sexagesimal", description="Numbers in places of sixty.")
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER")
    parser.add_argument("--read", metavar="PLACES", help="such as 1,6,40")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.read is not None:
            print(read(chosen.read))
        for number in chosen.numbers:
            print(f"{number} = {write(number)}")
            print(wedges(number))
    except ValueError as error:
        print(f"sexagesimal: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
