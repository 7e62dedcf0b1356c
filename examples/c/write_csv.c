/* Write a CSV file into a new Lance dataset: prepare, plan, execute, commit.
 *
 *   write_csv FILE.csv DATASET
 *
 * Here one process does it all. The job and the rows of the two tables are plain bytes, though: see
 * lance_tasks_table_to_rows for handing each task to another machine, and its result back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lance_tasks/lance_tasks.h>

/* End with the library's own words where a call failed. */
static void check(LanceTasksStatus status, LanceTasksError **error, const char *what) {
    if (status == LANCE_TASKS_OK) return;
    fprintf(stderr, "%s: %s (%s): %s\n", what, lance_tasks_error_name(*error),
            lance_tasks_error_class(*error), lance_tasks_error_message(*error));
    lance_tasks_error_free(*error);
    exit(1);
}

/* `text` as a JSON string. */
static char *quoted(const char *text) {
    char *out = malloc(2 * strlen(text) + 3), *at = out;
    if (out == NULL) exit(1);
    *at++ = '"';
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') *at++ = '\\';
        *at++ = *text;
    }
    strcpy(at, "\"");
    return out;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s FILE.csv DATASET\n", argv[0]);
        return 2;
    }
    char *source = quoted(argv[1]), *uri = quoted(argv[2]);
    char spec[8192];
    int len = snprintf(spec, sizeof spec,
                       "{\"operation\": \"write\", \"uri\": %s, \"sources\": [%s]}", uri, source);
    free(source);
    free(uri);
    if (len < 0 || (size_t)len >= sizeof spec) {
        fprintf(stderr, "the paths are too long\n");
        return 2;
    }

    LanceTasksError *error = NULL;
    LanceTasksExecutor *executor = NULL;
    check(lance_tasks_executor_new(NULL, &executor, &error), &error, "executor");

    LanceTasksBytes job = {0};
    check(lance_tasks_prepare(executor, (const uint8_t *)spec, (size_t)len, NULL, NULL, &job,
                              &error),
          &error, "prepare");

    struct ArrowArrayStream tasks = {0}, results = {0};
    check(lance_tasks_plan(executor, job.data, job.len, NULL, NULL, &tasks, &error), &error,
          "plan");
    /* Takes the tasks over. The results come as tasks finish; a failed task is a row like the others,
     * and the commit names it. */
    check(lance_tasks_execute_all(executor, &tasks, NULL, &results, &error), &error, "execute");

    LanceTasksBytes outcome = {0};
    check(lance_tasks_commit(executor, job.data, job.len, &results, NULL, &outcome, &error), &error,
          "commit");
    printf("%.*s\n", (int)outcome.len, (const char *)outcome.data);

    lance_tasks_bytes_free(&outcome);
    lance_tasks_bytes_free(&job);
    lance_tasks_executor_free(executor);
    return 0;
}
