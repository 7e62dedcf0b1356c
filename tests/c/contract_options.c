/* Option structs, storage options, deadlines, cancel tokens, progress and its finalizer. */
#include <pthread.h>
#include <stdlib.h>

#include "producer.h"

static LanceTasksExecutor *executor;
static char *dir;
static LanceTasksBytes open_job;
static LanceTasksBytes open_task;

/* A callback's context: how often it was called, by kind, and how often it was finalized. */
typedef struct Watch {
    atomic_int events[LANCE_TASKS_PROGRESS_STAGE + 1];
    atomic_int total;
    atomic_int finalized;
    atomic_int after_end;
    atomic_int malformed;
    uint64_t rows;
    /* Tells the other thread that work has begun. */
    atomic_int begun;
} Watch;

static void on_progress(void *context, const LanceTasksProgress *event) {
    Watch *watch = context;
    atomic_fetch_add(&watch->total, 1);
    if (atomic_load(&watch->finalized) != 0) atomic_fetch_add(&watch->after_end, 1);
    bool good = event->struct_size >= sizeof *event && event->task_id != NULL &&
                strlen(event->task_id) == 36 && event->message != NULL &&
                event->kind >= LANCE_TASKS_PROGRESS_STARTED &&
                event->kind <= LANCE_TASKS_PROGRESS_STAGE;
    if (!good) {
        atomic_fetch_add(&watch->malformed, 1);
        return;
    }
    atomic_fetch_add(&watch->events[event->kind], 1);
    atomic_store(&watch->begun, 1);
}

static void on_end(void *context) {
    Watch *watch = context;
    atomic_fetch_add(&watch->finalized, 1);
}

static LanceTasksCallOptions watched(Watch *watch) {
    return (LanceTasksCallOptions){
        .struct_size = sizeof(LanceTasksCallOptions),
        .progress = on_progress,
        .progress_context = watch,
        .progress_finalizer = on_end,
    };
}

static bool ended_once(const Watch *watch) {
    bool once = atomic_load(&watch->finalized) == 1 && atomic_load(&watch->after_end) == 0 &&
                atomic_load(&watch->malformed) == 0;
    if (!once)
        fprintf(stderr, "finalized %d times, %d events after, %d malformed\n",
                atomic_load(&watch->finalized), atomic_load(&watch->after_end),
                atomic_load(&watch->malformed));
    return once;
}

/* ---- struct_size ---- */

static void test_executor_struct_size(void) {
    struct {
        LanceTasksExecutorOptions options;
        uint64_t future[8];
    } larger = {{.struct_size = sizeof larger, .num_threads = 1}, {1, 2, 3}};
    LanceTasksExecutor *made = NULL;
    CHECK_OK(lance_tasks_executor_new(&larger.options, &made, &error));
    lance_tasks_executor_free(made);

    /* Before memory_budget was added, as it were: what is beyond is not read. */
    LanceTasksExecutorOptions *smaller = malloc(8);
    REQUIRE(smaller != NULL);
    memcpy(smaller, &(uint32_t[2]){8, 1}, 8);
    made = NULL;
    CHECK_OK(lance_tasks_executor_new(smaller, &made, &error));
    lance_tasks_executor_free(made);
    free(smaller);

    const uint32_t wrong[] = {0, 1, 4, 7, 5000, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        LanceTasksExecutorOptions options = {.struct_size = wrong[i]};
        made = (LanceTasksExecutor *)(uintptr_t)UNTOUCHED;
        CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "struct_size",
                    lance_tasks_executor_new(&options, &made, &error));
        CHECK((const uint8_t *)made == UNTOUCHED);
    }
    LanceTasksExecutorOptions many = {.struct_size = sizeof many, .num_threads = UINT32_MAX};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "num_threads",
                lance_tasks_executor_new(&many, &made, &error));
}

static LanceTasksStatus plan_with(const LanceTasksCallOptions *options, LanceTasksError **error) {
    struct ArrowArrayStream tasks = {0};
    LanceTasksStatus status =
        lance_tasks_plan(executor, open_job.data, open_job.len, NULL, options, &tasks, error);
    release_stream(&tasks);
    return status;
}

static void test_call_struct_size(void) {
    struct {
        LanceTasksCallOptions options;
        uint64_t future[8];
    } larger = {{.struct_size = sizeof larger}, {1, 2, 3}};
    CHECK_OK(plan_with(&larger.options, &error));

    LanceTasksCallOptions *smaller = malloc(8);
    REQUIRE(smaller != NULL);
    memcpy(smaller, &(uint32_t[2]){8, 0}, 8);
    CHECK_OK(plan_with(smaller, &error));
    memcpy(smaller, &(uint32_t[2]){8, 1u << 31}, 8);
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "flags", plan_with(smaller, &error));
    free(smaller);

    const uint32_t wrong[] = {0, 1, 4, 7, 5000, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        LanceTasksCallOptions options = {.struct_size = wrong[i]};
        CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "struct_size", plan_with(&options, &error));
    }
}

static void test_unknown_flags(void) {
    for (int bit = 1; bit < 32; bit++) {
        LanceTasksCallOptions options = {.struct_size = sizeof options, .flags = 1u << bit};
        CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "flags", plan_with(&options, &error));
    }
    LanceTasksCallOptions options = {.struct_size = sizeof options,
                                     .flags = LANCE_TASKS_FLAG_PARTIAL};
    CHECK_OK(plan_with(&options, &error));
}

/* ---- storage options ---- */

static LanceTasksStatus plan_with_storage(const char *json, LanceTasksError **error) {
    LanceTasksCallOptions options = {
        .struct_size = sizeof options,
        .storage_options = (const uint8_t *)json,
        .storage_options_len = json ? strlen(json) : 3,
    };
    return plan_with(&options, error);
}

static void test_storage_options(void) {
    CHECK_OK(plan_with_storage("", &error));
    CHECK_OK(plan_with_storage("  ", &error));
    CHECK_OK(plan_with_storage("{}", &error));
    CHECK_OK(plan_with_storage("{\"a\": \"b\"}", &error));
    const char *bad[] = {"{",           "[]",  "3", "null", "{\"a\": 1}", "{\"a\": {\"b\": \"c\"}}",
                         "{\"a\":null}", "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "storage_options",
                    plan_with_storage(bad[i], &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "storage_options", plan_with_storage(NULL, &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "base:<path of the base>:<option>",
                plan_with_storage("{\"base:s3://b/x\": \"y\"}", &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "s3://b/x",
                plan_with_storage("{\"base:s3://b/x:key\": \"y\"}", &error));
}

static void test_errors_quote_no_secret(void) {
    const char *bad[] = {
        "{\"aws_secret_access_key\": hunter2}",
        "{\"aws_secret_access_key\": \"hunter2\"",
        "{\"aws_secret_access_key\": [\"hunter2\"]}",
        "{\"hunter2\": 1}",
        "{\"base:s3://b/x:key\": \"hunter2\"}",
        "{\"base:s3://b/x\": \"hunter2\"}",
        "{\"base:s3://user:hunter2@b/x:key\": \"y\"}",
        "hunter2",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        LanceTasksError *error = NULL;
        CHECK(plan_with_storage(bad[i], &error) == LANCE_TASKS_INVALID_ARGUMENT);
        REQUIRE(error != NULL);
        CHECK(strstr(lance_tasks_error_message(error), "hunter2") == NULL);
        drop_error(&error);
    }
}

/* ---- deadlines and cancelling ---- */

static LanceTasksStatus endless_execute(const LanceTasksCallOptions *options,
                                        LanceTasksError **error) {
    Producer from = producer(-1, 100);
    from.pause_ms = 1;
    struct ArrowArrayStream input = producer_stream(&from), result = {0};
    LanceTasksStatus status = lance_tasks_execute(executor, open_task.data, open_task.len, &input,
                                                  options, &result, error);
    CHECK(result.release == NULL && input.release == NULL);
    CHECK(producer_is_clean(&from));
    release_stream(&result);
    return status;
}

static void test_deadline(void) {
    Watch watch = {0};
    LanceTasksCallOptions options = watched(&watch);
    options.timeout_ms = 200;
    CHECK_FAILS(LANCE_TASKS_DEADLINE_EXCEEDED, "", endless_execute(&options, &error));
    CHECK(ended_once(&watch));
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FAILED]) == 1);
    options = (LanceTasksCallOptions){.struct_size = sizeof options, .timeout_ms = UINT64_MAX};
    CHECK_OK(plan_with(&options, &error));
}

static void test_cancelled_before(void) {
    LanceTasksCancelToken *token = lance_tasks_cancel_token_new();
    lance_tasks_cancel_token_cancel(token);
    lance_tasks_cancel_token_cancel(token);
    Watch watch = {0};
    LanceTasksCallOptions options = watched(&watch);
    options.cancel = token;
    CHECK_FAILS(LANCE_TASKS_CANCELLED, "", endless_execute(&options, &error));
    CHECK(ended_once(&watch));
    LanceTasksCallOptions only = {.struct_size = sizeof only, .cancel = token};
    CHECK_FAILS(LANCE_TASKS_CANCELLED, "", plan_with(&only, &error));
    lance_tasks_cancel_token_free(token);
}

typedef struct Canceller {
    LanceTasksCancelToken *token;
    Watch *watch;
    bool free_too;
} Canceller;

static void *cancel_soon(void *context) {
    Canceller *self = context;
    wait_until(&self->watch->begun, 1);
    sleep_ms(50);
    lance_tasks_cancel_token_cancel(self->token);
    /* The calls under way keep a reference of their own. */
    if (self->free_too) lance_tasks_cancel_token_free(self->token);
    return NULL;
}

static void test_cancelled_from_another_thread(void) {
    for (int free_too = 0; free_too < 2; free_too++) {
        Watch watch = {0};
        Canceller canceller = {lance_tasks_cancel_token_new(), &watch, free_too == 1};
        LanceTasksCallOptions options = watched(&watch);
        options.cancel = canceller.token;
        pthread_t thread;
        REQUIRE(pthread_create(&thread, NULL, cancel_soon, &canceller) == 0);
        CHECK_FAILS(LANCE_TASKS_CANCELLED, "", endless_execute(&options, &error));
        pthread_join(thread, NULL);
        if (!free_too) lance_tasks_cancel_token_free(canceller.token);
        CHECK(ended_once(&watch));
    }
}

static void test_cancelled_execute_all(void) {
    char *own = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, own, 100, 10);
    struct ArrowArrayStream tasks = plan(executor, job), results = {0};
    LanceTasksCancelToken *token = lance_tasks_cancel_token_new();
    lance_tasks_cancel_token_cancel(token);
    LanceTasksCallOptions options = {.struct_size = sizeof options, .cancel = token};
    CHECK_OK(lance_tasks_execute_all(executor, &tasks, &options, &results, &error));
    lance_tasks_cancel_token_free(token);
    Rows rows = table_to_rows(&results);
    CHECK(rows.count == 10);
    for (size_t i = 0; i < rows.count; i++) {
        LanceTasksBytes json = {0};
        CHECK_OK(lance_tasks_convert(rows.items[i].data, rows.items[i].len,
                                     LANCE_TASKS_ENCODING_JSON, &json, &error));
        CHECK(bytes_contain(json, "\"failed\"") && bytes_contain(json, "\"CANCELLED\""));
        lance_tasks_bytes_free(&json);
    }
    free_rows(&rows);
    lance_tasks_bytes_free(&job);
    free(own);
}

/* ---- progress ---- */

static void test_progress_of_execute(void) {
    Watch watch = {0};
    LanceTasksCallOptions options = watched(&watch);
    Producer from = producer(20, 100);
    struct ArrowArrayStream input = producer_stream(&from), result = {0};
    CHECK_OK(lance_tasks_execute(executor, open_task.data, open_task.len, &input, &options, &result,
                                 &error));
    release_stream(&result);
    CHECK(ended_once(&watch));
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_STARTED]) == 1);
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FINISHED]) == 1);
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FAILED]) == 0);
}

static void test_progress_of_failed_execute(void) {
    Watch watch = {0};
    LanceTasksCallOptions options = watched(&watch);
    Producer from = producer(20, 100);
    from.fail_at = 2;
    struct ArrowArrayStream input = producer_stream(&from), result = {0};
    LanceTasksError *error = NULL;
    CHECK(lance_tasks_execute(executor, open_task.data, open_task.len, &input, &options, &result,
                              &error) != LANCE_TASKS_OK);
    REQUIRE(error != NULL);
    CHECK(lance_tasks_error_task_id(error) != NULL);
    drop_error(&error);
    CHECK(ended_once(&watch));
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_STARTED]) == 1);
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FAILED]) == 1);
    CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FINISHED]) == 0);
}

/* The finalizer runs exactly once, whatever the call does. */
static void test_finalizer_on_every_path(void) {
    struct ArrowArrayStream out = {0};
    LanceTasksBytes bytes = {0};
    const uint8_t *job = open_job.data;
    size_t len = open_job.len;
    for (int i = 0; i < 17; i++) {
        Watch watch = {0};
        LanceTasksCallOptions options = watched(&watch);
        LanceTasksStatus status = LANCE_TASKS_OK;
        switch (i) {
        case 0: status = lance_tasks_prepare(NULL, job, len, NULL, &options, &bytes, NULL); break;
        case 1:
            status = lance_tasks_prepare(executor, job, len, NULL, &options, &bytes, NULL);
            break;
        case 2: status = lance_tasks_plan(executor, job, 5, NULL, &options, &out, NULL); break;
        case 3: status = lance_tasks_plan(executor, job, len, NULL, &options, NULL, NULL); break;
        case 4: status = lance_tasks_plan(NULL, job, len, NULL, &options, &out, NULL); break;
        case 5: status = lance_tasks_execute(executor, job, 5, NULL, &options, &out, NULL); break;
        case 6: status = lance_tasks_execute(NULL, job, len, NULL, &options, &out, NULL); break;
        case 7: status = lance_tasks_execute_all(executor, NULL, &options, &out, NULL); break;
        case 8: status = lance_tasks_execute_all(NULL, NULL, &options, &out, NULL); break;
        case 9: status = lance_tasks_commit(executor, job, 5, NULL, &options, &bytes, NULL); break;
        case 10: status = lance_tasks_abort(executor, job, 5, NULL, &options, &bytes, NULL); break;
        case 14: status = lance_tasks_read(executor, job, 5, &options, &out, NULL); break;
        case 15: status = lance_tasks_read(NULL, job, len, &options, &out, NULL); break;
        case 16: status = lance_tasks_read_all(executor, NULL, &options, &out, NULL); break;
        case 11:
            options.flags = 1u << 20;
            status = lance_tasks_plan(executor, job, len, NULL, &options, &out, NULL);
            break;
        case 12:
            options.storage_options = (const uint8_t *)"{";
            options.storage_options_len = 1;
            status = lance_tasks_commit(executor, job, len, NULL, &options, &bytes, NULL);
            break;
        default:
            options.storage_options_len = 9;
            status = lance_tasks_abort(executor, job, len, NULL, &options, &bytes, NULL);
        }
        CHECK(status != LANCE_TASKS_OK);
        if (!ended_once(&watch)) fprintf(stderr, "path %d\n", i);
        CHECK(ended_once(&watch));
        CHECK(atomic_load(&watch.total) == 0);
    }
    Watch watch = {0};
    LanceTasksCallOptions options = watched(&watch);
    CHECK_OK(plan_with(&options, &error));
    CHECK(ended_once(&watch));
    /* A finalizer without a callback, and a callback without a finalizer. */
    Watch alone = {0};
    options = watched(&alone);
    options.progress = NULL;
    CHECK_OK(plan_with(&options, &error));
    CHECK(ended_once(&alone));
    options = watched(&alone);
    options.progress_finalizer = NULL;
    CHECK_OK(plan_with(&options, &error));
    CHECK(atomic_load(&alone.finalized) == 1);
}

static void test_finalizer_of_streams(void) {
    char *own = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, own, 100, 10);
    for (int read = 0; read < 3; read++) {
        Watch watch = {0};
        LanceTasksCallOptions options = watched(&watch);
        struct ArrowArrayStream tasks = plan(executor, job), results = {0};
        CHECK_OK(lance_tasks_execute_all(executor, &tasks, &options, &results, &error));
        REQUIRE(results.release != NULL);
        /* Not read, read in part, read to the end. */
        int rows = 0;
        for (LanceTasksBytes row = {0}; rows < read * 6; rows++) {
            CHECK_OK(lance_tasks_next_row(&results, &row, &error));
            if (row.data == NULL) break;
            lance_tasks_bytes_free(&row);
        }
        CHECK(rows == (read == 2 ? 10 : read * 6));
        results.release(&results);
        CHECK(results.release == NULL);
        CHECK(ended_once(&watch));
        int ended = atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FINISHED]) +
                    atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FAILED]);
        CHECK(ended == atomic_load(&watch.events[LANCE_TASKS_PROGRESS_STARTED]));
        if (read == 2) CHECK(atomic_load(&watch.events[LANCE_TASKS_PROGRESS_FINISHED]) == 10);
    }
    lance_tasks_bytes_free(&job);
    free(own);
}

/* ---- re-entry ---- */

static atomic_int reentered;

static void call_back(void *context, const LanceTasksProgress *event) {
    (void)context;
    (void)event;
    LanceTasksError *error = NULL;
    if (plan_with(NULL, &error) == LANCE_TASKS_INVALID_STATE) atomic_fetch_add(&reentered, 1);
    drop_error(&error);
}

/* Forbidden, and refused rather than a deadlock. */
static void test_reentry_is_refused(void) {
    LanceTasksCallOptions options = {.struct_size = sizeof options, .progress = call_back};
    Producer from = producer(1, 10);
    struct ArrowArrayStream input = producer_stream(&from), result = {0};
    CHECK_OK(lance_tasks_execute(executor, open_task.data, open_task.len, &input, &options, &result,
                                 &error));
    release_stream(&result);
    CHECK(atomic_load(&reentered) > 0);
}

int main(void) {
    executor = new_executor(2);
    dir = fresh_dir();
    char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/data.lance\"}", dir);
    Producer schema_of = producer(0, 0);
    struct ArrowSchema schema = producer_schema(&schema_of);
    open_job = prepare(executor, spec, &schema);
    LanceTasksError *error = NULL;
    if (lance_tasks_job_task(open_job.data, open_job.len, (const uint8_t *)"a", 1, &open_task,
                             &error) != LANCE_TASKS_OK) {
        fprintf(stderr, "job_task: %s\n", lance_tasks_error_message(error));
        return 2;
    }
    run_test("contract_options", "struct_size of executor options", test_executor_struct_size);
    run_test("contract_options", "struct_size of call options", test_call_struct_size);
    run_test("contract_options", "unknown flags", test_unknown_flags);
    run_test("contract_options", "storage options", test_storage_options);
    run_test("contract_options", "errors quote no secret", test_errors_quote_no_secret);
    run_test("contract_options", "a deadline", test_deadline);
    run_test("contract_options", "cancelled before", test_cancelled_before);
    run_test("contract_options", "cancelled from another thread",
             test_cancelled_from_another_thread);
    run_test("contract_options", "cancelled execute_all", test_cancelled_execute_all);
    run_test("contract_options", "progress of execute", test_progress_of_execute);
    run_test("contract_options", "progress of a failed execute", test_progress_of_failed_execute);
    run_test("contract_options", "the finalizer on every path", test_finalizer_on_every_path);
    run_test("contract_options", "the finalizer of streams", test_finalizer_of_streams);
    run_test("contract_options", "re-entry is refused", test_reentry_is_refused);
    lance_tasks_bytes_free(&open_task);
    lance_tasks_bytes_free(&open_job);
    lance_tasks_executor_free(executor);
    free(spec);
    free(dir);
    return finish();
}
