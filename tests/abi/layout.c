/* Prints the size and the offsets of every public struct: what a compiled caller relies on. */
#include <stddef.h>
#include <stdio.h>

#include "lance_tasks/lance_tasks.h"

#define STRUCT(type) printf("%s size %zu align %zu\n", #type, sizeof(type), _Alignof(type))
#define FIELD(type, field)                                                                         \
    printf("%s.%s offset %zu size %zu\n", #type, #field, offsetof(type, field),                    \
           sizeof(((type *)0)->field))

int main(void) {
    STRUCT(LanceTasksStatus);

    STRUCT(LanceTasksBytes);
    FIELD(LanceTasksBytes, data);
    FIELD(LanceTasksBytes, len);

    STRUCT(LanceTasksExecutorOptions);
    FIELD(LanceTasksExecutorOptions, struct_size);
    FIELD(LanceTasksExecutorOptions, num_threads);
    FIELD(LanceTasksExecutorOptions, memory_budget);

    STRUCT(LanceTasksProgress);
    FIELD(LanceTasksProgress, struct_size);
    FIELD(LanceTasksProgress, kind);
    FIELD(LanceTasksProgress, task_id);
    FIELD(LanceTasksProgress, rows);
    FIELD(LanceTasksProgress, bytes);
    FIELD(LanceTasksProgress, message);

    STRUCT(LanceTasksCallOptions);
    FIELD(LanceTasksCallOptions, struct_size);
    FIELD(LanceTasksCallOptions, flags);
    FIELD(LanceTasksCallOptions, storage_options);
    FIELD(LanceTasksCallOptions, storage_options_len);
    FIELD(LanceTasksCallOptions, timeout_ms);
    FIELD(LanceTasksCallOptions, cancel);
    FIELD(LanceTasksCallOptions, progress);
    FIELD(LanceTasksCallOptions, progress_context);
    FIELD(LanceTasksCallOptions, progress_finalizer);

    STRUCT(struct ArrowSchema);
    STRUCT(struct ArrowArray);
    STRUCT(struct ArrowArrayStream);
    return 0;
}
