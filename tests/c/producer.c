#include "producer.h"

#include <errno.h>
#include <stdlib.h>

static _Noreturn void out_of_memory(void) {
    fprintf(stderr, "producer: out of memory\n");
    exit(2);
}

static void *allocate(size_t len) {
    void *memory = calloc(1, len ? len : 1);
    if (memory == NULL) out_of_memory();
    return memory;
}

/* Children have no release of their own to count: the parent frees them, as the format allows. */
static void release_child_schema(struct ArrowSchema *schema) { schema->release = NULL; }

static void release_schema(struct ArrowSchema *schema) {
    Producer *self = schema->private_data;
    atomic_fetch_add(&self->schemas_released, 1);
    for (int64_t i = 0; i < schema->n_children; i++) {
        if (schema->children[i]->release != NULL) schema->children[i]->release(schema->children[i]);
        free(schema->children[i]);
    }
    free(schema->children);
    schema->release = NULL;
}

static struct ArrowSchema *child_schema(const char *name, const char *format) {
    struct ArrowSchema *child = allocate(sizeof *child);
    child->format = format;
    child->name = name;
    child->flags = ARROW_FLAG_NULLABLE;
    child->release = release_child_schema;
    return child;
}

struct ArrowSchema producer_schema(Producer *self) {
    struct ArrowSchema schema = {.format = "+s", .name = "", .n_children = 2};
    schema.children = allocate(2 * sizeof *schema.children);
    schema.children[0] = child_schema("id", self->id_format ? self->id_format : "l");
    schema.children[1] = child_schema("name", "u");
    schema.private_data = self;
    schema.release = release_schema;
    atomic_fetch_add(&self->schemas_made, 1);
    return schema;
}

static void release_child_array(struct ArrowArray *array) {
    for (int64_t i = 0; i < array->n_buffers; i++) free((void *)(uintptr_t)array->buffers[i]);
    free(array->buffers);
    array->release = NULL;
}

static void release_array(struct ArrowArray *array) {
    Producer *self = array->private_data;
    atomic_fetch_add(&self->arrays_released, 1);
    for (int64_t i = 0; i < 2; i++) {
        if (array->children[i]->release != NULL) array->children[i]->release(array->children[i]);
        free(array->children[i]);
    }
    free(array->children);
    free(array->buffers);
    array->release = NULL;
}

static struct ArrowArray *child_array(long rows, int buffers) {
    struct ArrowArray *child = allocate(sizeof *child);
    child->length = rows;
    child->n_buffers = buffers;
    child->buffers = allocate((size_t)buffers * sizeof *child->buffers);
    child->release = release_child_array;
    return child;
}

static bool name_is_null(long id) { return id % 3 == 1; }

static struct ArrowArray *ids(long first, long rows) {
    struct ArrowArray *child = child_array(rows, 2);
    int64_t *values = allocate((size_t)rows * sizeof *values);
    for (long i = 0; i < rows; i++) values[i] = first + i;
    child->buffers[1] = values;
    return child;
}

static struct ArrowArray *names(long first, long rows) {
    struct ArrowArray *child = child_array(rows, 3);
    uint8_t *valid = allocate((size_t)(rows + 7) / 8);
    int32_t *offsets = allocate((size_t)(rows + 1) * sizeof *offsets);
    char *text = allocate((size_t)rows * 32);
    for (long i = 0; i < rows; i++) {
        int written = 0;
        if (name_is_null(first + i)) {
            child->null_count++;
        } else {
            valid[i / 8] |= (uint8_t)(1 << (i % 8));
            written = snprintf(text + offsets[i], 32, "name-%ld", first + i);
        }
        offsets[i + 1] = offsets[i] + written;
    }
    child->buffers[0] = valid;
    child->buffers[1] = offsets;
    child->buffers[2] = text;
    return child;
}

/* Where a stream stands. */
typedef struct Position {
    Producer *producer;
    long batch;
    bool failed;
} Position;

static int get_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    Position *at = stream->private_data;
    if (at->producer->fail_schema) {
        at->failed = true;
        return EIO;
    }
    *out = producer_schema(at->producer);
    return 0;
}

static int get_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    Position *at = stream->private_data;
    Producer *self = at->producer;
    memset(out, 0, sizeof *out);
    if (self->pause_ms > 0) sleep_ms(self->pause_ms);
    if (at->batch == self->fail_at) {
        at->failed = true;
        return EIO;
    }
    if (self->batches >= 0 && at->batch >= self->batches) return 0;
    long first = self->first + at->batch * self->rows_per_batch;
    at->batch++;
    out->length = self->rows_per_batch;
    out->n_buffers = 1;
    out->buffers = allocate(sizeof *out->buffers);
    out->n_children = self->lose_child ? 1 : 2;
    out->children = allocate(2 * sizeof *out->children);
    out->children[0] = ids(first, self->rows_per_batch);
    out->children[1] = names(first, self->rows_per_batch);
    out->private_data = self;
    out->release = release_array;
    atomic_fetch_add(&self->arrays_made, 1);
    return 0;
}

static const char *get_last_error(struct ArrowArrayStream *stream) {
    Position *at = stream->private_data;
    return at->failed ? "the producer gave up" : NULL;
}

static void release_producer_stream(struct ArrowArrayStream *stream) {
    Position *at = stream->private_data;
    if (atomic_fetch_add(&at->producer->streams_released, 1) > 0)
        atomic_fetch_add(&at->producer->misused, 1);
    free(at);
    stream->private_data = NULL;
    stream->release = NULL;
}

Producer producer(long batches, long rows_per_batch) {
    return (Producer){.batches = batches, .rows_per_batch = rows_per_batch, .fail_at = -1};
}

struct ArrowArrayStream producer_stream(Producer *self) {
    Position *at = allocate(sizeof *at);
    at->producer = self;
    return (struct ArrowArrayStream){
        .get_schema = get_schema,
        .get_next = get_next,
        .get_last_error = get_last_error,
        .release = release_producer_stream,
        .private_data = at,
    };
}

bool producer_is_clean(const Producer *self) {
    /* Buffers may be let go on another thread, shortly after the call. */
    bool clean = wait_until(&self->streams_released, 1) &&
                 wait_until(&self->schemas_released, atomic_load(&self->schemas_made)) &&
                 wait_until(&self->arrays_released, atomic_load(&self->arrays_made)) &&
                 atomic_load(&self->misused) == 0;
    if (!clean) {
        fprintf(stderr, "streams released %d, schemas %d of %d, arrays %d of %d, misused %d\n",
                atomic_load(&self->streams_released), atomic_load(&self->schemas_released),
                atomic_load(&self->schemas_made), atomic_load(&self->arrays_released),
                atomic_load(&self->arrays_made), atomic_load(&self->misused));
    }
    return clean;
}
