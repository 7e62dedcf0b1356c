# SPDX-License-Identifier: Apache-2.0
"""Runs one of the hooks in a worker process that was told to, once what it changes is there."""

import importlib.abc
import importlib.util
import os
import sys

WORKER = "lance_tasks.ray._worker"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != WORKER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        real = spec.loader.exec_module

        def execute(module):
            import hooks

            real(module)
            getattr(hooks, os.environ["LANCE_TASKS_TEST_HOOK"])(module)

        spec.loader.exec_module = execute
        return spec


if "LANCE_TASKS_TEST_HOOK" in os.environ:
    sys.meta_path.insert(0, _Finder())
