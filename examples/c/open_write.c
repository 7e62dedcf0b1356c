/* Write rows that this program makes, as Arrow streams: an open job, one task per partition.
 *
 *   open_write DATASET
 *
 * The streams are made by hand here, to show what the Arrow C Data Interface asks for; nanoarrow or
 * Arrow C++ make them more comfortably.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lance_tasks/lance_tasks.h>

#define ROWS 1000

static void check(LanceTasksStatus status, LanceTasksError **error, const char *what) {
    if (status == LANCE_TASKS_OK) return;
    fprintf(stderr, "%s: %s (%s): %s\n", what, lance_tasks_error_name(*error),
            lance_tasks_error_class(*error), lance_tasks_error_message(*error));
    lance_tasks_error_free(*error);
    exit(1);
}

static void *allocate(size_t len) {
    void *memory = calloc(1, len);
    if (memory == NULL) exit(1);
    return memory;
}

/* ---- a stream of one batch with one column, `id` (int64) ---- */

static void release_field(struct ArrowSchema *field) { field->release = NULL; }

static void release_schema(struct ArrowSchema *schema) {
    if (schema->children[0]->release != NULL) schema->children[0]->release(schema->children[0]);
    free(schema->children[0]);
    free(schema->children);
    schema->release = NULL;
}

static struct ArrowSchema make_schema(void) {
    struct ArrowSchema schema = {.format = "+s", .name = "", .n_children = 1};
    schema.children = allocate(sizeof *schema.children);
    schema.children[0] = allocate(sizeof **schema.children);
    *schema.children[0] = (struct ArrowSchema){.format = "l", .name = "id", .release = release_field};
    schema.release = release_schema;
    return schema;
}

static void release_column(struct ArrowArray *column) {
    free((void *)(uintptr_t)column->buffers[1]);
    free(column->buffers);
    column->release = NULL;
}

static void release_batch(struct ArrowArray *batch) {
    if (batch->children[0]->release != NULL) batch->children[0]->release(batch->children[0]);
    free(batch->children[0]);
    free(batch->children);
    free(batch->buffers);
    batch->release = NULL;
}

/* What a stream keeps: the first id, and whether its batch was taken. */
typedef struct State {
    int64_t first;
    int done;
} State;

static int get_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    (void)stream;
    *out = make_schema();
    return 0;
}

static int get_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    State *state = stream->private_data;
    memset(out, 0, sizeof *out);
    if (state->done) return 0; /* released: the end */
    state->done = 1;

    int64_t *ids = allocate(ROWS * sizeof *ids);
    for (int64_t i = 0; i < ROWS; i++) ids[i] = state->first + i;
    struct ArrowArray *column = allocate(sizeof *column);
    column->length = ROWS;
    column->n_buffers = 2; /* validity (none: no nulls), values */
    column->buffers = allocate(2 * sizeof *column->buffers);
    column->buffers[1] = ids;
    column->release = release_column;

    out->length = ROWS;
    out->n_buffers = 1;
    out->buffers = allocate(sizeof *out->buffers);
    out->n_children = 1;
    out->children = allocate(sizeof *out->children);
    out->children[0] = column;
    out->release = release_batch;
    return 0;
}

static const char *get_last_error(struct ArrowArrayStream *stream) {
    (void)stream;
    return NULL;
}

static void release_stream(struct ArrowArrayStream *stream) {
    free(stream->private_data);
    stream->release = NULL;
}

static struct ArrowArrayStream make_stream(int64_t first) {
    State *state = allocate(sizeof *state);
    state->first = first;
    return (struct ArrowArrayStream){.get_schema = get_schema,
                                     .get_next = get_next,
                                     .get_last_error = get_last_error,
                                     .release = release_stream,
                                     .private_data = state};
}

/* ---- the job ---- */

/* Append the one row of `result` to `rows`, in the framing of lance_tasks_rows_to_table. */
static void append(LanceTasksBytes *rows, struct ArrowArrayStream *result) {
    LanceTasksError *error = NULL;
    LanceTasksBytes row = {0};
    check(lance_tasks_table_to_rows(result, &row, &error), &error, "result");
    uint8_t *joined = realloc((void *)(uintptr_t)rows->data, rows->len + row.len);
    if (joined == NULL) exit(1);
    memcpy(joined + rows->len, row.data, row.len);
    *rows = (LanceTasksBytes){joined, rows->len + row.len};
    lance_tasks_bytes_free(&row);
}

int main(int argc, char **argv) {
    if (argc != 2 || strpbrk(argv[1], "\"\\") != NULL) {
        fprintf(stderr, "usage: %s DATASET\n", argv[0]);
        return 2;
    }
    char spec[8192];
    int len = snprintf(spec, sizeof spec,
                       "{\"operation\": \"write\", \"uri\": \"%s\", "
                       "\"partitions\": [\"first\", \"second\"]}",
                       argv[1]);
    if (len < 0 || (size_t)len >= sizeof spec) return 2;

    LanceTasksError *error = NULL;
    LanceTasksExecutor *executor = NULL;
    check(lance_tasks_executor_new(NULL, &executor, &error), &error, "executor");

    struct ArrowSchema schema = make_schema();
    LanceTasksBytes job = {0};
    check(lance_tasks_prepare(executor, (const uint8_t *)spec, (size_t)len, &schema, NULL, &job,
                              &error),
          &error, "prepare");

    const char *const partitions[] = {"first", "second"};
    LanceTasksBytes rows = {0};
    for (int i = 0; i < 2; i++) {
        LanceTasksBytes task = {0};
        check(lance_tasks_job_task(job.data, job.len, (const uint8_t *)partitions[i],
                                   strlen(partitions[i]), &task, &error),
              &error, "task");
        /* Taken over: the library releases it, also where the call fails. */
        struct ArrowArrayStream input = make_stream(i * ROWS), result = {0};
        check(lance_tasks_execute(executor, task.data, task.len, &input, NULL, &result, &error),
              &error, "execute");
        append(&rows, &result);
        lance_tasks_bytes_free(&task);
    }

    struct ArrowArrayStream results = {0};
    LanceTasksBytes outcome = {0};
    check(lance_tasks_rows_to_table(rows.data, rows.len, &results, &error), &error, "results");
    check(lance_tasks_commit(executor, job.data, job.len, &results, NULL, &outcome, &error), &error,
          "commit");
    printf("%.*s\n", (int)outcome.len, (const char *)outcome.data);

    free((void *)(uintptr_t)rows.data);
    lance_tasks_bytes_free(&outcome);
    lance_tasks_bytes_free(&job);
    lance_tasks_executor_free(executor);
    return 0;
}
