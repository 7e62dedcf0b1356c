/* Races on one executor: many threads that execute, cancel, drop streams halfway and free tokens in
 * use, with a memory budget that lets only some of the tasks run at a time. LANCE_TASKS_SECONDS says how
 * long the first test goes on (default 2).
 *
 * Not for ThreadSanitizer: it sees no lock or atomic of a library that it has not instrumented, and takes
 * everything that passes through the library for a race. The locks themselves are checked by
 * tests/loom. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "producer.h"

#define THREADS 12
#define TASKS 24

static LanceTasksExecutor *executor;
static LanceTasksBytes planned_job, open_job, open_task;
static Rows planned;

/* A callback's context, on the heap: a call after its end would be a use after free for a sanitizer. */
typedef struct Watch {
    atomic_int events, begun, over, after_over, after_end, finalized;
} Watch;

/* What all threads have seen. */
static atomic_int wrong, executed, cancelled, dropped, refused;

static void on_progress(void *context, const LanceTasksProgress *event) {
    Watch *watch = context;
    if (atomic_load(&watch->over) != 0) atomic_fetch_add(&watch->after_over, 1);
    if (atomic_load(&watch->finalized) != 0) atomic_fetch_add(&watch->after_end, 1);
    atomic_fetch_add(&watch->events, 1);
    if (event->kind == LANCE_TASKS_PROGRESS_STARTED) atomic_fetch_add(&watch->begun, 1);
}

static void on_end(void *context) {
    Watch *watch = context;
    atomic_fetch_add(&watch->finalized, 1);
}

static void complain(const char *what, const LanceTasksError *error) {
    const char *message = lance_tasks_error_message(error);
    fprintf(stderr, "%s: %s\n", what, message ? message : "no message");
    atomic_fetch_add(&wrong, 1);
}

static LanceTasksCallOptions watched(Watch *watch, const LanceTasksCancelToken *cancel) {
    return (LanceTasksCallOptions){
        .struct_size = sizeof(LanceTasksCallOptions),
        .cancel = cancel,
        .progress = on_progress,
        .progress_context = watch,
        .progress_finalizer = on_end,
    };
}

/* The call, and the stream that it made, are done: nothing may come, and nothing be kept. */
static void no_more(Watch *watch, const char *what) {
    atomic_store(&watch->over, 1);
    if (atomic_load(&watch->finalized) != 1 || atomic_load(&watch->after_end) != 0) {
        fprintf(stderr, "%s: finalized %d times when it was done, %d events after\n", what,
                atomic_load(&watch->finalized), atomic_load(&watch->after_end));
        atomic_fetch_add(&wrong, 1);
    }
}

/* After a pause for what may come late. */
static void end_watch(Watch *watch, const char *what) {
    if (atomic_load(&watch->after_over) != 0) {
        fprintf(stderr, "%s: %d events after its end\n", what, atomic_load(&watch->after_over));
        atomic_fetch_add(&wrong, 1);
    }
    free(watch);
}

static Watch *new_watch(void) {
    Watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL) abort();
    return watch;
}

/* ---- random numbers and time, one state per thread ---- */

static uint64_t next(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static unsigned below(uint64_t *state, unsigned n) { return (unsigned)(next(state) % n); }

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double how_long(void) {
    const char *text = getenv("LANCE_TASKS_SECONDS");
    return text ? atof(text) : 2.0;
}

static void pause_us(unsigned microseconds) {
    struct timespec time = {0, (long)microseconds * 1000};
    nanosleep(&time, NULL);
}

/* ---- a thread that cancels others' tokens ---- */

/* Tokens that are given to calls right now, each behind a lock of its own: a token may be freed while a
 * call uses it, but not while another thread is about to cancel it. */
typedef struct Place {
    pthread_mutex_t lock;
    LanceTasksCancelToken *token;
} Place;

static Place places[THREADS];
static atomic_bool stop;

static void *cancel_at_random(void *context) {
    uint64_t random = 1;
    (void)context;
    while (!atomic_load(&stop)) {
        Place *place = &places[below(&random, THREADS)];
        pthread_mutex_lock(&place->lock);
        if (place->token != NULL) lance_tasks_cancel_token_cancel(place->token);
        pthread_mutex_unlock(&place->lock);
        pause_us(below(&random, 3000));
    }
    return NULL;
}

static void put_token(Place *place, LanceTasksCancelToken *token) {
    pthread_mutex_lock(&place->lock);
    LanceTasksCancelToken *before = place->token;
    place->token = token;
    pthread_mutex_unlock(&place->lock);
    lance_tasks_cancel_token_free(before);
}

/* ---- what each thread does ---- */

static void note(LanceTasksStatus status, LanceTasksError **error, bool may_cancel) {
    if (status == LANCE_TASKS_OK)
        atomic_fetch_add(&executed, 1);
    else if (may_cancel && status == LANCE_TASKS_CANCELLED)
        atomic_fetch_add(&cancelled, 1);
    else
        complain("execute", *error);
    drop_error(error);
}

/* A planned task; cancelled at any moment, or never where no token is given. */
static void one_planned(uint64_t *random, Place *place) {
    Watch *watch = new_watch();
    bool with_token = below(random, 3) > 0;
    LanceTasksCancelToken *token = with_token ? lance_tasks_cancel_token_new() : NULL;
    put_token(place, token);
    LanceTasksCallOptions options = watched(watch, token);
    LanceTasksBytes task = planned.items[below(random, (unsigned)planned.count)];
    struct ArrowArrayStream result = {0};
    LanceTasksError *error = NULL;
    LanceTasksStatus status =
        lance_tasks_execute(executor, task.data, task.len, NULL, &options, &result, &error);
    no_more(watch, "execute");
    if (status == LANCE_TASKS_OK && atomic_load(&watch->begun) != 1)
        complain("a task that was done was not begun exactly once", NULL);
    note(status, &error, with_token);
    release_stream(&result);
    put_token(place, NULL);
    end_watch(watch, "execute");
}

/* A task that is fed by a stream, which must be released exactly once whatever happens. */
static void one_fed(uint64_t *random, Place *place) {
    Watch *watch = new_watch();
    LanceTasksCancelToken *token = lance_tasks_cancel_token_new();
    Producer from = producer((long)below(random, 6), 50);
    from.pause_ms = (long)below(random, 2);
    struct ArrowArrayStream input = producer_stream(&from), result = {0};
    put_token(place, token);
    LanceTasksCallOptions options = watched(watch, token);
    LanceTasksError *error = NULL;
    LanceTasksStatus status = lance_tasks_execute(executor, open_task.data, open_task.len, &input,
                                                  &options, &result, &error);
    no_more(watch, "execute with a stream");
    note(status, &error, true);
    release_stream(&result);
    put_token(place, NULL);
    if (!producer_is_clean(&from)) atomic_fetch_add(&wrong, 1);
    end_watch(watch, "execute with a stream");
}

/* A whole plan, of which some results are read; the stream is dropped after that. */
static void one_stream(uint64_t *random, Place *place) {
    Watch *watch = new_watch();
    LanceTasksCancelToken *token = lance_tasks_cancel_token_new();
    put_token(place, token);
    LanceTasksCallOptions options = watched(watch, token);
    struct ArrowArrayStream tasks = rows_to_table(planned.items, planned.count), results = {0};
    LanceTasksError *error = NULL;
    LanceTasksStatus status =
        lance_tasks_execute_all(executor, &tasks, &options, &results, &error);
    /* The library keeps a reference of its own. */
    if (below(random, 3) == 0) put_token(place, NULL);
    if (status != LANCE_TASKS_OK) complain("execute_all", error);
    unsigned wanted = below(random, (unsigned)planned.count + 2), read = 0;
    bool ended = false;
    while (status == LANCE_TASKS_OK && read < wanted && !ended) {
        LanceTasksBytes row = {0};
        status = lance_tasks_next_row(&results, &row, &error);
        if (status != LANCE_TASKS_OK) complain("next_row", error);
        ended = row.data == NULL;
        read += !ended;
        lance_tasks_bytes_free(&row);
    }
    if (ended && read != planned.count) complain("a stream ended early", NULL);
    release_stream(&results);
    no_more(watch, "execute_all");
    drop_error(&error);
    atomic_fetch_add(&dropped, 1);
    put_token(place, NULL);
    if (below(random, 8) == 0) sleep_ms(20);
    end_watch(watch, "execute_all");
}

/* Calls that wait for nothing, among the others. */
static void one_other(uint64_t *random) {
    LanceTasksError *error = NULL;
    if (below(random, 2) == 0) {
        struct ArrowArrayStream tasks = {0};
        if (lance_tasks_plan(executor, planned_job.data, planned_job.len, NULL, NULL, &tasks,
                             &error) != LANCE_TASKS_OK)
            complain("plan", error);
        release_stream(&tasks);
    } else {
        struct ArrowArrayStream result = {0};
        if (lance_tasks_execute(executor, open_task.data, 9, NULL, NULL, &result, &error) !=
            LANCE_TASKS_DECODE)
            complain("half a task", error);
        atomic_fetch_add(&refused, 1);
    }
    drop_error(&error);
}

typedef struct Worker {
    pthread_t thread;
    uint64_t random;
    Place *place;
    double end;
} Worker;

static void *everything(void *context) {
    Worker *self = context;
    do {
        switch (below(&self->random, 5)) {
        case 0:
        case 1: one_planned(&self->random, self->place); break;
        case 2: one_fed(&self->random, self->place); break;
        case 3: one_stream(&self->random, self->place); break;
        default: one_other(&self->random);
        }
        /* On a slow machine longer, until there was something to see. */
    } while (seconds() < self->end || atomic_load(&executed) == 0 || atomic_load(&cancelled) == 0);
    return NULL;
}

static void run_threads(void *(*body)(void *)) {
    static Worker workers[THREADS];
    double end = seconds() + how_long();
    for (int i = 0; i < THREADS; i++) {
        workers[i].random = 1000 + (uint64_t)i;
        workers[i].place = &places[i];
        workers[i].end = end;
        REQUIRE(pthread_create(&workers[i].thread, NULL, body, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(workers[i].thread, NULL);
}

static void reset(void) {
    atomic_int *counters[] = {&wrong, &executed, &cancelled, &dropped, &refused};
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++) atomic_store(counters[i], 0);
}

static void test_everything_at_once(void) {
    reset();
    pthread_t canceller;
    atomic_store(&stop, false);
    REQUIRE(pthread_create(&canceller, NULL, cancel_at_random, NULL) == 0);
    run_threads(everything);
    atomic_store(&stop, true);
    pthread_join(canceller, NULL);
    CHECK(atomic_load(&wrong) == 0);
    /* Everything that is raced has happened, or nothing was tested. */
    CHECK(atomic_load(&executed) > 0 && atomic_load(&dropped) > 0 && atomic_load(&refused) > 0);
    CHECK(atomic_load(&cancelled) > 0);
    fprintf(stderr, "executed %d, cancelled %d, streams dropped %d, refused %d\n",
            atomic_load(&executed), atomic_load(&cancelled), atomic_load(&dropped),
            atomic_load(&refused));
}

/* Whatever was cancelled, while it waited for memory too: the budget is whole, so that as many tasks as
 * there are threads still run, each of them to its end. */
static void test_the_budget_is_whole_afterwards(void) {
    reset();
    struct ArrowArrayStream tasks = rows_to_table(planned.items, planned.count), results = {0};
    CHECK_OK(lance_tasks_execute_all(executor, &tasks, NULL, &results, &error));
    Rows rows = table_to_rows(&results);
    CHECK(rows.count == planned.count);
    LanceTasksBytes outcome = {0};
    struct ArrowArrayStream table = rows_to_table(rows.items, rows.count);
    CHECK_OK(lance_tasks_commit(executor, planned_job.data, planned_job.len, &table, NULL, &outcome,
                                &error));
    if (outcome.data != NULL) CHECK(json_uint(outcome, "rows") == TASKS * 10);
    lance_tasks_bytes_free(&outcome);
    free_rows(&rows);
}

/* ---- a token that many calls share ---- */

static LanceTasksCancelToken *shared_token;
static atomic_int ready;

static void *endless(void *context) {
    (void)context;
    Watch *watch = new_watch();
    Producer from = producer(-1, 20);
    from.pause_ms = 1;
    struct ArrowArrayStream input = producer_stream(&from), result = {0};
    LanceTasksCallOptions options = watched(watch, shared_token);
    LanceTasksError *error = NULL;
    atomic_fetch_add(&ready, 1);
    LanceTasksStatus status = lance_tasks_execute(executor, open_task.data, open_task.len, &input,
                                                  &options, &result, &error);
    no_more(watch, "an endless task");
    if (status != LANCE_TASKS_CANCELLED) complain("an endless task", error);
    drop_error(&error);
    release_stream(&result);
    if (!producer_is_clean(&from)) atomic_fetch_add(&wrong, 1);
    end_watch(watch, "an endless task");
    return NULL;
}

/* Tasks without end, more than the executor has threads: those that run and those that wait for a
 * thread or for memory all return once the token is cancelled, by several threads at once. */
static void *cancel_shared(void *context) {
    (void)context;
    lance_tasks_cancel_token_cancel(shared_token);
    return NULL;
}

static void test_one_token_for_many(void) {
    reset();
    for (int round = 0; round < 4; round++) {
        shared_token = lance_tasks_cancel_token_new();
        atomic_store(&ready, 0);
        pthread_t threads[THREADS], cancellers[4];
        for (int i = 0; i < THREADS; i++)
            REQUIRE(pthread_create(&threads[i], NULL, endless, NULL) == 0);
        CHECK(wait_until(&ready, THREADS));
        sleep_ms(round * 30);
        for (int i = 0; i < 4; i++)
            REQUIRE(pthread_create(&cancellers[i], NULL, cancel_shared, NULL) == 0);
        for (int i = 0; i < 4; i++) pthread_join(cancellers[i], NULL);
        /* While calls still look at it. */
        lance_tasks_cancel_token_free(shared_token);
        for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    }
    CHECK(atomic_load(&wrong) == 0);
}

/* ---- the end of the executor ---- */

static void *drop_stream(void *context) {
    struct ArrowArrayStream *results = context;
    LanceTasksBytes row = {0};
    if (lance_tasks_next_row(results, &row, NULL) != LANCE_TASKS_OK) atomic_fetch_add(&wrong, 1);
    lance_tasks_bytes_free(&row);
    release_stream(results);
    return NULL;
}

/* Streams keep what they need: the executor is freed while threads read and drop them. */
static void test_streams_dropped_while_the_executor_goes(void) {
    reset();
    for (int round = 0; round < 4; round++) {
        LanceTasksExecutor *own = new_executor(2);
        struct ArrowArrayStream results[4] = {0};
        pthread_t threads[4];
        Watch *watches[4];
        for (int i = 0; i < 4; i++) {
            watches[i] = new_watch();
            LanceTasksCallOptions options = watched(watches[i], NULL);
            struct ArrowArrayStream tasks = rows_to_table(planned.items, planned.count);
            CHECK_OK(lance_tasks_execute_all(own, &tasks, &options, &results[i], &error));
        }
        for (int i = 0; i < 4; i++)
            REQUIRE(pthread_create(&threads[i], NULL, drop_stream, &results[i]) == 0);
        lance_tasks_executor_free(own);
        for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < 4; i++) no_more(watches[i], "a dropped stream");
        sleep_ms(20);
        for (int i = 0; i < 4; i++) end_watch(watches[i], "a dropped stream");
    }
    CHECK(atomic_load(&wrong) == 0);
}

int main(void) {
    /* A write takes 8 MiB at least: two run at a time, the others on the pool wait for memory. */
    LanceTasksExecutorOptions options = {
        .struct_size = sizeof options, .num_threads = 4, .memory_budget = 20 << 20};
    if (lance_tasks_executor_new(&options, &executor, NULL) != LANCE_TASKS_OK) return 2;
    for (int i = 0; i < THREADS; i++) pthread_mutex_init(&places[i].lock, NULL);
    char *dir = fresh_dir();
    planned_job = prepare_rows(executor, dir, TASKS * 10, 10);
    struct ArrowArrayStream tasks = plan(executor, planned_job);
    planned = table_to_rows(&tasks);
    Producer from = producer(0, 0);
    struct ArrowSchema schema = producer_schema(&from);
    char *spec = path_of("{\"operation\": \"write\", \"uri\": \"%s/open.lance\"}", dir);
    open_job = prepare(executor, spec, &schema);
    free(spec);
    if (lance_tasks_job_task(open_job.data, open_job.len, (const uint8_t *)"a", 1, &open_task,
                             NULL) != LANCE_TASKS_OK)
        return 2;

    run_test("contract_races", "everything at once", test_everything_at_once);
    run_test("contract_races", "one token for many calls", test_one_token_for_many);
    run_test("contract_races", "streams dropped while the executor goes",
             test_streams_dropped_while_the_executor_goes);
    run_test("contract_races", "the budget is whole afterwards",
             test_the_budget_is_whole_afterwards);

    free_rows(&planned);
    lance_tasks_bytes_free(&open_task);
    lance_tasks_bytes_free(&open_job);
    lance_tasks_bytes_free(&planned_job);
    free(dir);
    lance_tasks_executor_free(executor);
    return finish();
}
