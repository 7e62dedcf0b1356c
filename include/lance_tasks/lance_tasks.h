/* SPDX-License-Identifier: Apache-2.0
 *
 * lance-tasks: work on Lance datasets as serializable tasks. Generated from src/ffi; do not edit.
 *
 * Five verbs on an executor:
 *
 *   prepare   spec          -> job       validates, pins the dataset's version, resolves every default
 *   plan      job, results  -> tasks     what is still to do; none = ready to commit
 *   execute   task, input?  -> result    writes files, never the manifest; safe to repeat, to lose
 *   commit    job, results  -> outcome   verified, exactly once, safe to repeat
 *   abort     job, results  -> report    deletes what attempts that were not committed have written
 *
 * Specs, jobs and tasks are bytes (JSON or binary, both accepted everywhere) that any process on any
 * machine may hold; tables of tasks and results are Arrow streams (Arrow C Data Interface), or lists
 * of bytes by lance_tasks_table_to_rows and lance_tasks_rows_to_table.
 *
 * Errors
 *   A fallible function answers with a LanceTasksStatus, LANCE_TASKS_OK (0) on success. Inputs come
 *   first, then outputs, then `out_error`, which may be NULL. Outputs are written on success only,
 *   `*out_error` on failure only; the caller frees the error with lance_tasks_error_free. An error
 *   belongs to no thread and may be read from any.
 *   A panic inside the library becomes LANCE_TASKS_PANIC and poisons the executor that it happened
 *   in, not the process: further calls with it answer LANCE_TASKS_INVALID_STATE.
 *
 * Ownership
 *   Strings and bytes handed in are pointer and length, need no terminator, and are copied; NULL with
 *   length 0 is empty. Bytes handed out are freed with lance_tasks_bytes_free.
 *   Arrow streams and schemas handed in are taken over: the library releases them on every path, also
 *   where the call fails, and leaves the caller's struct released (`release` is NULL). The struct
 *   itself stays the caller's. Arrow streams handed out are written to a place that the caller gives,
 *   over whatever is there, and are released by the caller through their own `release`.
 *   Handles are freed once by their own function; every `_free(NULL)` is a no-op.
 *   Option structs begin with `struct_size`, to be set to sizeof(the struct); zero means default.
 *
 * Threads
 *   A `const LanceTasksExecutor *` may be used by any number of threads at once, and so may a cancel
 *   token and an error. lance_tasks_executor_free must not race with a call on that executor. A stream
 *   is read by one thread at a time, not necessarily always the same one. Functions that take no
 *   handle may be called from any thread at any time.
 *   Callbacks come on the library's threads, several at once; they must not call back into the
 *   library, must not block and must not unwind.
 *   An executor does not survive fork(): in the child every call with it answers
 *   LANCE_TASKS_INVALID_STATE. Fork first, then make executors; or spawn.
 */

#ifndef LANCE_TASKS_H
#define LANCE_TASKS_H

#include <stddef.h>
#include <stdint.h>

/* The Arrow C Data Interface, https://arrow.apache.org/docs/format/CDataInterface.html */
#ifdef __cplusplus
extern "C" {
#endif

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
    const char *format;
    const char *name;
    const char *metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

#endif /* ARROW_C_DATA_INTERFACE */

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};

#endif /* ARROW_C_STREAM_INTERFACE */

#ifdef __cplusplus
} /* extern "C" */
#endif

/**
 * Changes when a function or struct of this header changes incompatibly. See
 * `lance_tasks_abi_version`.
 */
#define LANCE_TASKS_ABI_VERSION 1

/**
 * Encodings for `lance_tasks_convert`.
 */
#define LANCE_TASKS_ENCODING_JSON 1

#define LANCE_TASKS_ENCODING_BINARY 2

/**
 * Flag of `LanceTasksCallOptions`: `lance_tasks_commit` may commit a part of the job's tasks, where
 * the operation allows it (`compact`, `create_index`).
 */
#define LANCE_TASKS_FLAG_PARTIAL 1

/**
 * Kinds of `LanceTasksProgress`.
 */
#define LANCE_TASKS_PROGRESS_STARTED 1

#define LANCE_TASKS_PROGRESS_ADVANCED 2

#define LANCE_TASKS_PROGRESS_FINISHED 3

#define LANCE_TASKS_PROGRESS_FAILED 4

#define LANCE_TASKS_PROGRESS_STAGE 5

/**
 * Cancels the calls that were given it. Any thread may cancel at any time, also from a signal thread.
 */
typedef struct LanceTasksCancelToken LanceTasksCancelToken;

/**
 * Why a call failed. Opaque, immutable, may be read from any thread; freed by
 * `lance_tasks_error_free`.
 */
typedef struct LanceTasksError LanceTasksError;

/**
 * Runs the verbs: a thread pool, an I/O runtime, one Lance session, a cache of opened datasets and a
 * memory budget. Shared: a `const` handle may be used by any number of threads at once. Not usable in
 * a child after a fork.
 */
typedef struct LanceTasksExecutor LanceTasksExecutor;

/**
 * A folder, or a place in an object store, with files in it that appear whole or not at all; where
 * `lance-tasks` (the command line) keeps its spools. Shared: a `const` handle may be used by any number
 * of threads at once, also of an async runtime. In a child after a fork every call with it answers
 * `LANCE_TASKS_INVALID_STATE`.
 */
typedef struct LanceTasksFiles LanceTasksFiles;

/**
 * Answer of every fallible function: `LANCE_TASKS_OK` or one of the error codes.
 */
typedef int32_t LanceTasksStatus;

/**
 * How an executor is made. Zero means default. Begin with `struct_size = sizeof(...)`.
 */
typedef struct LanceTasksExecutorOptions {
    uint32_t struct_size;
    /**
     * Threads that run tasks; default: the CPUs this process may use.
     */
    uint32_t num_threads;
    /**
     * Bytes that the tasks running at one time may hold; default: half of the machine's memory.
     */
    uint64_t memory_budget;
} LanceTasksExecutorOptions;

/**
 * One event of a task. `task_id` and `message` are valid during the callback only; `message` is the
 * stage or the error, empty else.
 */
typedef struct LanceTasksProgress {
    uint32_t struct_size;
    /**
     * One of the `LANCE_TASKS_PROGRESS_*` kinds.
     */
    uint32_t kind;
    /**
     * UTF-8 with a terminating NUL.
     */
    const char *task_id;
    /**
     * Rows done so far by this task; of a stage, what Lance counts in it, from 0 in each.
     */
    uint64_t rows;
    /**
     * Bytes done so far by this task.
     */
    uint64_t bytes;
    /**
     * UTF-8 with a terminating NUL.
     */
    const char *message;
} LanceTasksProgress;

/**
 * Called on any thread, several at once; must not call back into the library, and must not block.
 */
typedef void (*LanceTasksProgressCallback)(void *context, const struct LanceTasksProgress *event);

/**
 * Called once when the library needs a callback's context no more.
 */
typedef void (*LanceTasksFinalizer)(void *context);

/**
 * What holds for one call. Zero means default; NULL in place of the struct means all defaults.
 * Begin with `struct_size = sizeof(...)`.
 */
typedef struct LanceTasksCallOptions {
    uint32_t struct_size;
    /**
     * `LANCE_TASKS_FLAG_*`, or-ed.
     */
    uint32_t flags;
    /**
     * A JSON object of strings, Lance's storage options (credentials, endpoint, region). Kept for the
     * call only; never stored in a descriptor or result, never logged. A name of the form
     * `base:<path>:<option>` is an option of the one base that is registered under this path (which
     * may have colons itself); a base with options of its own has these and no others, the rest have
     * those without a prefix. A path that is no registered base is `LANCE_TASKS_INVALID_ARGUMENT`.
     */
    const uint8_t *storage_options;
    size_t storage_options_len;
    /**
     * Milliseconds until the call fails with `LANCE_TASKS_DEADLINE_EXCEEDED`; 0 = no limit.
     */
    uint64_t timeout_ms;
    /**
     * May be NULL. Must outlive the call (and the stream of `lance_tasks_execute_all`) only as far as
     * the caller wants to cancel: the library keeps a reference of its own.
     */
    const struct LanceTasksCancelToken *cancel;
    /**
     * May be NULL. No call comes after the function (or the stream it made) is done.
     */
    LanceTasksProgressCallback progress;
    void *progress_context;
    /**
     * May be NULL. Called exactly once, also where the call fails.
     */
    LanceTasksFinalizer progress_finalizer;
} LanceTasksCallOptions;

/**
 * Bytes owned by the library until `lance_tasks_bytes_free`. Not NUL-terminated.
 */
typedef struct LanceTasksBytes {
    const uint8_t *data;
    size_t len;
} LanceTasksBytes;

#define LANCE_TASKS_OK 0

/**
 * An argument, option, column or specification is wrong. Class `invalid`.
 */
#define LANCE_TASKS_INVALID_ARGUMENT 1

/**
 * The dataset or a file named by the caller does not exist. Class `invalid`.
 */
#define LANCE_TASKS_NOT_FOUND 2

/**
 * The dataset or index to be created exists. Class `invalid`.
 */
#define LANCE_TASKS_ALREADY_EXISTS 3

/**
 * Data does not fit the schema. Class `invalid`.
 */
#define LANCE_TASKS_SCHEMA_MISMATCH 4

/**
 * A source file cannot be read or decoded. Class `invalid`.
 */
#define LANCE_TASKS_SOURCE 5

/**
 * Bytes that are not a descriptor, are cut short or damaged. Class `invalid`.
 */
#define LANCE_TASKS_DECODE 6

/**
 * A descriptor of an unknown format version, kind or operation. Class `invalid`.
 */
#define LANCE_TASKS_VERSION_MISMATCH 7

/**
 * The results do not cover the job. Class `replan`.
 */
#define LANCE_TASKS_INCOMPLETE 8

/**
 * A result contradicts its task. Class `fatal`.
 */
#define LANCE_TASKS_VERIFICATION 9

/**
 * Another commit made this one impossible. Class `conflict`.
 */
#define LANCE_TASKS_CONFLICT 10

/**
 * Another commit touched the same fragments; the work must be redone. Class `replan`.
 */
#define LANCE_TASKS_RETRYABLE_CONFLICT 11

/**
 * The pinned version of the dataset has been cleaned away. Class `replan`.
 */
#define LANCE_TASKS_VERSION_GONE 12

/**
 * Versions since the job's own are gone, so an earlier commit cannot be ruled out. Class `fatal`.
 */
#define LANCE_TASKS_HISTORY_GONE 13

/**
 * Storage failed. Class `retry_task`.
 */
#define LANCE_TASKS_IO 14

/**
 * Storage refused the credentials. Class `credentials`.
 */
#define LANCE_TASKS_CREDENTIALS 15

/**
 * The caller cancelled. Class `fatal`.
 */
#define LANCE_TASKS_CANCELLED 16

/**
 * The call's deadline passed. Class `retry_task`.
 */
#define LANCE_TASKS_DEADLINE_EXCEEDED 17

/**
 * The task does not fit the executor's memory budget. Class `invalid`.
 */
#define LANCE_TASKS_BUDGET_EXCEEDED 18

/**
 * A handle was used after its end, from a callback, or after a fork. Class `invalid`.
 */
#define LANCE_TASKS_INVALID_STATE 19

/**
 * Not supported by this library or by Lance for this dataset. Class `invalid`.
 */
#define LANCE_TASKS_NOT_SUPPORTED 20

/**
 * The commit's answer was lost and could not be read back; commit again. Class `retry_task`.
 */
#define LANCE_TASKS_COMMIT_UNKNOWN 21

/**
 * A panic was caught at the boundary; the executor handle is poisoned. Class `fatal`.
 */
#define LANCE_TASKS_PANIC 22

/**
 * Anything else. Class `fatal`.
 */
#define LANCE_TASKS_INTERNAL 23

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of this ABI; compare it with the header's `LANCE_TASKS_ABI_VERSION` at load.
 */
uint32_t lance_tasks_abi_version(void);

/**
 * The library's version, for example `0.1.0`. UTF-8 with a terminating NUL, static.
 */
const char *lance_tasks_version(void);

/**
 * The version of Lance inside, for example `14.0.2`. UTF-8 with a terminating NUL, static.
 */
const char *lance_tasks_lance_version(void);

/**
 * The newest wire format of descriptors that this library reads and writes.
 */
uint32_t lance_tasks_format_version(void);

/**
 * Make an executor. One per process is enough; every call shares its threads, caches and budget.
 *
 * # Parameters
 * `options`: NULL for defaults. `out_executor`: receives the handle.
 * # Returns
 * `LANCE_TASKS_OK`, or `LANCE_TASKS_INVALID_ARGUMENT`, `LANCE_TASKS_IO`.
 * # Memory and lifetimes
 * Free the handle with `lance_tasks_executor_free`.
 */
LanceTasksStatus lance_tasks_executor_new(const struct LanceTasksExecutorOptions *options,
                                          struct LanceTasksExecutor **out_executor,
                                          struct LanceTasksError **out_error);

/**
 * Free an executor. NULL is a no-op. Calls under way on other threads must have returned; streams that
 * it made stay valid and keep what they need alive.
 */
void lance_tasks_executor_free(struct LanceTasksExecutor *executor);

/**
 * Make a cancel token; free it with `lance_tasks_cancel_token_free`. Never fails.
 */
struct LanceTasksCancelToken *lance_tasks_cancel_token_new(void);

/**
 * Cancel. NULL, or a token already cancelled, is a no-op. Returns at once; the cancelled calls return
 * `LANCE_TASKS_CANCELLED` soon after.
 */
void lance_tasks_cancel_token_cancel(const struct LanceTasksCancelToken *token);

/**
 * Free a token. NULL is a no-op. Calls that were given it go on.
 */
void lance_tasks_cancel_token_free(struct LanceTasksCancelToken *token);

/**
 * Validate a spec, pin the dataset's version and resolve every default.
 *
 * # Parameters
 * `spec`: a spec in either encoding. `schema`: for a `write` fed by streams, the schema of the input
 * as it will come, else NULL; taken over. `options`: NULL for defaults. `out_job`: receives the job,
 * in binary.
 * # Returns
 * `LANCE_TASKS_OK`, or what is wrong with the spec. Nothing is written to the dataset in any case.
 * # Memory and lifetimes
 * Free `out_job` with `lance_tasks_bytes_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_prepare(const struct LanceTasksExecutor *executor,
                                     const uint8_t *spec,
                                     size_t spec_len,
                                     struct ArrowSchema *schema,
                                     const struct LanceTasksCallOptions *options,
                                     struct LanceTasksBytes *out_job,
                                     struct LanceTasksError **out_error);

/**
 * The task of one partition of an open job (a `write` fed by streams). Needs no executor.
 *
 * # Parameters
 * `job`: a job in either encoding. `partition`: the caller's name of the partition, not empty.
 * `out_task`: receives the task, in binary.
 * # Returns
 * `LANCE_TASKS_OK`, or `LANCE_TASKS_INVALID_ARGUMENT` where the job is not open or names its
 * partitions and this is none of them.
 * # Memory and lifetimes
 * Free `out_task` with `lance_tasks_bytes_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_job_task(const uint8_t *job,
                                      size_t job_len,
                                      const uint8_t *partition,
                                      size_t partition_len,
                                      struct LanceTasksBytes *out_task,
                                      struct LanceTasksError **out_error);

/**
 * What is still to do, given the results so far. An empty table means: ready to commit.
 *
 * # Parameters
 * `job`: a job in either encoding. `results`: a stream of result rows in any order, any number per
 * task, or NULL for none; taken over. `out_tasks`: a place for a stream; receives a table of tasks.
 * # Returns
 * `LANCE_TASKS_OK`, or for example `LANCE_TASKS_VERSION_GONE`.
 * # Memory and lifetimes
 * The caller releases `out_tasks` by its own `release`. Thread-safe.
 */
LanceTasksStatus lance_tasks_plan(const struct LanceTasksExecutor *executor,
                                  const uint8_t *job,
                                  size_t job_len,
                                  struct ArrowArrayStream *results,
                                  const struct LanceTasksCallOptions *options,
                                  struct ArrowArrayStream *out_tasks,
                                  struct LanceTasksError **out_error);

/**
 * Execute one task: writes files, never the manifest. Safe to repeat, safe to lose. Runs on the
 * executor's threads; the calling thread waits.
 *
 * # Parameters
 * `task`: a task in either encoding. `input`: the partition's data for the task of an open job, else
 * NULL; taken over, read to its end or released early. `out_result`: a place for a stream; receives
 * one result row.
 * # Returns
 * `LANCE_TASKS_OK`, or why the attempt failed; a failed attempt removes what it wrote.
 * # Memory and lifetimes
 * The caller releases `out_result` by its own `release`. Thread-safe.
 */
LanceTasksStatus lance_tasks_execute(const struct LanceTasksExecutor *executor,
                                     const uint8_t *task,
                                     size_t task_len,
                                     struct ArrowArrayStream *input,
                                     const struct LanceTasksCallOptions *options,
                                     struct ArrowArrayStream *out_result,
                                     struct LanceTasksError **out_error);

/**
 * Execute a table of tasks on the executor's threads. Returns at once; the stream yields one result
 * row per task, in the order of completion. A failed task is a row with `status` "failed", not the
 * end of the others. Releasing the stream early cancels what is not done.
 *
 * # Parameters
 * `tasks`: a stream of task rows as `lance_tasks_plan` makes them; taken over. `out_results`: a place
 * for a stream.
 * # Returns
 * `LANCE_TASKS_OK`, or `LANCE_TASKS_DECODE` for rows that are no tasks.
 * # Memory and lifetimes
 * The caller releases `out_results` by its own `release`, before or after the executor is freed.
 * Thread-safe; the stream itself is read by one thread at a time.
 */
LanceTasksStatus lance_tasks_execute_all(const struct LanceTasksExecutor *executor,
                                         struct ArrowArrayStream *tasks,
                                         const struct LanceTasksCallOptions *options,
                                         struct ArrowArrayStream *out_results,
                                         struct LanceTasksError **out_error);

/**
 * Read one task of an operation that reads (`take_blobs`): its data as a stream of batches. What is
 * wrong with the task is said here; the payload is read as the stream is pulled, on the executor's
 * threads, one batch ahead.
 *
 * # Parameters
 * `task`: a task in either encoding. `options`: NULL for defaults; the time limit, the cancel token and
 * the progress callback hold until the stream ends or is released. `out_data`: a place for a stream.
 * # Returns
 * `LANCE_TASKS_OK`; `LANCE_TASKS_INVALID_ARGUMENT` for a task that makes a result, and where the task
 * asks for what is not there; `LANCE_TASKS_BUDGET_EXCEEDED`. What fails later is an error of the
 * stream, whose text names the code and the task; the stream is at its end then.
 * # Memory and lifetimes
 * The caller releases `out_data` by its own `release`, before or after the executor is freed; that
 * cancels what is not done, and waits for it. From the first pull to its end the stream holds its part
 * of the memory budget; one that finds too little waits for another to end. Thread-safe; the stream
 * itself is read by one thread at a time, which may be none of the executor's own: it cannot be the
 * input of a task of the same executor.
 */
LanceTasksStatus lance_tasks_read(const struct LanceTasksExecutor *executor,
                                  const uint8_t *task,
                                  size_t task_len,
                                  const struct LanceTasksCallOptions *options,
                                  struct ArrowArrayStream *out_data,
                                  struct LanceTasksError **out_error);

/**
 * Read a table of tasks: the data of one after the other in their order, some of them read ahead. All
 * must yield the same columns.
 *
 * # Parameters
 * `tasks`: a stream of task rows as `lance_tasks_plan` makes them, at least one; taken over. `options`,
 * `out_data`: as for `lance_tasks_read`.
 * # Returns
 * As `lance_tasks_read`, of the first task; `LANCE_TASKS_DECODE` for rows that are no tasks. What is
 * wrong with a later task is an error of the stream when its turn comes.
 * # Memory and lifetimes
 * As for `lance_tasks_read`.
 */
LanceTasksStatus lance_tasks_read_all(const struct LanceTasksExecutor *executor,
                                      struct ArrowArrayStream *tasks,
                                      const struct LanceTasksCallOptions *options,
                                      struct ArrowArrayStream *out_data,
                                      struct LanceTasksError **out_error);

/**
 * The result of a task that another Lance client executed: what it made goes into the job's commit
 * like the result of an attempt. Nothing is written.
 *
 * # Parameters
 * `job`, `task`: in either encoding. `made`: JSON, that client's own description of what it made: for a
 * write Lance's fragments (pylance's `FragmentMetadata.to_json`, one or an array), for a compaction a
 * `RewriteResult`, for an index the fields of pylance's `Index` (`index_details` as an array of its
 * type and its bytes in Base64). `out_result`: a place for a stream; receives one result row.
 * # Returns
 * `LANCE_TASKS_OK`; `LANCE_TASKS_INVALID_ARGUMENT` for what is no such description;
 * `LANCE_TASKS_VERIFICATION` where it is not what the task asks for.
 * # Memory and lifetimes
 * The caller releases `out_result` by its own `release`. Thread-safe.
 */
LanceTasksStatus lance_tasks_adopt(const struct LanceTasksExecutor *executor,
                                   const uint8_t *job,
                                   size_t job_len,
                                   const uint8_t *task,
                                   size_t task_len,
                                   const uint8_t *made,
                                   size_t made_len,
                                   const struct LanceTasksCallOptions *options,
                                   struct ArrowArrayStream *out_result,
                                   struct LanceTasksError **out_error);

/**
 * Commit the job: verified, exactly once, safe to repeat.
 *
 * # Parameters
 * `job`: a job in either encoding. `results`: a stream of result rows in any order, any number per
 * task; taken over. `out_outcome`: receives the outcome, a JSON object with `version`, `rows`,
 * `already_committed`, `metrics`.
 * # Returns
 * `LANCE_TASKS_OK`; `LANCE_TASKS_INCOMPLETE` where tasks have no result; `LANCE_TASKS_CONFLICT`,
 * `LANCE_TASKS_RETRYABLE_CONFLICT`, `LANCE_TASKS_HISTORY_GONE`, `LANCE_TASKS_COMMIT_UNKNOWN` as they
 * say. On any error the dataset is as it was, or the commit has happened whole; calling again tells.
 * # Memory and lifetimes
 * Free `out_outcome` with `lance_tasks_bytes_free`. Thread-safe, also among processes.
 */
LanceTasksStatus lance_tasks_commit(const struct LanceTasksExecutor *executor,
                                    const uint8_t *job,
                                    size_t job_len,
                                    struct ArrowArrayStream *results,
                                    const struct LanceTasksCallOptions *options,
                                    struct LanceTasksBytes *out_outcome,
                                    struct LanceTasksError **out_error);

/**
 * Delete what attempts that were not committed have written. Never deletes what a commit of the job
 * refers to. Not to be called while another process executes or commits the same job.
 *
 * # Parameters
 * `job`: a job in either encoding. `results`: a stream of result rows; taken over. `out_report`:
 * receives a JSON object with `files_removed`, `bytes_removed`, `kept`.
 * # Returns
 * `LANCE_TASKS_OK`, or `LANCE_TASKS_HISTORY_GONE` where an earlier commit cannot be ruled out (nothing
 * is deleted then).
 * # Memory and lifetimes
 * Free `out_report` with `lance_tasks_bytes_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_abort(const struct LanceTasksExecutor *executor,
                                   const uint8_t *job,
                                   size_t job_len,
                                   struct ArrowArrayStream *results,
                                   const struct LanceTasksCallOptions *options,
                                   struct LanceTasksBytes *out_report,
                                   struct LanceTasksError **out_error);

/**
 * Turn a descriptor (spec, job or task, in either encoding) or a result (Arrow IPC stream bytes) into
 * another encoding. A result as JSON is a view for people, not read back.
 *
 * # Parameters
 * `data`: what to turn. `encoding`: `LANCE_TASKS_ENCODING_JSON` or `LANCE_TASKS_ENCODING_BINARY`.
 * # Returns
 * `LANCE_TASKS_OK`, or `LANCE_TASKS_DECODE`, `LANCE_TASKS_VERSION_MISMATCH`.
 * # Memory and lifetimes
 * Free `out_bytes` with `lance_tasks_bytes_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_convert(const uint8_t *data,
                                     size_t data_len,
                                     int32_t encoding,
                                     struct LanceTasksBytes *out_bytes,
                                     struct LanceTasksError **out_error);

/**
 * Split a table of tasks or results into one item of bytes per row: a task as its binary descriptor, a
 * result as an Arrow IPC stream of one row.
 *
 * # Parameters
 * `table`: a stream of task or result rows; taken over and read to its end. `out_rows`: receives the
 * items, each behind its length (`uint64_t`, little-endian).
 * # Memory and lifetimes
 * Free `out_rows` with `lance_tasks_bytes_free`. Thread-safe. Of a stream made by
 * `lance_tasks_execute_all`, this waits for all tasks; use `lance_tasks_next_row` to take them one by
 * one.
 */
LanceTasksStatus lance_tasks_table_to_rows(struct ArrowArrayStream *table,
                                           struct LanceTasksBytes *out_rows,
                                           struct LanceTasksError **out_error);

/**
 * Take the next row of a stream of results as bytes (an Arrow IPC stream of one row).
 *
 * # Parameters
 * `stream`: a stream of `lance_tasks_execute_all`; advanced by one row, not taken over. `out_row`:
 * receives the row, or NULL and 0 at the end of the stream.
 * # Memory and lifetimes
 * Free `out_row` with `lance_tasks_bytes_free`. One thread at a time per stream.
 */
LanceTasksStatus lance_tasks_next_row(struct ArrowArrayStream *stream,
                                      struct LanceTasksBytes *out_row,
                                      struct LanceTasksError **out_error);

/**
 * Make a table of tasks or results from the items that `lance_tasks_table_to_rows` makes; the two
 * kinds may not be mixed.
 *
 * # Parameters
 * `rows`: items, each behind its length (`uint64_t`, little-endian); none gives an empty table of
 * results. `out_table`: a place for a stream.
 * # Memory and lifetimes
 * The caller releases `out_table` by its own `release`. Thread-safe.
 */
LanceTasksStatus lance_tasks_rows_to_table(const uint8_t *rows,
                                           size_t rows_len,
                                           struct ArrowArrayStream *out_table,
                                           struct LanceTasksError **out_error);

/**
 * Open a place.
 *
 * # Parameters
 * `place`: a path, a `file://` URI, or an object store's URI as Lance takes it. `options`: NULL for
 * defaults; only its storage options are used. `out_files`: receives the handle.
 * # Returns
 * `LANCE_TASKS_OK`, or `LANCE_TASKS_INVALID_ARGUMENT` for a place that is none, or whose URI carries
 * credentials. A folder need not exist: the first put makes it.
 * # Memory and lifetimes
 * Free the handle with `lance_tasks_files_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_files_open(const uint8_t *place,
                                        size_t place_len,
                                        const struct LanceTasksCallOptions *options,
                                        struct LanceTasksFiles **out_files,
                                        struct LanceTasksError **out_error);

/**
 * Free a handle. NULL is a no-op. Calls under way on other threads must have returned.
 */
void lance_tasks_files_free(struct LanceTasksFiles *files);

/**
 * Read a file.
 *
 * # Parameters
 * `name`: relative to the place, with `/` between its parts. `out_bytes`: receives what is in the file;
 * NULL and 0 where there is none (an empty file is not NULL).
 * # Memory and lifetimes
 * Free `out_bytes` with `lance_tasks_bytes_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_files_get(const struct LanceTasksFiles *files,
                                       const uint8_t *name,
                                       size_t name_len,
                                       struct LanceTasksBytes *out_bytes,
                                       struct LanceTasksError **out_error);

/**
 * Write a file; it appears whole or not at all, and is synced.
 *
 * # Parameters
 * `replace`: 0: where there is a file already that differs, that one stays, and the answer is
 * `LANCE_TASKS_ALREADY_EXISTS`; of several processes that put one name at once, one succeeds. Else: a
 * file that is there is replaced.
 * # Memory and lifetimes
 * `data` is copied. Thread-safe.
 */
LanceTasksStatus lance_tasks_files_put(const struct LanceTasksFiles *files,
                                       const uint8_t *name,
                                       size_t name_len,
                                       const uint8_t *data,
                                       size_t data_len,
                                       int32_t replace,
                                       struct LanceTasksError **out_error);

/**
 * The names of the files in a folder, in order: without the folder, each ending in a NUL. Folders in it
 * are left out.
 *
 * # Parameters
 * `folder`: relative to the place. `out_names`: receives the names; NULL and 0 where there are none, or
 * no such folder.
 * # Memory and lifetimes
 * Free `out_names` with `lance_tasks_bytes_free`. Thread-safe.
 */
LanceTasksStatus lance_tasks_files_list(const struct LanceTasksFiles *files,
                                        const uint8_t *folder,
                                        size_t folder_len,
                                        struct LanceTasksBytes *out_names,
                                        struct LanceTasksError **out_error);

/**
 * Remove a file; where there is none, that is a success as well.
 *
 * # Memory and lifetimes
 * Thread-safe.
 */
LanceTasksStatus lance_tasks_files_delete(const struct LanceTasksFiles *files,
                                          const uint8_t *name,
                                          size_t name_len,
                                          struct LanceTasksError **out_error);

/**
 * Free bytes that the library handed out, and set them to NULL and 0. NULL, or a freed one, is a
 * no-op.
 */
void lance_tasks_bytes_free(struct LanceTasksBytes *bytes);

/**
 * The error's code: the status that the failed call answered with.
 *
 * # Parameters
 * `error`: an error, or NULL.
 * # Returns
 * The code, 0 for NULL.
 */
LanceTasksStatus lance_tasks_error_code(const struct LanceTasksError *error);

/**
 * The code's name without its prefix, for example `SCHEMA_MISMATCH`.
 *
 * # Returns
 * UTF-8 with a terminating NUL, valid until the error is freed; NULL for NULL.
 */
const char *lance_tasks_error_name(const struct LanceTasksError *error);

/**
 * The retry class: `retry_task`, `replan`, `conflict`, `invalid`, `credentials` or `fatal`.
 *
 * # Returns
 * UTF-8 with a terminating NUL, valid until the error is freed; NULL for NULL.
 */
const char *lance_tasks_error_class(const struct LanceTasksError *error);

/**
 * What happened, naming the file, fragment, column or option.
 *
 * # Returns
 * UTF-8 with a terminating NUL, valid until the error is freed; NULL for NULL.
 */
const char *lance_tasks_error_message(const struct LanceTasksError *error);

/**
 * The task concerned.
 *
 * # Returns
 * UTF-8 with a terminating NUL, valid until the error is freed; NULL where no task is concerned.
 */
const char *lance_tasks_error_task_id(const struct LanceTasksError *error);

/**
 * Free an error. NULL is a no-op.
 */
void lance_tasks_error_free(struct LanceTasksError *error);

/**
 * A `PyCapsule_Destructor` for capsules named `arrow_array_stream` that hold a struct from
 * `lance_tasks_alloc_stream`: releases the stream where nobody took it, and frees the struct.
 */
void lance_tasks_stream_capsule_free(void *capsule);

/**
 * Allocate an empty (released) Arrow stream struct; free it with `lance_tasks_free_stream`.
 */
struct ArrowArrayStream *lance_tasks_alloc_stream(void);

/**
 * Release an Arrow stream, where it is not released, and free its struct. NULL is a no-op.
 */
void lance_tasks_free_stream(struct ArrowArrayStream *stream);

/**
 * Allocate an empty (released) Arrow schema struct; free it with `lance_tasks_free_schema`.
 */
struct ArrowSchema *lance_tasks_alloc_schema(void);

/**
 * Release an Arrow schema, where it is not released, and free its struct. NULL is a no-op.
 */
void lance_tasks_free_schema(struct ArrowSchema *schema);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LANCE_TASKS_H */
