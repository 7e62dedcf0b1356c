/* Tasks that yield data: blobs of a dataset that is written here. */
#include <stdlib.h>

#include "support.h"

static LanceTasksExecutor *executor;
static char *dir;

/* The rows: a null, an empty one, and others. */
enum { ROWS = 6 };
static const char *const BLOBS[ROWS] = {"zero", NULL, "", "the third", "4", "fifth"};

/* ---- a stream of one column of blobs, of the kind that storage 2.1 has ---- */

static void release_schema(struct ArrowSchema *schema) {
    for (int64_t i = 0; i < schema->n_children; i++) {
        free((void *)(uintptr_t)schema->children[i]->metadata);
        free(schema->children[i]);
    }
    free(schema->children);
    schema->release = NULL;
}

static void release_child(struct ArrowSchema *schema) { schema->release = NULL; }

static struct ArrowSchema blob_schema(void) {
    static const char key[] = "lance-encoding:blob", value[] = "true";
    struct ArrowSchema *film = calloc(1, sizeof *film);
    char *metadata = calloc(1, 12 + sizeof key + sizeof value), *at = metadata;
    const int32_t sizes[] = {1, sizeof key - 1, sizeof value - 1};
    memcpy(at, sizes, 2 * sizeof *sizes);
    memcpy(at + 8, key, sizeof key - 1);
    memcpy(at + 8 + sizes[1], &sizes[2], sizeof *sizes);
    memcpy(at + 12 + sizes[1], value, sizeof value - 1);
    *film = (struct ArrowSchema){.format = "Z",
                                 .name = "film",
                                 .metadata = metadata,
                                 .flags = ARROW_FLAG_NULLABLE,
                                 .release = release_child};
    struct ArrowSchema schema = {
        .format = "+s", .name = "", .n_children = 1, .release = release_schema};
    schema.children = calloc(1, sizeof *schema.children);
    schema.children[0] = film;
    return schema;
}

static void release_nothing(struct ArrowArray *array) { array->release = NULL; }

static void release_batch(struct ArrowArray *array) {
    struct ArrowArray *child = array->children[0];
    if (child->release != NULL) child->release(child);
    array->release = NULL;
}

static int blob_stream_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    (void)stream;
    *out = blob_schema();
    return 0;
}

static int blob_stream_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    static uint8_t valid;
    static int64_t offsets[ROWS + 1];
    static char data[256];
    static const void *buffers[] = {&valid, offsets, data}, *none[] = {NULL};
    static struct ArrowArray child, *children[] = {&child};
    memset(out, 0, sizeof *out);
    if (stream->private_data == NULL) return 0;
    stream->private_data = NULL;
    valid = 0;
    for (int i = 0; i < ROWS; i++) {
        size_t size = BLOBS[i] == NULL ? 0 : strlen(BLOBS[i]);
        if (BLOBS[i] != NULL) {
            valid |= (uint8_t)(1 << i);
            memcpy(data + offsets[i], BLOBS[i], size);
        }
        offsets[i + 1] = offsets[i] + (int64_t)size;
    }
    child = (struct ArrowArray){.length = ROWS,
                                .null_count = 1,
                                .n_buffers = 3,
                                .buffers = buffers,
                                .release = release_nothing};
    *out = (struct ArrowArray){.length = ROWS,
                               .n_buffers = 1,
                               .buffers = none,
                               .n_children = 1,
                               .children = children,
                               .release = release_batch};
    return 0;
}

static const char *no_error(struct ArrowArrayStream *stream) {
    (void)stream;
    return NULL;
}

static void release_blob_stream(struct ArrowArrayStream *stream) { stream->release = NULL; }

static LanceTasksBytes task_of(LanceTasksBytes job, const char *partition) {
    LanceTasksBytes task = {0};
    CHECK_OK(lance_tasks_job_task(job.data, job.len, (const uint8_t *)partition, strlen(partition),
                                  &task, &error));
    return task;
}

static void write_blobs(void) {
    char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/blobs.lance\", "
                         "\"data_storage_version\": \"2.1\"}",
                         dir);
    struct ArrowSchema schema = blob_schema();
    LanceTasksBytes job = prepare(executor, spec, &schema), outcome = {0};
    LanceTasksBytes task = task_of(job, "all");
    struct ArrowArrayStream result = {0};
    struct ArrowArrayStream input = {.get_schema = blob_stream_schema,
                                     .get_next = blob_stream_next,
                                     .get_last_error = no_error,
                                     .release = release_blob_stream,
                                     .private_data = dir};
    CHECK_OK(lance_tasks_execute(executor, task.data, task.len, &input, NULL, &result, &error));
    CHECK_OK(lance_tasks_commit(executor, job.data, job.len, &result, NULL, &outcome, &error));
    lance_tasks_bytes_free(&outcome);
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);
    free(spec);
}

/* ---- reading ---- */

static LanceTasksBytes take(const char *options) {
    char *spec = path_of("{\"operation\": \"take_blobs\", \"uri\": \"%s/blobs.lance\", "
                         "\"column\": \"film\", %s}",
                         dir, options);
    LanceTasksBytes job = prepare(executor, spec, NULL);
    free(spec);
    return job;
}

/* The one task of a job. */
static LanceTasksBytes only_task(LanceTasksBytes job) {
    struct ArrowArrayStream table = plan(executor, job);
    Rows rows = table_to_rows(&table);
    LanceTasksBytes task = {0};
    CHECK(rows.count == 1);
    if (rows.count == 1)
        CHECK_OK(lance_tasks_convert(rows.items[0].data, rows.items[0].len,
                                     LANCE_TASKS_ENCODING_BINARY, &task, &error));
    free_rows(&rows);
    return task;
}

/* Every row of a stream is the next of `keys` with its blob, from `offset` on; releases it. */
static void check_data(struct ArrowArrayStream *data, const int *keys, int count, int offset) {
    struct ArrowSchema schema = {0};
    REQUIRE(data->release != NULL);
    CHECK(data->get_schema(data, &schema) == 0);
    REQUIRE(schema.release != NULL && schema.n_children == 2);
    CHECK(strcmp(schema.children[0]->name, "_index") == 0);
    CHECK(strcmp(schema.children[0]->format, "L") == 0);
    CHECK(strcmp(schema.children[1]->name, "film") == 0);
    CHECK(strcmp(schema.children[1]->format, "Z") == 0);
    schema.release(&schema);
    int row = 0;
    for (;;) {
        struct ArrowArray batch = {0};
        if (data->get_next(data, &batch) != 0) {
            check_failed(__FILE__, __LINE__, "get_next", data->get_last_error(data));
            break;
        }
        if (batch.release == NULL) break;
        const struct ArrowArray *key = batch.children[0], *film = batch.children[1];
        const uint64_t *values = key->buffers[1];
        const uint8_t *valid = film->buffers[0];
        const int64_t *offsets = film->buffers[1];
        const char *bytes = film->buffers[2];
        for (int64_t i = 0; i < batch.length && row < count; i++, row++) {
            CHECK(values[i + key->offset] == (uint64_t)keys[row]);
            const char *expected = BLOBS[keys[row]];
            int64_t at = i + film->offset;
            bool null = valid != NULL && (valid[at / 8] >> (at % 8) & 1) == 0;
            CHECK(null == (expected == NULL));
            if (null || expected == NULL) continue;
            size_t size = strlen(expected + offset);
            CHECK((size_t)(offsets[at + 1] - offsets[at]) == size);
            CHECK(memcmp(bytes + offsets[at], expected + offset, size) == 0);
        }
        batch.release(&batch);
    }
    CHECK(row == count);
    release_stream(data);
}

static void test_one_task(void) {
    LanceTasksBytes job = take("\"indices\": [3, 0, 1, 3, 2, 5]"), task = only_task(job);
    struct ArrowArrayStream data = {0};
    CHECK_OK(lance_tasks_read(executor, task.data, task.len, NULL, &data, &error));
    const int keys[] = {3, 0, 1, 3, 2, 5};
    check_data(&data, keys, 6, 0);
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);

    job = take("\"indices\": [3, 0], \"ranges\": [{\"offset\": 2, \"size\": 7}, "
               "{\"offset\": 2, \"size\": 2}]");
    task = only_task(job);
    CHECK_OK(lance_tasks_read(executor, task.data, task.len, NULL, &data, &error));
    const int parts[] = {3, 0};
    check_data(&data, parts, 2, 2);
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);
}

static void test_many_tasks(void) {
    enum { COUNT = 50 };
    char options[COUNT * 3 + 64] = "\"max_rows_per_task\": 1, \"indices\": [";
    int keys[COUNT];
    for (int i = 0; i < COUNT; i++) {
        keys[i] = i * 7 % ROWS;
        size_t at = strlen(options);
        snprintf(options + at, sizeof options - at, i == 0 ? "%d" : ",%d", keys[i]);
    }
    strcat(options, "]");
    LanceTasksBytes job = take(options);
    struct ArrowArrayStream tasks = plan(executor, job), data = {0};
    CHECK_OK(lance_tasks_read_all(executor, &tasks, NULL, &data, &error));
    CHECK(tasks.release == NULL);
    check_data(&data, keys, COUNT, 0);

    /* Without tasks there is no schema. */
    CHECK_OK(lance_tasks_rows_to_table(NULL, 0, &tasks, &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "there are none",
                lance_tasks_read_all(executor, &tasks, NULL, &data, &error));
    CHECK(tasks.release == NULL && data.release == NULL);
    lance_tasks_bytes_free(&job);
}

/* A task of one kind where the other is wanted; and what is wrong with a task is said at once. */
static void test_refused(void) {
    LanceTasksBytes job = take("\"indices\": [0]"), task = only_task(job), outcome = {UNTOUCHED, 7};
    struct ArrowArrayStream data = {0};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "read it",
                lance_tasks_execute(executor, task.data, task.len, NULL, NULL, &data, &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "nothing to commit",
                lance_tasks_commit(executor, job.data, job.len, NULL, NULL, &outcome, &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "executor is NULL",
                lance_tasks_read(NULL, task.data, task.len, NULL, &data, &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "out_data is NULL",
                lance_tasks_read(executor, task.data, task.len, NULL, NULL, &error));
    CHECK_FAILS(LANCE_TASKS_DECODE, "cut short",
                lance_tasks_read(executor, task.data, 9, NULL, &data, &error));
    CHECK(outcome.data == UNTOUCHED && data.release == NULL);
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);

    job = take("\"indices\": [0, 3], \"ranges\": [null, {\"offset\": 5, \"size\": 5}]");
    task = only_task(job);
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "index 3",
                lance_tasks_read(executor, task.data, task.len, NULL, &data, &error));
    CHECK(data.release == NULL);
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);

    char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/other.lance\"}", dir);
    struct ArrowSchema schema = blob_schema();
    job = prepare(executor, spec, &schema);
    task = task_of(job, "p");
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "execute it",
                lance_tasks_read(executor, task.data, task.len, NULL, &data, &error));
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);
    free(spec);
}

typedef struct Watch {
    atomic_int events, finalized, after;
} Watch;

static void on_progress(void *context, const LanceTasksProgress *event) {
    Watch *watch = context;
    (void)event;
    atomic_fetch_add(&watch->events, 1);
    if (atomic_load(&watch->finalized) > 0) atomic_fetch_add(&watch->after, 1);
}

static void on_end(void *context) { atomic_fetch_add(&((Watch *)context)->finalized, 1); }

static LanceTasksCallOptions watched(Watch *watch) {
    return (LanceTasksCallOptions){.struct_size = sizeof(LanceTasksCallOptions),
                                   .progress = on_progress,
                                   .progress_context = watch,
                                   .progress_finalizer = on_end};
}

/* Released before it is read, and in its midst: the progress ends with it. */
static void test_released_early(void) {
    LanceTasksBytes job = take("\"indices\": [0, 3, 4, 5], \"max_rows_per_task\": 1");
    for (int pulls = 0; pulls < 3; pulls++) {
        Watch watch = {0};
        LanceTasksCallOptions options = watched(&watch);
        struct ArrowArrayStream tasks = plan(executor, job), data = {0};
        CHECK_OK(lance_tasks_read_all(executor, &tasks, &options, &data, &error));
        CHECK(atomic_load(&watch.finalized) == 0);
        for (int i = 0; i < pulls; i++) {
            struct ArrowArray batch = {0};
            CHECK(data.get_next(&data, &batch) == 0);
            REQUIRE(batch.release != NULL);
            batch.release(&batch);
        }
        release_stream(&data);
        CHECK(data.release == NULL);
        CHECK(atomic_load(&watch.finalized) == 1 && atomic_load(&watch.events) > 0);
        sleep_ms(50);
        CHECK(atomic_load(&watch.after) == 0);
    }
    /* A call that fails ends it as well. */
    Watch watch = {0};
    LanceTasksCallOptions options = watched(&watch);
    struct ArrowArrayStream data = {0};
    CHECK_FAILS(LANCE_TASKS_DECODE, "",
                lance_tasks_read(executor, job.data, 5, &options, &data, &error));
    CHECK(atomic_load(&watch.finalized) == 1);
    lance_tasks_bytes_free(&job);
}

static void test_cancelled(void) {
    LanceTasksBytes job = take("\"indices\": [0, 3, 4, 5], \"max_rows_per_task\": 1");
    LanceTasksCancelToken *token = lance_tasks_cancel_token_new();
    LanceTasksCallOptions options = {.struct_size = sizeof options, .cancel = token};
    struct ArrowArrayStream tasks = plan(executor, job), data = {0};
    CHECK_OK(lance_tasks_read_all(executor, &tasks, &options, &data, &error));
    lance_tasks_cancel_token_cancel(token);
    lance_tasks_cancel_token_free(token);
    struct ArrowArray batch = {0};
    CHECK(data.get_next(&data, &batch) != 0);
    const char *why = data.get_last_error(&data);
    CHECK(why != NULL && strstr(why, "CANCELLED") != NULL && strstr(why, "task") != NULL);
    /* Then it is at its end. */
    CHECK(data.get_next(&data, &batch) == 0 && batch.release == NULL);
    release_stream(&data);
    lance_tasks_bytes_free(&job);
}

/* A stream keeps what it needs of a freed executor. */
static void test_outlives_its_executor(void) {
    LanceTasksBytes job = take("\"indices\": [5, 4]"), task = only_task(job);
    LanceTasksExecutor *own = new_executor(2);
    struct ArrowArrayStream data = {0};
    CHECK_OK(lance_tasks_read(own, task.data, task.len, NULL, &data, &error));
    lance_tasks_executor_free(own);
    const int keys[] = {5, 4};
    check_data(&data, keys, 2, 0);
    lance_tasks_bytes_free(&task);
    lance_tasks_bytes_free(&job);
}

int main(void) {
    executor = new_executor(2);
    dir = fresh_dir();
    run_test("read", "write the blobs", write_blobs);
    run_test("read", "one task", test_one_task);
    run_test("read", "many tasks, in order", test_many_tasks);
    run_test("read", "what is refused", test_refused);
    run_test("read", "released early", test_released_early);
    run_test("read", "cancelled", test_cancelled);
    run_test("read", "outlives its executor", test_outlives_its_executor);
    free(dir);
    lance_tasks_executor_free(executor);
    return finish();
}
