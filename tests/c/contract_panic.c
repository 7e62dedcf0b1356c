/* A panic inside of the library, at a place that LANCE_TASKS_INJECT_PANIC names: a function,
 * `executor` (the core of every verb) or `stream` (a stream handed out). One run tests one place:
 *
 *   contract_panic list       print the functions that are tested
 *   contract_panic PLACE
 */
#include <stdlib.h>

#include "producer.h"

static atomic_int finalized;

static void count(void *context) {
    (void)context;
    atomic_fetch_add(&finalized, 1);
}

/* What a function is called with; each call must give everything back. */
typedef struct Fixture {
    LanceTasksExecutor *executor;
    Producer from;
    struct ArrowArrayStream stream, out;
    struct ArrowSchema schema;
    LanceTasksBytes bytes;
    LanceTasksCallOptions options;
} Fixture;

static const uint8_t JUNK[] = "{}";

static LanceTasksStatus executor_new(Fixture *f, LanceTasksError **error) {
    LanceTasksExecutor *out = NULL;
    (void)f;
    return lance_tasks_executor_new(NULL, &out, error);
}

static LanceTasksStatus prepare_call(Fixture *f, LanceTasksError **error) {
    f->schema = producer_schema(&f->from);
    return lance_tasks_prepare(f->executor, JUNK, 2, &f->schema, &f->options, &f->bytes, error);
}

static LanceTasksStatus job_task(Fixture *f, LanceTasksError **error) {
    return lance_tasks_job_task(JUNK, 2, JUNK, 1, &f->bytes, error);
}

static LanceTasksStatus plan_call(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_plan(f->executor, JUNK, 2, &f->stream, &f->options, &f->out, error);
}

static LanceTasksStatus execute(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_execute(f->executor, JUNK, 2, &f->stream, &f->options, &f->out, error);
}

static LanceTasksStatus adopt(Fixture *f, LanceTasksError **error) {
    return lance_tasks_adopt(f->executor, JUNK, 2, JUNK, 2, JUNK, 2, &f->options, &f->out, error);
}

static LanceTasksStatus execute_all(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_execute_all(f->executor, &f->stream, &f->options, &f->out, error);
}

static LanceTasksStatus read_task(Fixture *f, LanceTasksError **error) {
    return lance_tasks_read(f->executor, JUNK, 2, &f->options, &f->out, error);
}

static LanceTasksStatus read_all(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_read_all(f->executor, &f->stream, &f->options, &f->out, error);
}

static LanceTasksStatus commit(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_commit(f->executor, JUNK, 2, &f->stream, &f->options, &f->bytes, error);
}

static LanceTasksStatus abort_call(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_abort(f->executor, JUNK, 2, &f->stream, &f->options, &f->bytes, error);
}

static LanceTasksStatus convert(Fixture *f, LanceTasksError **error) {
    return lance_tasks_convert(JUNK, 2, LANCE_TASKS_ENCODING_JSON, &f->bytes, error);
}

static LanceTasksStatus to_rows(Fixture *f, LanceTasksError **error) {
    f->stream = producer_stream(&f->from);
    return lance_tasks_table_to_rows(&f->stream, &f->bytes, error);
}

static LanceTasksStatus next_row(Fixture *f, LanceTasksError **error) {
    /* The stream stays the caller's. */
    f->stream = producer_stream(&f->from);
    LanceTasksStatus status = lance_tasks_next_row(&f->stream, &f->bytes, error);
    release_stream(&f->stream);
    return status;
}

static LanceTasksStatus to_table(Fixture *f, LanceTasksError **error) {
    return lance_tasks_rows_to_table(JUNK, 2, &f->out, error);
}

/* A handle that is not looked at before the panic. */
#define FILES ((LanceTasksFiles *)UNTOUCHED)

static LanceTasksStatus files_open(Fixture *f, LanceTasksError **error) {
    LanceTasksFiles *out = NULL;
    return lance_tasks_files_open(JUNK, 2, &f->options, &out, error);
}

static LanceTasksStatus files_get(Fixture *f, LanceTasksError **error) {
    return lance_tasks_files_get(FILES, JUNK, 2, &f->bytes, error);
}

static LanceTasksStatus files_put(Fixture *f, LanceTasksError **error) {
    (void)f;
    return lance_tasks_files_put(FILES, JUNK, 2, JUNK, 2, 1, error);
}

static LanceTasksStatus files_list(Fixture *f, LanceTasksError **error) {
    return lance_tasks_files_list(FILES, JUNK, 2, &f->bytes, error);
}

static LanceTasksStatus files_delete(Fixture *f, LanceTasksError **error) {
    (void)f;
    return lance_tasks_files_delete(FILES, JUNK, 2, error);
}

static const struct {
    const char *name;
    LanceTasksStatus (*call)(Fixture *, LanceTasksError **);
    bool on_executor;
    bool takes_stream;
} FUNCTIONS[] = {
    {"lance_tasks_executor_new", executor_new, false, false},
    {"lance_tasks_prepare", prepare_call, true, false},
    {"lance_tasks_job_task", job_task, false, false},
    {"lance_tasks_plan", plan_call, true, true},
    {"lance_tasks_execute", execute, true, true},
    {"lance_tasks_adopt", adopt, true, false},
    {"lance_tasks_execute_all", execute_all, true, true},
    {"lance_tasks_read", read_task, true, false},
    {"lance_tasks_read_all", read_all, true, true},
    {"lance_tasks_commit", commit, true, true},
    {"lance_tasks_abort", abort_call, true, true},
    {"lance_tasks_convert", convert, false, false},
    {"lance_tasks_table_to_rows", to_rows, false, true},
    {"lance_tasks_next_row", next_row, false, true},
    {"lance_tasks_rows_to_table", to_table, false, false},
    {"lance_tasks_files_open", files_open, false, false},
    {"lance_tasks_files_get", files_get, false, false},
    {"lance_tasks_files_put", files_put, false, false},
    {"lance_tasks_files_list", files_list, false, false},
    {"lance_tasks_files_delete", files_delete, false, false},
};
#define COUNT (sizeof FUNCTIONS / sizeof *FUNCTIONS)

static const char *place;

/* One call that must fail with `code`; inputs are released and the finalizer runs, once each. */
static void call(size_t i, LanceTasksExecutor *executor, LanceTasksStatus code, const char *text) {
    Fixture f = {.executor = executor, .from = producer(1, 10), .bytes = {UNTOUCHED, 7}};
    f.options.struct_size = sizeof f.options;
    f.options.progress_finalizer = count;
    atomic_store(&finalized, 0);
    LanceTasksError *error = NULL;
    LanceTasksStatus status = FUNCTIONS[i].call(&f, &error);
    check_fails(status, code, text, &error, __FILE__, __LINE__, FUNCTIONS[i].name);
    drop_error(&error);
    CHECK(f.bytes.data == UNTOUCHED && f.bytes.len == 7);
    CHECK(f.out.release == NULL && f.stream.release == NULL && f.schema.release == NULL);
    CHECK(atomic_load(&f.from.schemas_released) == atomic_load(&f.from.schemas_made));
    if (FUNCTIONS[i].takes_stream) CHECK(producer_is_clean(&f.from));
    if (FUNCTIONS[i].on_executor) CHECK(atomic_load(&finalized) == 1);
    /* out_error may be NULL here too. */
    CHECK(FUNCTIONS[i].call(&f, NULL) == code);
}

static void test_function(void) {
    bool needs_executor = strcmp(place, "lance_tasks_executor_new") != 0;
    LanceTasksExecutor *executor = needs_executor ? new_executor(1) : NULL;
    for (size_t i = 0; i < COUNT; i++)
        if (strcmp(FUNCTIONS[i].name, place) == 0)
            call(i, executor, LANCE_TASKS_PANIC, "injected into lance_tasks_");
    lance_tasks_executor_free(executor);
}

/* A panic in the core poisons its handle, not the process. */
static void test_executor(void) {
    for (size_t first = 0; first < COUNT; first++) {
        if (!FUNCTIONS[first].on_executor) continue;
        LanceTasksExecutor *executor = new_executor(1);
        Fixture f = {.executor = executor, .from = producer(1, 10), .bytes = {UNTOUCHED, 7}};
        f.options.struct_size = sizeof f.options;
        LanceTasksError *error = NULL;
        LanceTasksStatus status = FUNCTIONS[first].call(&f, &error);
        check_fails(status, LANCE_TASKS_PANIC, "injected into executor", &error, __FILE__, __LINE__,
                    FUNCTIONS[first].name);
        CHECK(f.stream.release == NULL && f.schema.release == NULL);
        /* Then the handle refuses every verb; what needs no executor works. */
        for (size_t i = 0; i < COUNT; i++)
            if (FUNCTIONS[i].on_executor) call(i, executor, LANCE_TASKS_INVALID_STATE, "poisoned");
        CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "operation",
                    convert(&f, &error));
        lance_tasks_executor_free(executor);
    }
}

static void test_stream(void) {
    struct ArrowArrayStream table = {0};
    struct ArrowSchema schema = {0};
    struct ArrowArray array = {0};
    CHECK_OK(lance_tasks_rows_to_table(NULL, 0, &table, &error));
    REQUIRE(table.release != NULL);
    CHECK(table.get_schema(&table, &schema) == 0 && schema.release != NULL);
    schema.release(&schema);
    CHECK(table.get_next(&table, &array) != 0);
    const char *why = table.get_last_error(&table);
    CHECK(why != NULL && strstr(why, "injected into stream") != NULL);
    /* Then it is at its end. */
    memset(&array, 0, sizeof array);
    CHECK(table.get_next(&table, &array) == 0 && array.release == NULL);
    table.release(&table);
    CHECK(table.release == NULL);

    CHECK_OK(lance_tasks_rows_to_table(NULL, 0, &table, &error));
    LanceTasksBytes row = {UNTOUCHED, 7};
    LanceTasksError *error = NULL;
    CHECK(lance_tasks_next_row(&table, &row, &error) != LANCE_TASKS_OK);
    REQUIRE(error != NULL);
    CHECK(strstr(lance_tasks_error_message(error), "injected into stream") != NULL);
    drop_error(&error);
    CHECK(row.data == UNTOUCHED);
    release_stream(&table);
}

int main(int argc, char **argv) {
    place = argc == 2 ? argv[1] : "";
    if (strcmp(place, "list") == 0) {
        for (size_t i = 0; i < COUNT; i++) printf("%s\n", FUNCTIONS[i].name);
        return 0;
    }
    const char *injected = getenv("LANCE_TASKS_INJECT_PANIC");
    if (injected == NULL || strcmp(injected, place) != 0) {
        fprintf(stderr, "LANCE_TASKS_INJECT_PANIC is not %s\n", place);
        return 2;
    }
    if (strcmp(place, "executor") == 0)
        run_test("contract_panic", "in the executor", test_executor);
    else if (strcmp(place, "stream") == 0)
        run_test("contract_panic", "in a stream", test_stream);
    else
        run_test("contract_panic", place, test_function);
    return finish();
}
