// SPDX-License-Identifier: Apache-2.0
//
// lance-tasks for C++17: owners and exceptions over lance_tasks.h, header-only. Link lance_tasks.
//
//     namespace lt = lance_tasks;
//     lt::Executor executor;
//     lt::Job job = executor.prepare(R"({"operation": "compact", "uri": "data.lance"})");
//     std::vector<lt::Result> results;
//     for (auto tasks = executor.plan(job); !tasks.empty(); tasks = executor.plan(job, results))
//         for (lt::Result& result : executor.execute_all(tasks)) results.push_back(std::move(result));
//     lt::Outcome outcome = executor.commit(job, results);
//
// or executor.run(spec) for all of it. Every failure is an lt::Error. What lance_tasks.h says of
// threads holds: a const Executor, a CancelToken, and the values Job, Task and Result may be used from
// any threads at once; a table is read by one thread at a time.
#ifndef LANCE_TASKS_HPP
#define LANCE_TASKS_HPP

#include "error.hpp"    // Error, Code, RetryClass
#include "executor.hpp" // Executor, CallOptions, CancelToken, Progress, TaskTable, ResultTable, Outcome
#include "values.hpp"   // Job, Task, Result, Bytes

#endif // LANCE_TASKS_HPP
