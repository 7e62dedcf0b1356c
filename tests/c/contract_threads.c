/* One executor under many threads, its end before that of its streams, and fork. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "producer.h"

#define THREADS 8
#define ROUNDS 5

static LanceTasksExecutor *executor;

typedef struct Shared {
    LanceTasksBytes job;
    Rows tasks;
    atomic_int failures;
    atomic_int executed;
} Shared;

static void note(Shared *shared, LanceTasksStatus status, LanceTasksError **error) {
    if (status == LANCE_TASKS_OK) return;
    fprintf(stderr, "thread: %s\n", lance_tasks_error_message(*error));
    atomic_fetch_add(&shared->failures, 1);
    drop_error(error);
}

/* Everything that may run at once does: plan, execute, execute_all, job decoding, failing calls. */
static void *use_executor(void *context) {
    Shared *shared = context;
    for (int round = 0; round < ROUNDS; round++) {
        LanceTasksError *error = NULL;
        struct ArrowArrayStream tasks = {0}, result = {0}, results = {0};
        LanceTasksBytes task = shared->tasks.items[(size_t)round % shared->tasks.count];
        note(shared,
             lance_tasks_execute(executor, task.data, task.len, NULL, NULL, &result, &error),
             &error);
        release_stream(&result);
        note(shared,
             lance_tasks_plan(executor, shared->job.data, shared->job.len, NULL, NULL, &tasks,
                              &error),
             &error);
        note(shared, lance_tasks_execute_all(executor, &tasks, NULL, &results, &error), &error);
        for (LanceTasksBytes row = {0};;) {
            LanceTasksStatus status = lance_tasks_next_row(&results, &row, &error);
            note(shared, status, &error);
            if (status != LANCE_TASKS_OK || row.data == NULL) break;
            atomic_fetch_add(&shared->executed, 1);
            lance_tasks_bytes_free(&row);
        }
        release_stream(&results);
        if (lance_tasks_execute(executor, task.data, 9, NULL, NULL, &result, NULL) !=
            LANCE_TASKS_DECODE)
            atomic_fetch_add(&shared->failures, 1);
    }
    return NULL;
}

static void test_many_threads(void) {
    char *dir = fresh_dir();
    Shared shared = {.job = prepare_rows(executor, dir, 40, 10)};
    struct ArrowArrayStream tasks = plan(executor, shared.job);
    shared.tasks = table_to_rows(&tasks);
    REQUIRE(shared.tasks.count == 4);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, use_executor, &shared) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(atomic_load(&shared.failures) == 0);
    CHECK(atomic_load(&shared.executed) == THREADS * ROUNDS * 4);
    free_rows(&shared.tasks);
    lance_tasks_bytes_free(&shared.job);
    free(dir);
}

typedef struct Commit {
    LanceTasksBytes job;
    const Rows *results;
    LanceTasksStatus status;
    uint64_t version;
    bool already;
} Commit;

static void *commit(void *context) {
    Commit *self = context;
    LanceTasksBytes outcome = {0};
    LanceTasksError *error = NULL;
    struct ArrowArrayStream table = rows_to_table(self->results->items, self->results->count);
    self->status = lance_tasks_commit(executor, self->job.data, self->job.len, &table, NULL,
                                      &outcome, &error);
    if (self->status == LANCE_TASKS_OK) {
        self->version = json_uint(outcome, "version");
        self->already = json_bool(outcome, "already_committed");
    } else {
        fprintf(stderr, "commit: %s\n", lance_tasks_error_message(error));
    }
    drop_error(&error);
    lance_tasks_bytes_free(&outcome);
    return NULL;
}

/* Whoever comes second is told what the first has done. */
static void test_commit_from_two_threads(void) {
    char *dir = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, dir, 40, 10);
    struct ArrowArrayStream tasks = plan(executor, job), results = {0};
    CHECK_OK(lance_tasks_execute_all(executor, &tasks, NULL, &results, &error));
    Rows rows = table_to_rows(&results);
    CHECK(rows.count == 4);
    Commit commits[2] = {{.job = job, .results = &rows}, {.job = job, .results = &rows}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        REQUIRE(pthread_create(&threads[i], NULL, commit, &commits[i]) == 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK(commits[0].status == LANCE_TASKS_OK && commits[1].status == LANCE_TASKS_OK);
    CHECK(commits[0].version == 1 && commits[1].version == 1);
    CHECK(commits[0].already != commits[1].already);
    free_rows(&rows);
    lance_tasks_bytes_free(&job);
    free(dir);
}

static void test_executor_freed_before_its_stream(void) {
    for (int read = 0; read < 2; read++) {
        LanceTasksExecutor *own = new_executor(2);
        char *dir = fresh_dir();
        LanceTasksBytes job = prepare_rows(own, dir, 60, 10);
        struct ArrowArrayStream tasks = plan(own, job), results = {0};
        CHECK_OK(lance_tasks_execute_all(own, &tasks, NULL, &results, &error));
        lance_tasks_executor_free(own);
        if (read) {
            Rows rows = table_to_rows(&results);
            CHECK(rows.count == 6);
            free_rows(&rows);
        }
        release_stream(&results);
        lance_tasks_bytes_free(&job);
        free(dir);
    }
}

static void test_plan_outlives_executor(void) {
    LanceTasksExecutor *own = new_executor(1);
    char *dir = fresh_dir();
    LanceTasksBytes job = prepare_rows(own, dir, 60, 10);
    struct ArrowArrayStream tasks = plan(own, job);
    lance_tasks_executor_free(own);
    Rows rows = table_to_rows(&tasks);
    CHECK(rows.count == 6);
    free_rows(&rows);
    lance_tasks_bytes_free(&job);
    free(dir);
}

static void *read_stream(void *context) {
    struct ArrowArrayStream *results = context;
    Rows rows = table_to_rows(results);
    size_t count = rows.count;
    free_rows(&rows);
    return (void *)(uintptr_t)count;
}

static void test_stream_read_on_another_thread(void) {
    char *dir = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, dir, 60, 10);
    struct ArrowArrayStream tasks = plan(executor, job), results = {0};
    CHECK_OK(lance_tasks_execute_all(executor, &tasks, NULL, &results, &error));
    pthread_t thread;
    void *count = NULL;
    REQUIRE(pthread_create(&thread, NULL, read_stream, &results) == 0);
    pthread_join(thread, &count);
    CHECK((uintptr_t)count == 6);
    lance_tasks_bytes_free(&job);
    free(dir);
}

static void test_executors_made_and_freed(void) {
    for (int i = 0; i < 20; i++) {
        LanceTasksExecutor *own = new_executor(4);
        lance_tasks_executor_free(own);
    }
}

/* In the child of a fork there are no threads: every verb says so and returns. */
static void test_fork(void) {
    char *dir = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, dir, 10, 10);
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        alarm(20);
        struct ArrowArrayStream out = {0};
        LanceTasksBytes bytes = {0};
        const LanceTasksStatus state = LANCE_TASKS_INVALID_STATE;
        char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/b\", "
                             "\"sources\": [\"%s/in.csv\"]}", dir, dir);
        LanceTasksError *error = NULL;
        int refused =
            (lance_tasks_plan(executor, job.data, job.len, NULL, NULL, &out, &error) == state) +
            (error != NULL && strstr(lance_tasks_error_message(error), "fork") != NULL) +
            (lance_tasks_prepare(executor, (const uint8_t *)spec, strlen(spec), NULL, NULL, &bytes,
                                 NULL) == state) +
            (lance_tasks_commit(executor, job.data, job.len, NULL, NULL, &bytes, NULL) == state) +
            (lance_tasks_abort(executor, job.data, job.len, NULL, NULL, &bytes, NULL) == state) +
            /* What needs no executor goes on. */
            (lance_tasks_convert(job.data, job.len, LANCE_TASKS_ENCODING_JSON, &bytes, NULL) ==
             LANCE_TASKS_OK);
        _exit(refused == 6 ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    lance_tasks_bytes_free(&job);
    free(dir);
}

int main(void) {
    executor = new_executor(2);
    run_test("contract_threads", "one executor, many threads", test_many_threads);
    run_test("contract_threads", "a commit from two threads", test_commit_from_two_threads);
    run_test("contract_threads", "an executor freed before its stream",
             test_executor_freed_before_its_stream);
    run_test("contract_threads", "a plan outlives its executor", test_plan_outlives_executor);
    run_test("contract_threads", "a stream read on another thread",
             test_stream_read_on_another_thread);
    run_test("contract_threads", "executors made and freed", test_executors_made_and_freed);
    run_test("contract_threads", "after a fork", test_fork);
    lance_tasks_executor_free(executor);
    return finish();
}
