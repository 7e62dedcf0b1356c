# SPDX-License-Identifier: Apache-2.0
"""Errors that come with running on Ray."""

from __future__ import annotations

from lance_tasks.errors import Error


class WorkerLostError(Error):
    """Workers died, with their nodes or by themselves, while they executed a task."""

    code = "WORKER_LOST"
    retry_class = "retry_task"


class WorkerStartError(Error):
    """Workers cannot be started."""

    code = "WORKER_START"
    retry_class = "fatal"
