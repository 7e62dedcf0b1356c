/* NULL, freed and released arguments of every function. */
#include <stdlib.h>

#include "support.h"

static LanceTasksExecutor *executor;
static const uint8_t SPEC[] = "{}";

static void test_versions(void) {
    CHECK(lance_tasks_abi_version() == LANCE_TASKS_ABI_VERSION);
    CHECK(lance_tasks_format_version() >= 1);
    const char *version = lance_tasks_version(), *lance = lance_tasks_lance_version();
    CHECK(version != NULL && strchr(version, '.') != NULL);
    CHECK(lance != NULL && strchr(lance, '.') != NULL);
}

static void test_free_null(void) {
    lance_tasks_executor_free(NULL);
    lance_tasks_cancel_token_free(NULL);
    lance_tasks_cancel_token_cancel(NULL);
    lance_tasks_bytes_free(NULL);
    lance_tasks_error_free(NULL);
    lance_tasks_free_stream(NULL);
    lance_tasks_free_schema(NULL);
    lance_tasks_stream_capsule_free(NULL);
    lance_tasks_files_free(NULL);
}

static void test_bytes_free_twice(void) {
    LanceTasksBytes bytes = {0};
    lance_tasks_bytes_free(&bytes);
    const uint8_t spec[] = "{\"operation\":\"compact\",\"uri\":\"/x\"}";
    CHECK_OK(lance_tasks_convert(spec, sizeof spec - 1, LANCE_TASKS_ENCODING_BINARY, &bytes,
                                 &error));
    CHECK(bytes.data != NULL && bytes.len > 0);
    lance_tasks_bytes_free(&bytes);
    CHECK(bytes.data == NULL && bytes.len == 0);
    lance_tasks_bytes_free(&bytes);
}

static void test_error_of_null(void) {
    CHECK(lance_tasks_error_code(NULL) == LANCE_TASKS_OK);
    CHECK(lance_tasks_error_name(NULL) == NULL);
    CHECK(lance_tasks_error_class(NULL) == NULL);
    CHECK(lance_tasks_error_message(NULL) == NULL);
    CHECK(lance_tasks_error_task_id(NULL) == NULL);
}

static void test_error_object(void) {
    LanceTasksError *error = NULL;
    LanceTasksBytes out = {UNTOUCHED, 7};
    CHECK(lance_tasks_convert((const uint8_t *)"?", 1, LANCE_TASKS_ENCODING_JSON, &out, &error) ==
          LANCE_TASKS_DECODE);
    REQUIRE(error != NULL);
    CHECK(lance_tasks_error_code(error) == LANCE_TASKS_DECODE);
    CHECK(strcmp(lance_tasks_error_name(error), "DECODE") == 0);
    CHECK(strcmp(lance_tasks_error_class(error), "invalid") == 0);
    CHECK(strlen(lance_tasks_error_message(error)) > 0);
    CHECK(lance_tasks_error_task_id(error) == NULL);
    CHECK(out.data == UNTOUCHED && out.len == 7);
    lance_tasks_error_free(error);
}

static void test_arrow_structs(void) {
    struct ArrowArrayStream *stream = lance_tasks_alloc_stream();
    REQUIRE(stream != NULL);
    CHECK(stream->release == NULL);
    CHECK_OK(lance_tasks_rows_to_table(NULL, 0, stream, &error));
    CHECK(stream->release != NULL);
    lance_tasks_free_stream(stream);
    struct ArrowSchema *schema = lance_tasks_alloc_schema();
    REQUIRE(schema != NULL);
    CHECK(schema->release == NULL);
    lance_tasks_free_schema(schema);
}

static void test_executor_new(void) {
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "out_executor",
                lance_tasks_executor_new(NULL, NULL, &error));
    CHECK(lance_tasks_executor_new(NULL, NULL, NULL) == LANCE_TASKS_INVALID_ARGUMENT);
}

static void test_null_executor(void) {
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    struct ArrowArrayStream stream = {.private_data = &bytes};
#define EXPECT(call) CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "executor is NULL", call)
    EXPECT(lance_tasks_prepare(NULL, SPEC, 2, NULL, NULL, &bytes, &error));
    EXPECT(lance_tasks_plan(NULL, SPEC, 2, NULL, NULL, &stream, &error));
    EXPECT(lance_tasks_execute(NULL, SPEC, 2, NULL, NULL, &stream, &error));
    EXPECT(lance_tasks_adopt(NULL, SPEC, 2, SPEC, 2, SPEC, 2, NULL, &stream, &error));
    EXPECT(lance_tasks_execute_all(NULL, NULL, NULL, &stream, &error));
    EXPECT(lance_tasks_read(NULL, SPEC, 2, NULL, &stream, &error));
    EXPECT(lance_tasks_read_all(NULL, NULL, NULL, &stream, &error));
    EXPECT(lance_tasks_commit(NULL, SPEC, 2, NULL, NULL, &bytes, &error));
    EXPECT(lance_tasks_abort(NULL, SPEC, 2, NULL, NULL, &bytes, &error));
#undef EXPECT
    CHECK(bytes.data == UNTOUCHED && bytes.len == 7);
    CHECK(stream.private_data == &bytes && stream.release == NULL);
}

static void test_null_outputs(void) {
    const uint8_t spec[] = "{\"operation\":\"compact\",\"uri\":\"/x\"}";
    size_t len = sizeof spec - 1;
#define EXPECT(name, call) CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, name " is NULL", call)
    EXPECT("out_job", lance_tasks_prepare(executor, spec, len, NULL, NULL, NULL, &error));
    EXPECT("out_task", lance_tasks_job_task(spec, len, spec, len, NULL, &error));
    EXPECT("out_tasks", lance_tasks_plan(executor, spec, len, NULL, NULL, NULL, &error));
    EXPECT("out_result", lance_tasks_execute(executor, spec, len, NULL, NULL, NULL, &error));
    EXPECT("out_result",
           lance_tasks_adopt(executor, spec, len, spec, len, spec, len, NULL, NULL, &error));
    EXPECT("out_results", lance_tasks_execute_all(executor, NULL, NULL, NULL, &error));
    EXPECT("out_data", lance_tasks_read(executor, spec, len, NULL, NULL, &error));
    EXPECT("out_data", lance_tasks_read_all(executor, NULL, NULL, NULL, &error));
    EXPECT("out_outcome", lance_tasks_commit(executor, spec, len, NULL, NULL, NULL, &error));
    EXPECT("out_report", lance_tasks_abort(executor, spec, len, NULL, NULL, NULL, &error));
    EXPECT("out_bytes",
           lance_tasks_convert(spec, len, LANCE_TASKS_ENCODING_BINARY, NULL, &error));
    EXPECT("out_rows", lance_tasks_table_to_rows(NULL, NULL, &error));
    EXPECT("out_row", lance_tasks_next_row(NULL, NULL, &error));
    EXPECT("out_table", lance_tasks_rows_to_table(NULL, 0, NULL, &error));
#undef EXPECT
}

/* NULL with a length is refused; NULL without one is empty, which no descriptor is. */
static void test_null_inputs(void) {
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    struct ArrowArrayStream stream = {0};
#define EXPECT(name, code, call) CHECK_FAILS(code, name, call)
    for (size_t len = 0; len < 2; len++) {
        LanceTasksStatus code = len == 0 ? LANCE_TASKS_DECODE : LANCE_TASKS_INVALID_ARGUMENT;
        const char *why = len == 0 ? "empty" : "is NULL";
        EXPECT(why, code, lance_tasks_prepare(executor, NULL, len, NULL, NULL, &bytes, &error));
        EXPECT(why, code, lance_tasks_job_task(NULL, len, SPEC, 1, &bytes, &error));
        EXPECT(why, code, lance_tasks_plan(executor, NULL, len, NULL, NULL, &stream, &error));
        EXPECT(why, code, lance_tasks_execute(executor, NULL, len, NULL, NULL, &stream, &error));
        EXPECT(why, code,
               lance_tasks_adopt(executor, NULL, len, SPEC, 2, SPEC, 2, NULL, &stream, &error));
        EXPECT(why, code, lance_tasks_read(executor, NULL, len, NULL, &stream, &error));
        EXPECT(why, code, lance_tasks_commit(executor, NULL, len, NULL, NULL, &bytes, &error));
        EXPECT(why, code, lance_tasks_abort(executor, NULL, len, NULL, NULL, &bytes, &error));
        EXPECT(why, code, lance_tasks_convert(NULL, len, LANCE_TASKS_ENCODING_JSON, &bytes, &error));
    }
    EXPECT("is NULL", LANCE_TASKS_INVALID_ARGUMENT,
           lance_tasks_rows_to_table(NULL, 1, &stream, &error));
    EXPECT("tasks", LANCE_TASKS_INVALID_ARGUMENT,
           lance_tasks_execute_all(executor, NULL, NULL, &stream, &error));
    EXPECT("tasks", LANCE_TASKS_INVALID_ARGUMENT,
           lance_tasks_read_all(executor, NULL, NULL, &stream, &error));
    EXPECT("table", LANCE_TASKS_INVALID_ARGUMENT, lance_tasks_table_to_rows(NULL, &bytes, &error));
    EXPECT("stream", LANCE_TASKS_INVALID_ARGUMENT, lance_tasks_next_row(NULL, &bytes, &error));
#undef EXPECT
    CHECK(bytes.data == UNTOUCHED && bytes.len == 7 && stream.release == NULL);
}

/* A length no memory can have, as a negative number cast by mistake. */
static void test_absurd_length(void) {
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "data",
                lance_tasks_convert(SPEC, SIZE_MAX, LANCE_TASKS_ENCODING_JSON, &bytes, &error));
    CHECK(bytes.data == UNTOUCHED);
}

static void test_null_out_error(void) {
    struct ArrowArrayStream stream = {0};
    LanceTasksBytes bytes = {0};
    const LanceTasksStatus invalid = LANCE_TASKS_INVALID_ARGUMENT;
    CHECK(lance_tasks_prepare(NULL, NULL, 0, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_job_task(NULL, 0, NULL, 0, NULL, NULL) == invalid);
    CHECK(lance_tasks_plan(NULL, NULL, 0, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_execute(NULL, NULL, 0, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_adopt(NULL, NULL, 0, NULL, 0, NULL, 0, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_execute_all(NULL, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_read(NULL, NULL, 0, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_read_all(NULL, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_commit(NULL, NULL, 0, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_abort(NULL, NULL, 0, NULL, NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_convert(NULL, 0, 0, NULL, NULL) == invalid);
    CHECK(lance_tasks_table_to_rows(NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_next_row(NULL, NULL, NULL) == invalid);
    CHECK(lance_tasks_rows_to_table(NULL, 0, NULL, NULL) == invalid);
    CHECK(lance_tasks_execute(executor, SPEC, 2, NULL, NULL, &stream, NULL) != LANCE_TASKS_OK);
    CHECK(lance_tasks_convert(SPEC, 2, 99, &bytes, NULL) == invalid);
}

/* Streams that were released, taken over or read to their end. */
static void test_released_streams(void) {
    struct ArrowArrayStream table = {0}, out = {0};
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    LanceTasksStatus invalid = LANCE_TASKS_INVALID_ARGUMENT;
    CHECK_FAILS(invalid, "released", lance_tasks_table_to_rows(&table, &bytes, &error));
    CHECK_FAILS(invalid, "released", lance_tasks_next_row(&table, &bytes, &error));
    CHECK_FAILS(invalid, "released",
                lance_tasks_execute_all(executor, &table, NULL, &out, &error));
    CHECK_FAILS(invalid, "released", lance_tasks_read_all(executor, &table, NULL, &out, &error));
    CHECK(bytes.data == UNTOUCHED && bytes.len == 7);

    CHECK_OK(lance_tasks_rows_to_table(NULL, 0, &table, &error));
    CHECK_OK(lance_tasks_table_to_rows(&table, &bytes, &error));
    CHECK(table.release == NULL && bytes.len == 0);
    lance_tasks_bytes_free(&bytes);
    CHECK_FAILS(invalid, "released", lance_tasks_table_to_rows(&table, &bytes, &error));

    /* At its end, a stream goes on to say so. */
    CHECK_OK(lance_tasks_rows_to_table(NULL, 0, &table, &error));
    for (int i = 0; i < 3; i++) {
        bytes = (LanceTasksBytes){UNTOUCHED, 7};
        CHECK_OK(lance_tasks_next_row(&table, &bytes, &error));
        /* The table of no results may be one batch without rows. */
        if (bytes.len != 0) lance_tasks_bytes_free(&bytes);
    }
    CHECK(bytes.data == NULL && bytes.len == 0);
    release_stream(&table);
}

int main(void) {
    executor = new_executor(1);
    run_test("contract_null", "versions", test_versions);
    run_test("contract_null", "every free takes NULL", test_free_null);
    run_test("contract_null", "bytes freed twice", test_bytes_free_twice);
    run_test("contract_null", "the error NULL", test_error_of_null);
    run_test("contract_null", "an error's parts", test_error_object);
    run_test("contract_null", "allocated Arrow structs", test_arrow_structs);
    run_test("contract_null", "executor_new", test_executor_new);
    run_test("contract_null", "the executor NULL", test_null_executor);
    run_test("contract_null", "outputs NULL", test_null_outputs);
    run_test("contract_null", "inputs NULL", test_null_inputs);
    run_test("contract_null", "an absurd length", test_absurd_length);
    run_test("contract_null", "out_error NULL", test_null_out_error);
    run_test("contract_null", "released streams", test_released_streams);
    lance_tasks_executor_free(executor);
    return finish();
}
