/* A write fed by Arrow streams that are made by hand, and who releases what on every path. */
#include <stdlib.h>

#include "producer.h"

static LanceTasksExecutor *executor;

typedef struct Open {
    char *dir;
    LanceTasksBytes job;
} Open;

static Open open_job(const char *more) {
    Open open = {.dir = fresh_dir()};
    char *spec =
        path_of("{\"operation\": \"write\", \"uri\": \"%s/data.lance\"%s}", open.dir, more);
    Producer schema_of = producer(0, 0);
    struct ArrowSchema schema = producer_schema(&schema_of);
    open.job = prepare(executor, spec, &schema);
    CHECK(schema.release == NULL);
    CHECK(atomic_load(&schema_of.schemas_released) == 1);
    free(spec);
    return open;
}

static void close_job(Open *open) {
    lance_tasks_bytes_free(&open->job);
    free(open->dir);
}

static LanceTasksBytes task_of(const Open *open, const char *partition) {
    LanceTasksBytes task = {0};
    CHECK_OK(lance_tasks_job_task(open->job.data, open->job.len, (const uint8_t *)partition,
                                  strlen(partition), &task, &error));
    return task;
}

static void test_two_partitions(void) {
    Open open = open_job(", \"partitions\": [\"a\", \"b\"]");
    LanceTasksBytes results[3] = {{0}};
    const char *names[] = {"b", "a", "b"};
    for (int i = 0; i < 3; i++) {
        LanceTasksBytes task = task_of(&open, names[i]);
        Producer from = producer(3, 100);
        from.first = names[i][0] == 'b' ? 300 : 0;
        struct ArrowArrayStream input = producer_stream(&from), result = {0};
        CHECK_OK(
            lance_tasks_execute(executor, task.data, task.len, &input, NULL, &result, &error));
        CHECK(input.release == NULL);
        CHECK(producer_is_clean(&from));
        CHECK(atomic_load(&from.arrays_made) == 3);
        REQUIRE(result.release != NULL);
        Rows rows = table_to_rows(&result);
        REQUIRE(rows.count == 1);
        results[i] = (LanceTasksBytes){malloc(rows.items[0].len), rows.items[0].len};
        memcpy((void *)(uintptr_t)results[i].data, rows.items[0].data, rows.items[0].len);
        free_rows(&rows);
        lance_tasks_bytes_free(&task);
    }
    struct ArrowArrayStream one = rows_to_table(results, 1);
    LanceTasksBytes outcome = {0};
    CHECK_FAILS(LANCE_TASKS_INCOMPLETE, "",
                lance_tasks_commit(executor, open.job.data, open.job.len, &one, NULL, &outcome,
                                   &error));
    struct ArrowArrayStream all = rows_to_table(results, 3);
    CHECK_OK(lance_tasks_commit(executor, open.job.data, open.job.len, &all, NULL, &outcome,
                                &error));
    if (outcome.data != NULL) {
        CHECK(json_uint(outcome, "rows") == 600);
        CHECK(json_uint(outcome, "version") == 1);
    }
    lance_tasks_bytes_free(&outcome);
    for (int i = 0; i < 3; i++) free_read(&results[i]);
    close_job(&open);
}

static void test_partition_names(void) {
    Open open = open_job(", \"partitions\": [\"a\", \"b\"]");
    LanceTasksBytes task = {UNTOUCHED, 7};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "c",
                lance_tasks_job_task(open.job.data, open.job.len, (const uint8_t *)"c", 1, &task,
                                     &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "",
                lance_tasks_job_task(open.job.data, open.job.len, NULL, 0, &task, &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "UTF-8",
                lance_tasks_job_task(open.job.data, open.job.len, (const uint8_t *)"\xff", 1, &task,
                                     &error));
    CHECK(task.data == UNTOUCHED && task.len == 7);
    close_job(&open);

    char *dir = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, dir, 10, 10);
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "",
                lance_tasks_job_task(job.data, job.len, (const uint8_t *)"a", 1, &task, &error));
    lance_tasks_bytes_free(&job);
    free(dir);
}

/* One failing execute: the input is released once, the output is not written. */
static void failing_execute(Producer *from, LanceTasksStatus code, const char *text) {
    Open open = open_job("");
    LanceTasksBytes task = task_of(&open, "a");
    struct ArrowArrayStream input = producer_stream(from);
    struct ArrowArrayStream result = {.private_data = &open};
    LanceTasksError *error = NULL;
    LanceTasksStatus status =
        lance_tasks_execute(executor, task.data, task.len, &input, NULL, &result, &error);
    if (code != 0)
        check_fails(status, code, text, &error, __FILE__, __LINE__, "execute");
    else
        CHECK(status != LANCE_TASKS_OK && status != LANCE_TASKS_PANIC &&
              status != LANCE_TASKS_INTERNAL && error != NULL &&
              strstr(lance_tasks_error_message(error), text) != NULL);
    drop_error(&error);
    CHECK(input.release == NULL);
    CHECK(result.private_data == &open && result.release == NULL);
    CHECK(producer_is_clean(from));
    /* The executor goes on. */
    Producer good = producer(1, 10);
    input = producer_stream(&good);
    CHECK_OK(lance_tasks_execute(executor, task.data, task.len, &input, NULL, &result, &error));
    release_stream(&result);
    CHECK(producer_is_clean(&good));
    lance_tasks_bytes_free(&task);
    close_job(&open);
}

static void test_producer_fails_midway(void) {
    Producer from = producer(5, 10);
    from.fail_at = 3;
    failing_execute(&from, 0, "the producer gave up");
}

static void test_producer_fails_at_once(void) {
    Producer from = producer(5, 10);
    from.fail_at = 0;
    failing_execute(&from, 0, "the producer gave up");
}

static void test_producer_has_no_schema(void) {
    Producer from = producer(1, 10);
    from.fail_schema = true;
    failing_execute(&from, 0, "the producer gave up");
}

static void test_other_schema(void) {
    Producer from = producer(1, 10);
    from.id_format = "z";
    from.batches = 0;
    failing_execute(&from, LANCE_TASKS_SCHEMA_MISMATCH, "id");
}

static void test_nonsense_schema(void) {
    Producer from = producer(1, 10);
    from.id_format = "no such format";
    failing_execute(&from, 0, "");
}

static void test_array_with_a_child_too_few(void) {
    Producer from = producer(1, 10);
    from.lose_child = true;
    failing_execute(&from, 0, "");
}

/* Files that were closed before the failure, too. */
static void test_failed_attempt_removes_its_files(void) {
    LanceTasksCallOptions soon = {.struct_size = sizeof soon, .timeout_ms = 300};
    for (int i = 0; i < 2; i++) {
        Open open = open_job(", \"max_rows_per_file\": 10");
        LanceTasksBytes task = task_of(&open, "a");
        Producer from = producer(-1, 10);
        from.pause_ms = 1;
        if (i == 0) from.fail_at = 50;
        struct ArrowArrayStream input = producer_stream(&from), result = {0};
        CHECK_FAILS(i == 0 ? LANCE_TASKS_SOURCE : LANCE_TASKS_DEADLINE_EXCEEDED, "",
                    lance_tasks_execute(executor, task.data, task.len, &input,
                                        i == 0 ? NULL : &soon, &result, &error));
        CHECK(producer_is_clean(&from));
        CHECK(count_files(open.dir) == 0);
        lance_tasks_bytes_free(&task);
        close_job(&open);
    }
}

static void test_inputs_of_failing_calls(void) {
    Open open = open_job("");
    LanceTasksBytes task = task_of(&open, "a");
    LanceTasksCallOptions bad = {.struct_size = sizeof bad, .flags = 1u << 30};
    LanceTasksCallOptions tiny = {.struct_size = 3};
    for (int i = 0; i < 6; i++) {
        Producer from = producer(1, 10);
        struct ArrowArrayStream input = producer_stream(&from), result = {0};
        switch (i) {
        case 0:
            CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "executor",
                        lance_tasks_execute(NULL, task.data, task.len, &input, NULL, &result,
                                            &error));
            break;
        case 1:
            CHECK_FAILS(LANCE_TASKS_DECODE, "",
                        lance_tasks_execute(executor, task.data, task.len / 2, &input, NULL,
                                            &result, &error));
            break;
        case 2:
            CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "out_result",
                        lance_tasks_execute(executor, task.data, task.len, &input, NULL, NULL,
                                            &error));
            break;
        case 3:
            CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "flags",
                        lance_tasks_execute(executor, task.data, task.len, &input, &bad, &result,
                                            &error));
            break;
        case 4:
            CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "struct_size",
                        lance_tasks_execute(executor, task.data, task.len, &input, &tiny, &result,
                                            &error));
            break;
        default:
            /* out_error may be NULL. */
            CHECK(lance_tasks_execute(executor, NULL, 3, &input, NULL, &result, NULL) ==
                  LANCE_TASKS_INVALID_ARGUMENT);
        }
        CHECK(input.release == NULL && result.release == NULL);
        CHECK(producer_is_clean(&from));
    }
    lance_tasks_bytes_free(&task);
    close_job(&open);
}

static void test_released_and_missing_input(void) {
    Open open = open_job("");
    LanceTasksBytes task = task_of(&open, "a");
    struct ArrowArrayStream released = {0}, result = {0};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "released",
                lance_tasks_execute(executor, task.data, task.len, &released, NULL, &result,
                                    &error));
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "",
                lance_tasks_execute(executor, task.data, task.len, NULL, NULL, &result, &error));
    lance_tasks_bytes_free(&task);
    close_job(&open);
}

static void test_input_for_a_planned_task(void) {
    char *dir = fresh_dir();
    LanceTasksBytes job = prepare_rows(executor, dir, 10, 10);
    struct ArrowArrayStream tasks = plan(executor, job), result = {0};
    Rows rows = table_to_rows(&tasks);
    REQUIRE(rows.count == 1);
    Producer from = producer(1, 10);
    struct ArrowArrayStream input = producer_stream(&from);
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "",
                lance_tasks_execute(executor, rows.items[0].data, rows.items[0].len, &input, NULL,
                                    &result, &error));
    CHECK(input.release == NULL && producer_is_clean(&from));
    free_rows(&rows);
    lance_tasks_bytes_free(&job);
    free(dir);
}

static void test_schema_of_prepare(void) {
    char *dir = fresh_dir();
    char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/data.lance\"}", dir);
    const uint8_t *text = (const uint8_t *)spec;
    LanceTasksBytes job = {UNTOUCHED, 7};

    Producer of = producer(0, 0);
    struct ArrowSchema schema = producer_schema(&of);
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "executor",
                lance_tasks_prepare(NULL, text, strlen(spec), &schema, NULL, &job, &error));
    CHECK(schema.release == NULL && atomic_load(&of.schemas_released) == 1);

    schema = producer_schema(&of);
    CHECK_FAILS(LANCE_TASKS_DECODE, "",
                lance_tasks_prepare(executor, text, 5, &schema, NULL, &job, &error));
    CHECK(schema.release == NULL && atomic_load(&of.schemas_released) == 2);

    struct ArrowSchema released = {0};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "schema",
                lance_tasks_prepare(executor, text, strlen(spec), &released, NULL, &job, &error));

    of.id_format = "no such format";
    schema = producer_schema(&of);
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "schema",
                lance_tasks_prepare(executor, text, strlen(spec), &schema, NULL, &job, &error));
    CHECK(schema.release == NULL && atomic_load(&of.schemas_released) == 3);

    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "schema",
                lance_tasks_prepare(executor, text, strlen(spec), NULL, NULL, &job, &error));
    CHECK(job.data == UNTOUCHED && job.len == 7);
    free(spec);
    free(dir);
}

/* Tables of results and tasks are taken over as well. */
static void test_tables_of_failing_calls(void) {
    Open open = open_job("");
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    for (int i = 0; i < 6; i++) {
        Producer from = producer(2, 10);
        struct ArrowArrayStream table = producer_stream(&from), out = {0};
        switch (i) {
        case 0: /* neither tasks nor results */
            CHECK_FAILS(LANCE_TASKS_DECODE, "",
                        lance_tasks_execute_all(executor, &table, NULL, &out, &error));
            break;
        case 1:
            CHECK_FAILS(LANCE_TASKS_DECODE, "",
                        lance_tasks_plan(executor, open.job.data, open.job.len, &table, NULL, &out,
                                         &error));
            break;
        case 2:
            CHECK_FAILS(LANCE_TASKS_DECODE, "",
                        lance_tasks_commit(executor, open.job.data, open.job.len, &table, NULL,
                                           &bytes, &error));
            break;
        case 3:
            CHECK_FAILS(LANCE_TASKS_DECODE, "",
                        lance_tasks_abort(executor, open.job.data, open.job.len, &table, NULL,
                                          &bytes, &error));
            break;
        case 4:
            CHECK_FAILS(LANCE_TASKS_DECODE, "",
                        lance_tasks_table_to_rows(&table, &bytes, &error));
            break;
        default:
            CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "executor",
                        lance_tasks_commit(NULL, open.job.data, open.job.len, &table, NULL, &bytes,
                                           &error));
        }
        CHECK(table.release == NULL && out.release == NULL);
        CHECK(producer_is_clean(&from));
    }
    CHECK(bytes.data == UNTOUCHED && bytes.len == 7);
    close_job(&open);
}

static void test_next_row_of_another_stream(void) {
    Producer from = producer(1, 10);
    struct ArrowArrayStream stream = producer_stream(&from);
    LanceTasksBytes row = {UNTOUCHED, 7};
    LanceTasksError *error = NULL;
    LanceTasksStatus status = lance_tasks_next_row(&stream, &row, &error);
    CHECK(status == LANCE_TASKS_INVALID_ARGUMENT || status == LANCE_TASKS_DECODE);
    drop_error(&error);
    CHECK(row.data == UNTOUCHED && row.len == 7);
    /* It stays the caller's. */
    REQUIRE(stream.release != NULL);
    stream.release(&stream);
    CHECK(producer_is_clean(&from));
}

int main(void) {
    executor = new_executor(2);
    run_test("open_write", "two partitions, one attempted twice", test_two_partitions);
    run_test("open_write", "names of partitions", test_partition_names);
    run_test("open_write", "a producer that fails midway", test_producer_fails_midway);
    run_test("open_write", "a producer that fails at once", test_producer_fails_at_once);
    run_test("open_write", "a producer without a schema", test_producer_has_no_schema);
    run_test("open_write", "a stream of another schema", test_other_schema);
    run_test("open_write", "a schema of unknown format", test_nonsense_schema);
    run_test("open_write", "an array with a child too few", test_array_with_a_child_too_few);
    run_test("open_write", "a failed attempt removes its files",
             test_failed_attempt_removes_its_files);
    run_test("open_write", "inputs of failing calls are released once", test_inputs_of_failing_calls);
    run_test("open_write", "a released input and none", test_released_and_missing_input);
    run_test("open_write", "an input for a planned task", test_input_for_a_planned_task);
    run_test("open_write", "the schema of prepare is released once", test_schema_of_prepare);
    run_test("open_write", "tables of failing calls are released once",
             test_tables_of_failing_calls);
    run_test("open_write", "next_row of a stream that holds no results",
             test_next_row_of_another_stream);
    lance_tasks_executor_free(executor);
    return finish();
}
