/* One job over several processes: each run of this program is one step, run.sh strings them together.
 * A folder holds the job: `job`, `<n>.task`, `<n>.<attempt>.result`.
 *
 *   processes source FILE FIRST ROWS        write a CSV file
 *   processes begin SPEC_FILE DIR           prepare and plan; prints the number of tasks
 *   processes more DIR                      plan, given the results so far; prints the number of tasks
 *   processes execute DIR ATTEMPT           execute every task once
 *   processes incomplete DIR                a commit without the results of one task is refused
 *   processes commit DIR ROWS first|again   commit; `again` must answer with the version of `first`
 *   processes abort DIR MIN_REMOVED MIN_KEPT       `none` removed: exactly none
 */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>

#include "support.h"

static const char *dir;
static LanceTasksExecutor *executor;
static bool failed;

static void expect(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "expected: %s\n", what);
    failed = true;
}

static void report(LanceTasksStatus status, LanceTasksError **error, const char *what) {
    if (status != LANCE_TASKS_OK) {
        fprintf(stderr, "%s: %s (%s, %s): %s\n", what, lance_tasks_error_name(*error),
                lance_tasks_error_class(*error),
                lance_tasks_error_task_id(*error) ? lance_tasks_error_task_id(*error) : "no task",
                lance_tasks_error_message(*error));
        failed = true;
    }
    drop_error(error);
}

static LanceTasksBytes read_job(void) {
    char *path = path_of("%s/job", dir);
    LanceTasksBytes job = read_file(path);
    free(path);
    return job;
}

/* A table of every result in the folder; of those of task 0 only if `all`. */
static struct ArrowArrayStream read_results(bool all) {
    char *pattern = path_of("%s/*.result", dir);
    char *first = path_of("%s/0.", dir);
    glob_t files = {0};
    glob(pattern, 0, NULL, &files);
    LanceTasksBytes *items = calloc(files.gl_pathc + 1, sizeof *items);
    size_t count = 0;
    for (size_t i = 0; items != NULL && i < files.gl_pathc; i++) {
        if (!all && strncmp(files.gl_pathv[i], first, strlen(first)) == 0) continue;
        items[count++] = read_file(files.gl_pathv[i]);
    }
    struct ArrowArrayStream table = rows_to_table(items, count);
    for (size_t i = 0; i < count; i++) free_read(&items[i]);
    free(items);
    globfree(&files);
    free(first);
    free(pattern);
    return table;
}

static void write_tasks(struct ArrowArrayStream *tasks) {
    char *pattern = path_of("%s/*.task", dir);
    glob_t old = {0};
    glob(pattern, 0, NULL, &old);
    for (size_t i = 0; i < old.gl_pathc; i++) remove(old.gl_pathv[i]);
    size_t from = old.gl_pathc;
    globfree(&old);
    free(pattern);

    Rows rows = table_to_rows(tasks);
    expect(tasks->release == NULL, "the table of tasks was taken over");
    for (size_t i = 0; i < rows.count; i++) {
        char *path = path_of("%s/%zu.task", dir, from + i);
        write_file(path, rows.items[i].data, rows.items[i].len);
        free(path);
    }
    printf("%zu\n", rows.count);
    free_rows(&rows);
}

static void begin(const char *spec_file) {
    LanceTasksBytes spec = read_file(spec_file);
    LanceTasksBytes job = prepare(executor, (const char *)spec.data, NULL);
    free_read(&spec);
    char *path = path_of("%s/job", dir);
    write_file(path, job.data, job.len);
    free(path);
    struct ArrowArrayStream tasks = plan(executor, job);
    write_tasks(&tasks);
    lance_tasks_bytes_free(&job);
}

static void more(void) {
    LanceTasksBytes job = read_job();
    struct ArrowArrayStream results = read_results(true), tasks = {0};
    LanceTasksError *error = NULL;
    report(lance_tasks_plan(executor, job.data, job.len, &results, NULL, &tasks, &error), &error,
           "plan");
    expect(results.release == NULL, "the results were taken over");
    if (!failed) write_tasks(&tasks);
    free_read(&job);
}

/* Every second task goes through JSON: both encodings are accepted everywhere. */
static LanceTasksBytes as_json(const LanceTasksBytes *task) {
    LanceTasksBytes json = {0};
    LanceTasksError *error = NULL;
    report(lance_tasks_convert(task->data, task->len, LANCE_TASKS_ENCODING_JSON, &json, &error),
           &error, "convert");
    expect(json.len > 0 && json.data[0] == '{', "a JSON object");
    return json;
}

static void execute(const char *attempt) {
    char *pattern = path_of("%s/*.task", dir);
    glob_t files = {0};
    glob(pattern, 0, NULL, &files);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        LanceTasksBytes task = read_file(files.gl_pathv[i]);
        LanceTasksBytes json = i % 2 == 1 ? as_json(&task) : (LanceTasksBytes){0};
        LanceTasksBytes given = i % 2 == 1 ? json : task;
        struct ArrowArrayStream result = {0};
        LanceTasksError *error = NULL;
        report(lance_tasks_execute(executor, given.data, given.len, NULL, NULL, &result, &error),
               &error, files.gl_pathv[i]);
        if (result.release != NULL) {
            Rows rows = table_to_rows(&result);
            expect(rows.count == 1, "one result row");
            char *path = path_of("%.*s.%s.result", (int)(strlen(files.gl_pathv[i]) - 5),
                                 files.gl_pathv[i], attempt);
            write_file(path, rows.items[0].data, rows.items[0].len);
            free(path);
            free_rows(&rows);
        }
        lance_tasks_bytes_free(&json);
        free_read(&task);
    }
    globfree(&files);
    free(pattern);
}

static void incomplete(void) {
    LanceTasksBytes job = read_job();
    struct ArrowArrayStream results = read_results(false);
    LanceTasksBytes outcome = {UNTOUCHED, 7};
    LanceTasksError *error = NULL;
    LanceTasksStatus status =
        lance_tasks_commit(executor, job.data, job.len, &results, NULL, &outcome, &error);
    expect(status == LANCE_TASKS_INCOMPLETE, "INCOMPLETE");
    expect(error != NULL && strcmp(lance_tasks_error_class(error), "replan") == 0, "class replan");
    expect(results.release == NULL, "the results were taken over");
    expect(outcome.data == UNTOUCHED && outcome.len == 7, "no outcome on failure");
    if (status != LANCE_TASKS_INCOMPLETE) report(status, &error, "commit");
    drop_error(&error);
    free_read(&job);
}

static void commit(uint64_t rows, bool again) {
    LanceTasksBytes job = read_job();
    char *path = path_of("%s/version", dir);
    struct ArrowArrayStream results = read_results(true);
    LanceTasksBytes outcome = {0};
    LanceTasksError *error = NULL;
    report(lance_tasks_commit(executor, job.data, job.len, &results, NULL, &outcome, &error), &error,
           "commit");
    expect(results.release == NULL, "the results were taken over");
    if (!failed) {
        char *version = path_of("%" PRIu64, json_uint(outcome, "version"));
        expect(json_bool(outcome, "already_committed") == again, "already_committed as it is");
        expect(json_uint(outcome, "rows") == rows, "every row once");
        expect(json_bool(outcome, "complete"), "a complete commit");
        if (again) {
            LanceTasksBytes first = read_file(path);
            expect(strcmp((const char *)first.data, version) == 0, "the version of the first commit");
            free_read(&first);
        } else {
            write_file(path, version, strlen(version));
        }
        if (failed) fprintf(stderr, "%.*s\n", (int)outcome.len, (const char *)outcome.data);
        free(version);
    }
    lance_tasks_bytes_free(&outcome);
    free(path);
    free_read(&job);
}

static void abort_job(const char *removed, uint64_t min_kept) {
    bool none = strcmp(removed, "none") == 0;
    uint64_t min_removed = none ? 0 : (uint64_t)atol(removed);
    LanceTasksBytes job = read_job();
    struct ArrowArrayStream results = read_results(true);
    LanceTasksBytes done = {0};
    LanceTasksError *error = NULL;
    report(lance_tasks_abort(executor, job.data, job.len, &results, NULL, &done, &error), &error,
           "abort");
    expect(results.release == NULL, "the results were taken over");
    if (!failed) {
        expect(json_uint(done, "files_removed") >= min_removed, "files removed");
        expect(json_uint(done, "kept") >= min_kept, "committed files kept");
        if (none) expect(json_uint(done, "files_removed") == 0, "nothing removed");
        if (failed) fprintf(stderr, "%.*s\n", (int)done.len, (const char *)done.data);
    }
    lance_tasks_bytes_free(&done);
    free_read(&job);
}

int main(int argc, char **argv) {
    const char *mode = argc > 2 ? argv[1] : "";
    if (strcmp(mode, "source") == 0 && argc == 5) {
        write_csv(argv[2], atol(argv[3]), atol(argv[4]));
        return 0;
    }
    executor = new_executor(2);
    dir = argc > 2 ? argv[2] : "";
    if (strcmp(mode, "begin") == 0 && argc == 4) {
        dir = argv[3];
        begin(argv[2]);
    } else if (strcmp(mode, "more") == 0 && argc == 3) {
        more();
    } else if (strcmp(mode, "execute") == 0 && argc == 4) {
        execute(argv[3]);
    } else if (strcmp(mode, "incomplete") == 0 && argc == 3) {
        incomplete();
    } else if (strcmp(mode, "commit") == 0 && argc == 5) {
        commit((uint64_t)atol(argv[3]), strcmp(argv[4], "again") == 0);
    } else if (strcmp(mode, "abort") == 0 && argc == 5) {
        abort_job(argv[3], (uint64_t)atol(argv[4]));
    } else {
        fprintf(stderr, "unknown step %s with %d arguments\n", mode, argc);
        failed = true;
    }
    lance_tasks_executor_free(executor);
    return failed ? 1 : 0;
}
