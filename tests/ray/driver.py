# SPDX-License-Identifier: Apache-2.0
"""A driver of its own, which may be killed: the job of a case, with a spool.

    driver.py ADDRESS SPEC SPOOL MOMENT

MOMENT: ``done`` (not killed), ``before_commit``, ``mid_commit:SECONDS``, ``after_commit``, or
``answer_lost`` (the commit is done, its caller gets an error).
"""

import json
import os
import signal
import sys
import threading
import time

import ray

import lance_tasks as lt
import lance_tasks.ray as ltr


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(moment: str) -> None:
    real = lt.commit
    kind, _, seconds = moment.partition(":")
    lost = [True]

    def commit(*given: object, **options: object) -> lt.Outcome:
        if kind == "before_commit":
            die()
        if kind == "mid_commit":
            threading.Thread(target=lambda: (time.sleep(float(seconds)), die())).start()
        outcome = real(*given, **options)
        if kind == "after_commit":
            die()
        if kind == "answer_lost" and lost.pop():
            lost.append(False)
            raise lt.CommitUnknownError("the connection was reset")
        return outcome

    lt.commit = commit


def slow(batch: dict) -> dict:
    time.sleep(0.2)
    return batch


def main() -> None:
    address, spec, spool, moment = sys.argv[1:5]
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    arrange(moment)
    given = json.loads(spec)
    data = None
    if given.pop("blocks", None):
        from support import numbers

        data = [numbers(50, i * 50) for i in range(12)]
    if given.pop("dataset", None):
        from ray.data import DataContext

        DataContext.get_current().enable_progress_bars = False
        data = ray.data.range(600, override_num_blocks=12).map_batches(slow)
    args = json.loads(os.environ.get("DRIVER_ARGS", "{}"))
    outcome = ltr.run(given, data=data, spool=spool, ray_remote_args=args)
    print(json.dumps({"version": outcome.version, "again": outcome.already_committed}), flush=True)


if __name__ == "__main__":
    main()
