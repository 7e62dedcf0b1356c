#include "support.h"

#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

static bool test_failed;
static int failures;

void run_test(const char *program, const char *name, void (*test)(void)) {
    test_failed = false;
    test();
    printf("%-6s %s: %s\n", test_failed ? "FAILED" : "ok", program, name);
    fflush(stdout);
    failures += test_failed;
}

int finish(void) { return failures == 0 ? 0 : 1; }

void check_failed(const char *file, int line, const char *what, const char *detail) {
    test_failed = true;
    fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what, detail ? ": " : "", detail ? detail : "");
}

void drop_error(LanceTasksError **error) {
    lance_tasks_error_free(*error);
    *error = NULL;
}

bool check_ok(LanceTasksStatus status, LanceTasksError **error, const char *file, int line,
              const char *what) {
    bool ok = status == LANCE_TASKS_OK && *error == NULL;
    if (!ok) {
        const char *message = lance_tasks_error_message(*error);
        check_failed(file, line, what, message ? message : "no message");
    }
    drop_error(error);
    return ok;
}

bool check_fails(LanceTasksStatus status, LanceTasksStatus code, const char *text,
                 LanceTasksError **error, const char *file, int line, const char *what) {
    const char *message = lance_tasks_error_message(*error);
    bool ok = status == code && *error != NULL && lance_tasks_error_code(*error) == code &&
              lance_tasks_error_name(*error) != NULL && lance_tasks_error_class(*error) != NULL &&
              message != NULL && strstr(message, text) != NULL;
    if (!ok) {
        char detail[1024];
        snprintf(detail, sizeof detail, "expected code %d and \"%s\", got %d: %s", (int)code, text,
                 (int)status, message ? message : "no message");
        check_failed(file, line, what, detail);
    }
    drop_error(error);
    return ok;
}

static _Noreturn void give_up(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(2);
}

static void must(LanceTasksStatus status, LanceTasksError **error, const char *what) {
    if (status != LANCE_TASKS_OK) give_up(what, lance_tasks_error_message(*error));
}

char *path_of(const char *format, ...) {
    char *path = malloc(4096);
    if (path == NULL) give_up("path_of", "out of memory");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path, 4096, format, arguments);
    va_end(arguments);
    return path;
}

void write_file(const char *path, const void *data, size_t len) {
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, len, file) != len || fclose(file) != 0)
        give_up(path, strerror(errno));
}

LanceTasksBytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) give_up(path, strerror(errno));
    fseek(file, 0, SEEK_END);
    long len = ftell(file);
    rewind(file);
    uint8_t *data = malloc((size_t)len + 1);
    if (data == NULL || fread(data, 1, (size_t)len, file) != (size_t)len)
        give_up(path, "cannot be read");
    fclose(file);
    data[len] = 0;
    return (LanceTasksBytes){data, (size_t)len};
}

void free_read(LanceTasksBytes *bytes) {
    free((void *)(uintptr_t)bytes->data);
    bytes->data = NULL;
    bytes->len = 0;
}

void write_csv(const char *path, long first, long rows) {
    FILE *file = fopen(path, "w");
    if (file == NULL) give_up(path, strerror(errno));
    fprintf(file, "id,name,score\n");
    for (long i = first; i < first + rows; i++) {
        if (i % 7 == 3)
            fprintf(file, "%ld,,%ld.5\n", i, i);
        else
            fprintf(file, "%ld,row %ld,%ld.5\n", i, i, i);
    }
    if (fclose(file) != 0) give_up(path, strerror(errno));
}

bool file_exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

const char *test_dir(void) {
    const char *dir = getenv("LANCE_TASKS_TEST_DIR");
    if (dir == NULL) give_up("LANCE_TASKS_TEST_DIR", "not set; start the tests by run.sh");
    return dir;
}

char *fresh_dir(void) {
    char *dir = path_of("%s/XXXXXX", test_dir());
    if (mkdtemp(dir) == NULL) give_up(dir, strerror(errno));
    return dir;
}

/* Where the value of `key` begins, or NULL. The library's bytes have no terminating NUL. */
static const char *json_value(LanceTasksBytes json, const char *key) {
    char quoted[64];
    int n = snprintf(quoted, sizeof quoted, "\"%s\"", key);
    for (size_t at = 0; at + (size_t)n < json.len; at++) {
        if (memcmp(json.data + at, quoted, (size_t)n) != 0) continue;
        at += (size_t)n;
        while (at < json.len && (json.data[at] == ':' || json.data[at] == ' ')) at++;
        return (const char *)json.data + at;
    }
    return NULL;
}

uint64_t json_uint(LanceTasksBytes json, const char *key) {
    const char *value = json_value(json, key);
    uint64_t number = 0;
    if (value == NULL) give_up(key, "not in the JSON");
    for (; value < (const char *)json.data + json.len && *value >= '0' && *value <= '9'; value++)
        number = number * 10 + (uint64_t)(*value - '0');
    return number;
}

bool json_bool(LanceTasksBytes json, const char *key) {
    const char *value = json_value(json, key);
    if (value == NULL) give_up(key, "not in the JSON");
    return *value == 't';
}

bool bytes_contain(LanceTasksBytes bytes, const char *text) {
    size_t n = strlen(text);
    for (size_t at = 0; at + n <= bytes.len; at++)
        if (memcmp(bytes.data + at, text, n) == 0) return true;
    return false;
}

LanceTasksExecutor *new_executor(uint32_t threads) {
    LanceTasksExecutorOptions options = {.struct_size = sizeof options, .num_threads = threads};
    LanceTasksExecutor *executor = NULL;
    LanceTasksError *error = NULL;
    must(lance_tasks_executor_new(&options, &executor, &error), &error, "executor_new");
    return executor;
}

LanceTasksBytes prepare(const LanceTasksExecutor *executor, const char *spec,
                        struct ArrowSchema *schema) {
    LanceTasksBytes job = {0};
    LanceTasksError *error = NULL;
    must(lance_tasks_prepare(executor, (const uint8_t *)spec, strlen(spec), schema, NULL, &job,
                             &error),
         &error, "prepare");
    return job;
}

/* prepare, plan, execute and commit. */
static void run_spec(const LanceTasksExecutor *executor, const char *spec) {
    LanceTasksBytes job = prepare(executor, spec, NULL), outcome = {0};
    struct ArrowArrayStream tasks = plan(executor, job), results = {0};
    LanceTasksError *error = NULL;
    must(lance_tasks_execute_all(executor, &tasks, NULL, &results, &error), &error, "execute_all");
    must(lance_tasks_commit(executor, job.data, job.len, &results, NULL, &outcome, &error), &error,
         "commit");
    lance_tasks_bytes_free(&outcome);
    lance_tasks_bytes_free(&job);
}

LanceTasksBytes prepare_rows(const LanceTasksExecutor *executor, const char *dir, long rows,
                             long rows_per_task) {
    char *csv = path_of("%s/in.csv", dir);
    write_csv(csv, 0, rows);
    char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/seed.lance\", "
                         "\"sources\": [\"%s\"]}",
                         dir, csv);
    run_spec(executor, spec);
    free(spec);
    free(csv);
    spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/data.lance\", "
                   "\"sources\": [\"%s/seed.lance\"], \"max_rows_per_file\": %ld}",
                   dir, dir, rows_per_task);
    LanceTasksBytes job = prepare(executor, spec, NULL);
    free(spec);
    return job;
}

size_t count_files(const char *dir) {
    char *pattern = path_of("%s/data.lance/data/*", dir);
    glob_t files = {0};
    glob(pattern, 0, NULL, &files);
    size_t count = files.gl_pathc;
    globfree(&files);
    free(pattern);
    return count;
}

struct ArrowArrayStream plan(const LanceTasksExecutor *executor, LanceTasksBytes job) {
    struct ArrowArrayStream tasks = {0};
    LanceTasksError *error = NULL;
    must(lance_tasks_plan(executor, job.data, job.len, NULL, NULL, &tasks, &error), &error, "plan");
    return tasks;
}

Rows table_to_rows(struct ArrowArrayStream *table) {
    Rows rows = {0};
    LanceTasksError *error = NULL;
    must(lance_tasks_table_to_rows(table, &rows.framed, &error), &error, "table_to_rows");
    for (size_t at = 0; at < rows.framed.len;) {
        uint64_t len = 0;
        for (int i = 7; i >= 0; i--) len = len << 8 | rows.framed.data[at + (size_t)i];
        rows.items = realloc(rows.items, (rows.count + 1) * sizeof *rows.items);
        if (rows.items == NULL) give_up("table_to_rows", "out of memory");
        rows.items[rows.count++] = (LanceTasksBytes){rows.framed.data + at + 8, (size_t)len};
        at += 8 + (size_t)len;
    }
    return rows;
}

void free_rows(Rows *rows) {
    free(rows->items);
    lance_tasks_bytes_free(&rows->framed);
    rows->items = NULL;
    rows->count = 0;
}

struct ArrowArrayStream rows_to_table(const LanceTasksBytes *items, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++) total += 8 + items[i].len;
    uint8_t *framed = malloc(total + 1);
    if (framed == NULL) give_up("rows_to_table", "out of memory");
    uint8_t *at = framed;
    for (size_t i = 0; i < count; i++) {
        uint64_t len = items[i].len;
        for (int byte = 0; byte < 8; byte++) *at++ = (uint8_t)(len >> (8 * byte));
        memcpy(at, items[i].data, items[i].len);
        at += items[i].len;
    }
    struct ArrowArrayStream table = {0};
    LanceTasksError *error = NULL;
    must(lance_tasks_rows_to_table(framed, total, &table, &error), &error, "rows_to_table");
    free(framed);
    return table;
}

void release_stream(struct ArrowArrayStream *stream) {
    if (stream->release != NULL) stream->release(stream);
}

void sleep_ms(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

bool wait_until(const atomic_int *counter, int value) {
    for (int i = 0; i < 1000 && atomic_load(counter) != value; i++) sleep_ms(10);
    return atomic_load(counter) == value;
}
