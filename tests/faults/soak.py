# SPDX-License-Identifier: Apache-2.0
"""Many faults of every kind, and how each ended.

    python tests/faults/soak.py [--faults N] [--operation OPERATION|all]
                                [--fault NAME] [--seed S] [--seconds MAX] [--again ID]

Ends with a table, and with 1 where something was not as it must be; the folder of each such fault
is kept, and `--again` takes its choices once more (the moment of a kill is the machine's).
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import environment

if not environment.can_mount() and environment.can_unshare() and __name__ == "__main__":
    # As root of a name space of our own we may fill disks.
    os.execvp("unshare", [*environment.IN_NAME_SPACE, sys.executable, *sys.argv])

from catalog import FAULTS, Bench, Id, Objection

# So many are worth a look; more say the same.
MOST_OBJECTIONS = 10

Ends = Counter[tuple[str, str, str]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000, help="per operation")
    parser.add_argument("--operation", choices=[*FAULTS, "all"], default="all")
    parser.add_argument("--fault", help="this kind only")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    parser.add_argument("--again", metavar="ID", type=Id.parse, help="one fault, by its id")
    return parser.parse_args()


def choose(given: argparse.Namespace) -> list[Id]:
    """Every kind as often, kinds and operations in turn, so that any part of the list has all."""
    if given.again:
        return [given.again]
    operations = list(FAULTS) if given.operation == "all" else [given.operation]
    chosen = []
    for operation in operations:
        kinds = [f.__name__ for f in FAULTS[operation] if given.fault in (None, f.__name__)]
        for i in range(given.faults if kinds else 0):
            kind = kinds[i % len(kinds)]
            chosen.append((i, Id(given.seed, operation, kind, i // len(kinds))))
    return [fault for _, fault in sorted(chosen, key=lambda pair: pair[0])]


def table(ends: Ends) -> str:
    """Operation, kind, how many, how it ended."""
    kinds: Counter[tuple[str, str]] = Counter()
    for (operation, kind, _), count in ends.items():
        kinds[operation, kind] += count
    lines = [f"{'operation':<13} {'fault':<29} {'count':>5}  ended"]
    for operation, faults in FAULTS.items():
        for kind in (fault.__name__ for fault in faults):
            if not kinds[operation, kind]:
                continue
            lines.append(f"{operation:<13} {kind:<29} {kinds[operation, kind]:>5}")
            mine = {e: n for (o, k, e), n in ends.items() if (o, k) == (operation, kind)}
            lines += [f"{'':<43} {n:>5}  {e}" for e, n in sorted(mine.items(), key=lambda i: -i[1])]
    totals = Counter(operation for operation, _, _ in ends.elements())
    lines += [f"{operation}: {totals[operation]} faults" for operation in totals]
    return "\n".join(lines)


def main() -> int:
    given = arguments()
    faults = choose(given)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"seed {given.seed}: {len(faults)} faults below {folder}", flush=True)
    bench = Bench(folder)
    ends: Ends = Counter()
    objections = 0
    began = shown = time.monotonic()
    for fault in faults:
        try:
            end = bench.run(fault)
        except Objection as objection:
            print(objection, file=sys.stderr, flush=True)
            end = "OBJECTION"
            objections += 1
        ends[fault.operation, fault.fault, end] += 1
        now = time.monotonic()
        if now - shown > 30:
            shown = now
            print(
                f"{ends.total()} faults, {now - began:.0f} s, {objections} objections", flush=True
            )
        if objections >= MOST_OBJECTIONS or now - began > given.seconds:
            break
    bench.close()
    print(table(ends))
    left = len(faults) - ends.total()
    print(f"{ends.total()} faults in {time.monotonic() - began:.0f} s, {left} not begun")
    if objections:
        print(f"{objections} objections; seed {given.seed}, folders kept below {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
