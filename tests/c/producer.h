/* An Arrow stream made by hand: columns `id` (int64) and `name` (utf8, every third row null). */
#ifndef LANCE_TASKS_TESTS_PRODUCER_H
#define LANCE_TASKS_TESTS_PRODUCER_H

#include "support.h"

/* What a stream does, and what was done to it. Must outlive the stream and everything it made. */
typedef struct Producer {
    /* Batches to yield; negative = without end. */
    long batches;
    long rows_per_batch;
    /* The first value of `id`. */
    long first;
    /* Fail instead of yielding this batch; negative = never. */
    long fail_at;
    bool fail_schema;
    /* Say `id` in the schema of the stream as this format; NULL = "l" (int64). */
    const char *id_format;
    /* Yield arrays with a child too few. */
    bool lose_child;
    /* Milliseconds to sleep before each batch. */
    long pause_ms;

    atomic_int streams_released;
    atomic_int schemas_made;
    atomic_int schemas_released;
    atomic_int arrays_made;
    atomic_int arrays_released;
    /* Set where something was released twice, or called after its release. */
    atomic_int misused;
} Producer;

/* A producer of `batches` batches that never fails. */
Producer producer(long batches, long rows_per_batch);
struct ArrowArrayStream producer_stream(Producer *self);
struct ArrowSchema producer_schema(Producer *self);
/* Stream released exactly once, everything that was made released exactly once. */
bool producer_is_clean(const Producer *self);

#endif
