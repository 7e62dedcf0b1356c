/* Descriptors and results that are cut short, damaged, or something else. */
#include <stdlib.h>

#include "support.h"

static LanceTasksExecutor *executor;
static LanceTasksBytes job, task, result;

/* A call on damaged bytes may succeed only where `may_pass` (JSON and Arrow IPC carry no checksum).
 * Never is it a panic or an internal error. */
static bool refused(LanceTasksStatus status, bool may_pass) {
    switch (status) {
    case LANCE_TASKS_DECODE:
    case LANCE_TASKS_VERSION_MISMATCH:
    case LANCE_TASKS_INVALID_ARGUMENT:
        return true;
    case LANCE_TASKS_PANIC:
    case LANCE_TASKS_INTERNAL:
        return false;
    default:
        return may_pass;
    }
}

static bool damaged(LanceTasksBytes bytes, bool may_pass) {
    LanceTasksBytes out = {UNTOUCHED, 7};
    LanceTasksError *error = NULL;
    LanceTasksStatus status =
        lance_tasks_convert(bytes.data, bytes.len, LANCE_TASKS_ENCODING_BINARY, &out, &error);
    bool ok = refused(status, may_pass) && (status == LANCE_TASKS_OK) == (error == NULL);
    if (!ok)
        fprintf(stderr, "status %d: %s\n", status,
                error ? lance_tasks_error_message(error) : "accepted");
    if (status == LANCE_TASKS_OK)
        lance_tasks_bytes_free(&out);
    else
        ok = ok && out.data == UNTOUCHED && out.len == 7;
    lance_tasks_error_free(error);
    return ok;
}

/* `len` bytes on the heap, so that a read beyond them is seen by the sanitizer. */
static LanceTasksBytes copy_of(LanceTasksBytes bytes, size_t len) {
    uint8_t *data = malloc(len ? len : 1);
    if (data == NULL) exit(2);
    memcpy(data, bytes.data, len);
    return (LanceTasksBytes){data, len};
}

static void every_prefix(LanceTasksBytes bytes, bool may_pass) {
    for (size_t len = 0; len < bytes.len; len++) {
        LanceTasksBytes copy = copy_of(bytes, len);
        bool ok = damaged(copy, may_pass);
        free_read(&copy);
        if (!ok) fprintf(stderr, "prefix of %zu bytes\n", len);
        REQUIRE(ok);
    }
}

static void flipped_bits(LanceTasksBytes bytes, bool may_pass, size_t step) {
    LanceTasksBytes copy = copy_of(bytes, bytes.len);
    uint8_t *data = (uint8_t *)(uintptr_t)copy.data;
    for (size_t at = 0; at < copy.len * 8; at += step) {
        data[at / 8] ^= (uint8_t)(1 << at % 8);
        bool ok = damaged(copy, may_pass);
        data[at / 8] ^= (uint8_t)(1 << at % 8);
        if (!ok) fprintf(stderr, "bit %zu\n", at);
        CHECK(ok);
        if (!ok) break;
    }
    free_read(&copy);
}

static LanceTasksBytes json_of(LanceTasksBytes bytes) {
    LanceTasksBytes json = {0};
    CHECK_OK(
        lance_tasks_convert(bytes.data, bytes.len, LANCE_TASKS_ENCODING_JSON, &json, &error));
    return json;
}

static void test_prefixes_of_binary(void) {
    every_prefix(job, false);
    every_prefix(task, false);
}

static void test_flipped_bits_of_binary(void) {
    flipped_bits(job, false, 1);
    flipped_bits(task, false, 1);
}

static void test_prefixes_of_json(void) {
    LanceTasksBytes json = json_of(task);
    /* What is cut off last may be a line end. */
    every_prefix((LanceTasksBytes){json.data, json.len - 1}, false);
    lance_tasks_bytes_free(&json);
}

static void test_flipped_bits_of_json(void) {
    LanceTasksBytes json = json_of(job);
    flipped_bits(json, true, 1);
    lance_tasks_bytes_free(&json);
}

static void test_prefixes_of_result(void) { every_prefix(result, true); }

static void test_flipped_bits_of_result(void) { flipped_bits(result, true, 1); }

static void test_trailing_bytes(void) {
    LanceTasksBytes longer = copy_of(job, job.len), json = json_of(job);
    uint8_t *data = realloc((void *)(uintptr_t)longer.data, job.len + 1);
    REQUIRE(data != NULL);
    data[job.len] = 0;
    longer = (LanceTasksBytes){data, job.len + 1};
    CHECK(damaged(longer, false));
    free_read(&longer);
    lance_tasks_bytes_free(&json);
}

static void test_both_encodings_say_the_same(void) {
    LanceTasksBytes *kinds[] = {&job, &task};
    for (int i = 0; i < 2; i++) {
        LanceTasksBytes json = json_of(*kinds[i]), back = {0};
        CHECK_OK(lance_tasks_convert(json.data, json.len, LANCE_TASKS_ENCODING_BINARY, &back,
                                     &error));
        CHECK(back.len == kinds[i]->len && memcmp(back.data, kinds[i]->data, back.len) == 0);
        lance_tasks_bytes_free(&back);
        lance_tasks_bytes_free(&json);
    }
    LanceTasksBytes json = json_of(result);
    CHECK(bytes_contain(json, "\"status\":\"ok\""));
    lance_tasks_bytes_free(&json);
}

static void test_another_kind(void) {
    struct ArrowArrayStream out = {0};
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    LanceTasksStatus invalid = LANCE_TASKS_INVALID_ARGUMENT;
    CHECK_FAILS(invalid, "job",
                lance_tasks_plan(executor, task.data, task.len, NULL, NULL, &out, &error));
    CHECK_FAILS(invalid, "task",
                lance_tasks_execute(executor, job.data, job.len, NULL, NULL, &out, &error));
    CHECK_FAILS(invalid, "spec",
                lance_tasks_prepare(executor, job.data, job.len, NULL, NULL, &bytes, &error));
    const uint8_t kind[] = "{\"kind\": \"poem\", \"format\": 1, \"poem\": {}}";
    CHECK_FAILS(LANCE_TASKS_VERSION_MISMATCH, "poem",
                lance_tasks_convert(kind, sizeof kind - 1, LANCE_TASKS_ENCODING_BINARY, &bytes,
                                    &error));
    const uint8_t future[] = "{\"kind\": \"job\", \"format\": 9999, \"job\": {}}";
    CHECK_FAILS(LANCE_TASKS_VERSION_MISMATCH, "9999",
                lance_tasks_convert(future, sizeof future - 1, LANCE_TASKS_ENCODING_BINARY, &bytes,
                                    &error));
    CHECK_FAILS(LANCE_TASKS_DECODE, "",
                lance_tasks_convert((const uint8_t *)"hello", 5, LANCE_TASKS_ENCODING_BINARY,
                                    &bytes, &error));
    CHECK_FAILS(invalid, "encoding",
                lance_tasks_convert(job.data, job.len, 3, &bytes, &error));
    CHECK(bytes.data == UNTOUCHED && bytes.len == 7 && out.release == NULL);
}

static void test_unknown_operation_and_fields(void) {
    LanceTasksBytes out = {UNTOUCHED, 7};
    const char *specs[] = {
        "{\"operation\": \"levitate\", \"uri\": \"/x\"}",
        "{\"uri\": \"/x\"}",
        "{\"operation\": \"write\", \"uri\": \"/x\", \"colour\": 3}",
        "{\"operation\": \"write\", \"uri\": 3}",
        "{\"operation\": 3}",
    };
    const char *texts[] = {"levitate", "operation", "colour", "", ""};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, texts[i],
                    lance_tasks_prepare(executor, (const uint8_t *)specs[i], strlen(specs[i]), NULL,
                                        NULL, &out, &error));
    CHECK(out.data == UNTOUCHED && out.len == 7);
}

static void test_deeply_nested_json(void) {
    size_t len = 200000;
    char *text = malloc(len);
    REQUIRE(text != NULL);
    memset(text, '{', len);
    for (size_t i = 1; i + 5 < len; i += 5) memcpy(text + i, "\"a\":{", 5);
    LanceTasksBytes out = {UNTOUCHED, 7};
    CHECK_FAILS(LANCE_TASKS_DECODE, "",
                lance_tasks_convert((const uint8_t *)text, len, LANCE_TASKS_ENCODING_BINARY, &out,
                                    &error));
    free(text);
}

static void test_frames_of_rows(void) {
    struct ArrowArrayStream out = {0};
    LanceTasksBytes items[] = {task, task};
    struct ArrowArrayStream table = rows_to_table(items, 2);
    Rows rows = table_to_rows(&table);
    CHECK(rows.count == 2);
    for (size_t len = 1; len < rows.framed.len; len++) {
        if (len == rows.framed.len / 2) continue; /* one whole row */
        LanceTasksError *error = NULL;
        LanceTasksStatus status = lance_tasks_rows_to_table(rows.framed.data, len, &out, &error);
        CHECK(status == LANCE_TASKS_DECODE && out.release == NULL);
        drop_error(&error);
    }
    free_rows(&rows);
    uint8_t endless[16];
    memset(endless, 0xff, sizeof endless);
    CHECK_FAILS(LANCE_TASKS_DECODE, "rows",
                lance_tasks_rows_to_table(endless, sizeof endless, &out, &error));
}

static void test_mixed_rows(void) {
    size_t len = 16 + task.len + result.len;
    uint8_t *framed = calloc(1, len);
    REQUIRE(framed != NULL);
    for (int i = 0; i < 8; i++) framed[i] = (uint8_t)(task.len >> (8 * i));
    memcpy(framed + 8, task.data, task.len);
    for (int i = 0; i < 8; i++) framed[8 + task.len + (size_t)i] = (uint8_t)(result.len >> (8 * i));
    memcpy(framed + 16 + task.len, result.data, result.len);
    struct ArrowArrayStream out = {0};
    CHECK_FAILS(LANCE_TASKS_INVALID_ARGUMENT, "mixed",
                lance_tasks_rows_to_table(framed, len, &out, &error));
    free(framed);
}

/* Damaged results that decode all the same must not crash plan, commit or abort. */
static void test_damaged_results_in_verbs(void) {
    uint8_t *framed = malloc(result.len + 8);
    REQUIRE(framed != NULL);
    for (int i = 0; i < 8; i++) framed[i] = (uint8_t)(result.len >> (8 * i));
    memcpy(framed + 8, result.data, result.len);
    size_t decoded = 0;
    for (size_t at = 0; at < result.len * 8; at += 13) {
        framed[8 + at / 8] ^= (uint8_t)(1 << at % 8);
        struct ArrowArrayStream table = {0}, out = {0};
        if (lance_tasks_rows_to_table(framed, result.len + 8, &table, NULL) == LANCE_TASKS_OK) {
            decoded++;
            LanceTasksError *error = NULL;
            LanceTasksStatus status =
                lance_tasks_plan(executor, job.data, job.len, &table, NULL, &out, &error);
            if (status == LANCE_TASKS_PANIC || status == LANCE_TASKS_INVALID_STATE)
                fprintf(stderr, "bit %zu: %s\n", at, lance_tasks_error_message(error));
            CHECK(status != LANCE_TASKS_PANIC && status != LANCE_TASKS_INVALID_STATE);
            drop_error(&error);
            release_stream(&out);
        }
        framed[8 + at / 8] ^= (uint8_t)(1 << at % 8);
    }
    CHECK(decoded > 0);
    free(framed);
}

int main(void) {
    executor = new_executor(1);
    char *dir = fresh_dir();
    job = prepare_rows(executor, dir, 20, 10);
    struct ArrowArrayStream tasks = plan(executor, job), table = {0};
    Rows rows = table_to_rows(&tasks);
    task = copy_of(rows.items[0], rows.items[0].len);
    LanceTasksError *error = NULL;
    if (lance_tasks_execute(executor, task.data, task.len, NULL, NULL, &table, &error) != 0) {
        fprintf(stderr, "execute: %s\n", lance_tasks_error_message(error));
        return 2;
    }
    Rows results = table_to_rows(&table);
    result = copy_of(results.items[0], results.items[0].len);

    run_test("contract_bytes", "prefixes of binary", test_prefixes_of_binary);
    run_test("contract_bytes", "flipped bits of binary", test_flipped_bits_of_binary);
    run_test("contract_bytes", "prefixes of JSON", test_prefixes_of_json);
    run_test("contract_bytes", "flipped bits of JSON", test_flipped_bits_of_json);
    run_test("contract_bytes", "prefixes of a result", test_prefixes_of_result);
    run_test("contract_bytes", "flipped bits of a result", test_flipped_bits_of_result);
    run_test("contract_bytes", "trailing bytes", test_trailing_bytes);
    run_test("contract_bytes", "both encodings say the same", test_both_encodings_say_the_same);
    run_test("contract_bytes", "another kind or format", test_another_kind);
    run_test("contract_bytes", "unknown operations and fields", test_unknown_operation_and_fields);
    run_test("contract_bytes", "deeply nested JSON", test_deeply_nested_json);
    run_test("contract_bytes", "frames of rows cut short", test_frames_of_rows);
    run_test("contract_bytes", "tasks and results mixed", test_mixed_rows);
    run_test("contract_bytes", "damaged results in plan", test_damaged_results_in_verbs);

    free_read(&result);
    free_read(&task);
    free_rows(&results);
    free_rows(&rows);
    lance_tasks_bytes_free(&job);
    free(dir);
    lance_tasks_executor_free(executor);
    return finish();
}
