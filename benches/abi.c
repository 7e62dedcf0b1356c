/* SPDX-License-Identifier: Apache-2.0
 *
 * What one call through the C ABI costs: medians and 99th percentiles in nanoseconds, as JSON.
 *
 *   abi LOOPS EMPTY_TASK COMPACT_TASK
 *
 * EMPTY_TASK is a write task that is handed no rows; COMPACT_TASK is executed under a token that is
 * cancelled already. Neither does any work: what is measured is the call.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lance_tasks/lance_tasks.h"

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what, LanceTasksError *error) {
    fprintf(stderr, "%s: %s\n", what, error ? lance_tasks_error_message(error) : "unexpected");
    exit(1);
}

typedef struct {
    uint8_t *data;
    size_t len;
} Bytes;

static Bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path, NULL);
    Bytes bytes = {malloc(1 << 20), 0};
    bytes.len = fread(bytes.data, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void report(const char *name, int64_t *took, size_t n, const char *end) {
    qsort(took, n, sizeof *took, ascending);
    printf("\"%s\": [%lld, %lld]%s", name, (long long)took[n / 2], (long long)took[n * 99 / 100],
           end);
}

/* A stream of one int64 column "key" without rows. */

static int no_schema(struct ArrowSchema *out, const char *format, const char *name) {
    memset(out, 0, sizeof *out);
    out->format = format;
    out->name = name;
    out->flags = 2;
    return 0;
}

static void released(struct ArrowSchema *schema) {
    for (int64_t i = 0; i < schema->n_children; i++) {
        if (schema->children[i]->release) schema->children[i]->release(schema->children[i]);
        free(schema->children[i]);
    }
    free(schema->children);
    schema->release = NULL;
}

static int get_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    (void)stream;
    no_schema(out, "+s", "");
    out->flags = 0;
    out->release = released;
    out->n_children = 1;
    out->children = malloc(sizeof *out->children);
    out->children[0] = malloc(sizeof **out->children);
    no_schema(out->children[0], "l", "key");
    out->children[0]->release = released;
    return 0;
}

static int get_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    (void)stream;
    memset(out, 0, sizeof *out);
    return 0;
}

static const char *get_last_error(struct ArrowArrayStream *stream) {
    (void)stream;
    return NULL;
}

static void release_stream(struct ArrowArrayStream *stream) { stream->release = NULL; }

static struct ArrowArrayStream empty_stream(void) {
    struct ArrowArrayStream stream = {get_schema, get_next, get_last_error, release_stream, NULL};
    return stream;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    size_t n = (size_t)atol(argv[1]);
    Bytes empty = read_file(argv[2]), compact = read_file(argv[3]);
    int64_t *took = malloc(n * sizeof *took);
    LanceTasksError *error = NULL;
    LanceTasksExecutor *executor = NULL;
    LanceTasksExecutorOptions options = {.struct_size = sizeof options, .num_threads = 2};
    if (lance_tasks_executor_new(&options, &executor, &error)) fail("executor", error);
    printf("{");

    /* A function that does nothing. */
    uint32_t version = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t start = now();
        version += lance_tasks_abi_version();
        took[i] = now() - start;
    }
    if (version == 0) fail("version", NULL);
    report("nothing", took, n, ", ");

    /* The guard around every call, and an error made and freed. */
    for (size_t i = 0; i < n; i++) {
        struct ArrowArrayStream result;
        int64_t start = now();
        if (lance_tasks_execute(executor, NULL, 0, NULL, NULL, &result, &error) !=
            LANCE_TASKS_DECODE)
            fail("no task", error);
        lance_tasks_error_free(error);
        took[i] = now() - start;
        error = NULL;
    }
    report("refused", took, n, ", ");

    /* A task decoded and encoded: more than `execute` does with it before the Rust call. */
    for (size_t i = 0; i < n; i++) {
        LanceTasksBytes out = {0};
        int64_t start = now();
        if (lance_tasks_convert(compact.data, compact.len, LANCE_TASKS_ENCODING_BINARY, &out,
                                &error))
            fail("convert", error);
        lance_tasks_bytes_free(&out);
        took[i] = now() - start;
    }
    report("task", took, n, ", ");

    /* To a worker and back, the work itself cancelled before it begins. */
    LanceTasksCancelToken *token = lance_tasks_cancel_token_new();
    lance_tasks_cancel_token_cancel(token);
    LanceTasksCallOptions call = {.struct_size = sizeof call, .cancel = token};
    for (size_t i = 0; i < n; i++) {
        struct ArrowArrayStream result;
        int64_t start = now();
        if (lance_tasks_execute(executor, compact.data, compact.len, NULL, &call, &result,
                                &error) != LANCE_TASKS_CANCELLED)
            fail("cancelled", error);
        lance_tasks_error_free(error);
        took[i] = now() - start;
        error = NULL;
    }
    lance_tasks_cancel_token_free(token);
    report("cancelled", took, n, ", ");

    /* A task that succeeds and writes nothing; what of it is not the attempt, by its own clock. */
    int64_t *around = malloc(n * sizeof *around), *row = malloc(n * sizeof *row);
    for (size_t i = 0; i < n; i++) {
        struct ArrowArrayStream input = empty_stream(), result;
        struct ArrowArray batch;
        int64_t start = now();
        if (lance_tasks_execute(executor, empty.data, empty.len, &input, NULL, &result, &error))
            fail("empty", error);
        took[i] = now() - start;
        start = now();
        struct ArrowSchema schema;
        if (result.get_schema(&result, &schema) || result.get_next(&result, &batch)) {
            fail("result", NULL);
        }
        int64_t attempt = 0;
        for (int64_t c = 0; c < schema.n_children; c++) {
            if (strcmp(schema.children[c]->name, "elapsed") == 0)
                attempt = ((const int64_t *)batch.children[c]->buffers[1])[0] * 1000;
        }
        schema.release(&schema);
        batch.release(&batch);
        result.release(&result);
        row[i] = now() - start;
        around[i] = took[i] - attempt;
    }
    report("empty", took, n, ", ");
    report("around", around, n, ", ");
    report("row", row, n, ", ");

    /* One result: IPC decoded, the row made, and exported: more than `execute` does after. */
    struct ArrowArrayStream input = empty_stream(), result;
    if (lance_tasks_execute(executor, empty.data, empty.len, &input, NULL, &result, &error))
        fail("empty", error);
    LanceTasksBytes framed = {0};
    if (lance_tasks_table_to_rows(&result, &framed, &error)) fail("rows", error);
    for (size_t i = 0; i < n; i++) {
        struct ArrowArrayStream table;
        int64_t start = now();
        if (lance_tasks_rows_to_table(framed.data, framed.len, &table, &error))
            fail("table", error);
        table.release(&table);
        took[i] = now() - start;
    }
    report("result", took, n, ", ");
    lance_tasks_bytes_free(&framed);

    /* The same of no results: what a table costs whatever is in it. */
    for (size_t i = 0; i < n; i++) {
        struct ArrowArrayStream table;
        int64_t start = now();
        if (lance_tasks_rows_to_table(NULL, 0, &table, &error)) fail("table", error);
        table.release(&table);
        took[i] = now() - start;
    }
    report("table", took, n, "}\n");
    lance_tasks_executor_free(executor);
    free(took);
    free(around);
    free(row);
    free(empty.data);
    free(compact.data);
    return 0;
}
