/* What the C tests share: checks, files, and calls that must succeed. */
#ifndef LANCE_TASKS_TESTS_SUPPORT_H
#define LANCE_TASKS_TESTS_SUPPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lance_tasks/lance_tasks.h"

/* Run one test and print `ok` or `FAILED` with its name. */
void run_test(const char *program, const char *name, void (*test)(void));
/* The program's exit code: 0 where every test passed. */
int finish(void);
void check_failed(const char *file, int line, const char *what, const char *detail);
/* Free `*error`, set it to NULL. */
void drop_error(LanceTasksError **error);

/* Note a failure and go on. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, NULL);                      \
    } while (0)

/* Note a failure and leave the test. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            check_failed(__FILE__, __LINE__, #condition, NULL);                                    \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* A call whose last argument is `&error`: must succeed and leave `error` NULL. */
#define CHECK_OK(call)                                                                             \
    do {                                                                                           \
        LanceTasksError *error = NULL;                                                             \
        check_ok((call), &error, __FILE__, __LINE__, #call);                                       \
    } while (0)

/* A call whose last argument is `&error`: must fail with `code` and a message holding `text`. */
#define CHECK_FAILS(code, text, call)                                                              \
    do {                                                                                           \
        LanceTasksError *error = NULL;                                                             \
        check_fails((call), (code), (text), &error, __FILE__, __LINE__, #call);                    \
    } while (0)

bool check_ok(LanceTasksStatus status, LanceTasksError **error, const char *file, int line,
              const char *what);
bool check_fails(LanceTasksStatus status, LanceTasksStatus code, const char *text,
                 LanceTasksError **error, const char *file, int line, const char *what);

/* Files. Paths are made by printf. Failing ends the program. */
char *path_of(const char *format, ...) __attribute__((format(printf, 1, 2)));
void write_file(const char *path, const void *data, size_t len);
LanceTasksBytes read_file(const char *path); /* freed by free_read */
void free_read(LanceTasksBytes *bytes);
void write_csv(const char *path, long first, long rows);
bool file_exists(const char *path);
/* The folder that tests may write in: the environment's LANCE_TASKS_TEST_DIR. */
const char *test_dir(void);
/* A folder below test_dir that does not exist yet. */
char *fresh_dir(void);

/* The first `"key": <value>` in a JSON text, anywhere in it. */
uint64_t json_uint(LanceTasksBytes json, const char *key);
bool json_bool(LanceTasksBytes json, const char *key);
bool bytes_contain(LanceTasksBytes bytes, const char *text);

/* Calls that must succeed; else the program ends. */
LanceTasksExecutor *new_executor(uint32_t threads);
LanceTasksBytes prepare(const LanceTasksExecutor *executor, const char *spec,
                        struct ArrowSchema *schema);
/* A write into the new dataset DIR/data.lance from DIR/seed.lance, which is made of a CSV file of `rows`
 * rows: a source whose row count is known is cut into tasks, of `rows_per_task` rows each. */
LanceTasksBytes prepare_rows(const LanceTasksExecutor *executor, const char *dir, long rows,
                             long rows_per_task);
/* Data files of DIR/data.lance. */
size_t count_files(const char *dir);
struct ArrowArrayStream plan(const LanceTasksExecutor *executor, LanceTasksBytes job);

/* The items of lance_tasks_table_to_rows, as views into `framed`. */
typedef struct Rows {
    LanceTasksBytes framed;
    size_t count;
    LanceTasksBytes *items;
} Rows;
Rows table_to_rows(struct ArrowArrayStream *table);
void free_rows(Rows *rows);
/* A table from loose items. */
struct ArrowArrayStream rows_to_table(const LanceTasksBytes *items, size_t count);
/* Release, where not released. */
void release_stream(struct ArrowArrayStream *stream);
/* Wait up to ten seconds until `*counter` is `value`. */
bool wait_until(const atomic_int *counter, int value);
void sleep_ms(long milliseconds);

/* A pointer that no output may keep on success, and must keep on failure. */
#define UNTOUCHED ((const uint8_t *)(uintptr_t)0x5a5a5a5a)

#endif
