/* Files of a spool: whole or not at all, one winner, nothing outside of the place. */
#include <stdlib.h>

#include "support.h"

#define TEXT(literal) (const uint8_t *)(literal), sizeof(literal) - 1

static LanceTasksFiles *open_files(const char *place) {
    LanceTasksFiles *files = NULL;
    CHECK_OK(lance_tasks_files_open((const uint8_t *)place, strlen(place), NULL, &files, &error));
    return files;
}

static void check_file(const LanceTasksFiles *files, const char *name, const char *expected) {
    LanceTasksBytes bytes = {UNTOUCHED, 7};
    CHECK_OK(lance_tasks_files_get(files, (const uint8_t *)name, strlen(name), &bytes, &error));
    if (expected == NULL) {
        CHECK(bytes.data == NULL && bytes.len == 0);
    } else {
        CHECK(bytes.data != NULL && bytes.len == strlen(expected));
        CHECK(bytes.data != NULL && memcmp(bytes.data, expected, bytes.len) == 0);
    }
    lance_tasks_bytes_free(&bytes);
}

static void test_life_of_a_file(void) {
    char *place = fresh_dir();
    LanceTasksFiles *files = open_files(place);
    REQUIRE(files != NULL);
    check_file(files, "results/a", NULL);
    CHECK_OK(lance_tasks_files_put(files, TEXT("results/a"), TEXT("one"), 0, &error));
    CHECK_OK(lance_tasks_files_put(files, TEXT("results/a"), TEXT("one"), 0, &error));
    CHECK_FAILS(LANCE_TASKS_ALREADY_EXISTS, "results/a",
                lance_tasks_files_put(files, TEXT("results/a"), TEXT("two"), 0, &error));
    check_file(files, "results/a", "one");
    CHECK_OK(lance_tasks_files_put(files, TEXT("results/a"), TEXT("two"), 1, &error));
    check_file(files, "results/a", "two");
    CHECK_OK(lance_tasks_files_put(files, TEXT("results/empty"), NULL, 0, 0, &error));
    check_file(files, "results/empty", "");

    LanceTasksBytes names = {UNTOUCHED, 7};
    CHECK_OK(lance_tasks_files_list(files, TEXT("results"), &names, &error));
    CHECK(names.len == 8 && names.data != NULL && memcmp(names.data, "a\0empty\0", 8) == 0);
    lance_tasks_bytes_free(&names);
    CHECK_OK(lance_tasks_files_list(files, TEXT("none"), &names, &error));
    CHECK(names.data == NULL && names.len == 0);

    for (int i = 0; i < 2; i++)
        CHECK_OK(lance_tasks_files_delete(files, TEXT("results/a"), &error));
    check_file(files, "results/a", NULL);
    /* Another handle sees the same. */
    LanceTasksFiles *other = open_files(place);
    check_file(other, "results/empty", "");
    lance_tasks_files_free(other);
    lance_tasks_files_free(files);
    free(place);
}

static void test_bad_input(void) {
    char *place = fresh_dir();
    LanceTasksFiles *files = open_files(place), *none = NULL;
    LanceTasksBytes out = {UNTOUCHED, 7};
    const LanceTasksStatus invalid = LANCE_TASKS_INVALID_ARGUMENT;
    CHECK_FAILS(invalid, "credentials",
                lance_tasks_files_open(TEXT("s3://key:secret@b/x"), NULL, &none, &error));
    CHECK_FAILS(invalid, "place", lance_tasks_files_open(NULL, 0, NULL, &none, &error));
    CHECK_FAILS(invalid, "out_files", lance_tasks_files_open(TEXT("x"), NULL, NULL, &error));
    CHECK(none == NULL);
    CHECK_FAILS(invalid, "name", lance_tasks_files_get(files, TEXT("../x"), &out, &error));
    CHECK_FAILS(invalid, "name", lance_tasks_files_get(files, NULL, 0, &out, &error));
    CHECK_FAILS(invalid, "name", lance_tasks_files_get(files, NULL, 3, &out, &error));
    CHECK_FAILS(invalid, "out_bytes", lance_tasks_files_get(files, TEXT("x"), NULL, &error));
    CHECK_FAILS(invalid, "data", lance_tasks_files_put(files, TEXT("x"), NULL, 3, 1, &error));
    CHECK_FAILS(invalid, "folder", lance_tasks_files_list(files, TEXT("/etc"), &out, &error));
    CHECK_FAILS(invalid, "name", lance_tasks_files_delete(files, TEXT("a/../b"), &error));
    CHECK_FAILS(invalid, "files", lance_tasks_files_get(NULL, TEXT("x"), &out, &error));
    CHECK_FAILS(invalid, "files", lance_tasks_files_put(NULL, TEXT("x"), TEXT("y"), 1, &error));
    CHECK_FAILS(invalid, "files", lance_tasks_files_list(NULL, TEXT("x"), &out, &error));
    CHECK_FAILS(invalid, "files", lance_tasks_files_delete(NULL, TEXT("x"), &error));
    CHECK(out.data == UNTOUCHED && out.len == 7);
    lance_tasks_files_free(files);
    free(place);
}

int main(void) {
    run_test("files", "the life of a file", test_life_of_a_file);
    run_test("files", "bad input", test_bad_input);
    return finish();
}
