// SPDX-License-Identifier: Apache-2.0
//
// Part of lance_tasks.hpp: options, tables, and the executor with its verbs.
#ifndef LANCE_TASKS_EXECUTOR_HPP
#define LANCE_TASKS_EXECUTOR_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "values.hpp"

namespace lance_tasks {

/// An owned Arrow stream. Move-only; released at its end.
class Stream {
public:
    Stream() noexcept = default;
    /// Takes the stream over; `stream` is left released.
    explicit Stream(ArrowArrayStream& stream) noexcept : stream_(stream) {
        stream.release = nullptr;
    }
    Stream(Stream&& other) noexcept : Stream(other.stream_) {}
    Stream& operator=(Stream&& other) noexcept {
        if (this != &other) {
            reset();
            stream_ = std::exchange(other.stream_, ArrowArrayStream{});
        }
        return *this;
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { reset(); }

    /// Whether there is a stream, and nobody took it over.
    explicit operator bool() const noexcept { return stream_.release != nullptr; }
    /// For functions that take a stream over (Arrow C++: `arrow::ImportRecordBatchReader`).
    [[nodiscard]] ArrowArrayStream* get() noexcept { return &stream_; }
    /// A place for a function to write a stream to; releases what is there.
    [[nodiscard]] ArrowArrayStream* out() noexcept {
        reset();
        return &stream_;
    }
    void reset() noexcept {
        if (stream_.release != nullptr) stream_.release(&stream_);
        stream_ = ArrowArrayStream{};
    }

private:
    ArrowArrayStream stream_{};
};

namespace detail {

/// Items each behind its length, as lance_tasks_rows_to_table takes them.
template <typename Items>
std::string frame(const Items& items) {
    std::string out;
    for (const auto& item : items) {
        const std::uint64_t length = item.bytes().size();
        for (int i = 0; i < 8; ++i) out += static_cast<char>(length >> (8 * i) & 0xff);
        out += item.bytes();
    }
    return out;
}

template <typename Table, typename Items>
Table to_table(const Items& items) {
    Table table;
    const std::string framed = frame(items);
    LanceTasksError* error = nullptr;
    check(lance_tasks_rows_to_table(u8(framed), framed.size(), table.out(), &error), error);
    return table;
}

} // namespace detail

/// A table of tasks, as an Arrow stream.
class TaskTable : public Stream {
public:
    using Stream::Stream;

    /// All tasks; consumes the table.
    [[nodiscard]] std::vector<Task> tasks() {
        Bytes framed;
        LanceTasksError* error = nullptr;
        detail::check(lance_tasks_table_to_rows(get(), framed.out(), &error), error);
        std::vector<Task> tasks;
        for (std::string_view rest = framed.view(); rest.size() >= 8;) {
            std::uint64_t length = 0;
            for (std::size_t i = 8; i-- > 0;)
                length = length << 8 | static_cast<unsigned char>(rest[i]);
            tasks.emplace_back(rest.substr(8, static_cast<std::size_t>(length)));
            rest.remove_prefix(8 + static_cast<std::size_t>(length));
        }
        return tasks;
    }
};

/// The results of `Executor::execute_all`: an Arrow stream, or a range of `Result` in the order of
/// completion. Destroying it early cancels what is not done, and waits for it.
class ResultTable : public Stream {
public:
    using Stream::Stream;

    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Result;
        using difference_type = std::ptrdiff_t;
        using pointer = Result*;
        using reference = Result&;

        iterator() noexcept = default;
        explicit iterator(ResultTable* table) : table_(table) { ++*this; }
        [[nodiscard]] Result& operator*() const { return *current_; }
        [[nodiscard]] Result* operator->() const { return current_.get(); }
        iterator& operator++() {
            auto next = table_->next();
            current_ = next ? std::make_shared<Result>(std::move(*next)) : nullptr;
            return *this;
        }
        void operator++(int) { ++*this; }
        friend bool operator==(const iterator& a, const iterator& b) noexcept {
            return a.current_ == b.current_;
        }
        friend bool operator!=(const iterator& a, const iterator& b) noexcept { return !(a == b); }

    private:
        ResultTable* table_ = nullptr;
        std::shared_ptr<Result> current_;
    };

    /// The next result, waiting for it; nothing at the end.
    [[nodiscard]] std::optional<Result> next() {
        Bytes row;
        LanceTasksError* error = nullptr;
        detail::check(lance_tasks_next_row(get(), row.out(), &error), error);
        if (row.empty()) return std::nullopt;
        return Result(row.str());
    }
    [[nodiscard]] iterator begin() { return iterator(this); }
    [[nodiscard]] iterator end() noexcept { return {}; }
};

/// Cancels the calls that were given it; any thread may, at any time. Copies are the same token.
class CancelToken {
public:
    CancelToken() : token_(lance_tasks_cancel_token_new(), lance_tasks_cancel_token_free) {}
    void cancel() const noexcept { lance_tasks_cancel_token_cancel(token_.get()); }
    [[nodiscard]] const LanceTasksCancelToken* get() const noexcept { return token_.get(); }

private:
    std::shared_ptr<LanceTasksCancelToken> token_;
};

/// One event of a task; the views hold during the callback.
struct Progress {
    enum class Kind : std::uint32_t {
        started = LANCE_TASKS_PROGRESS_STARTED,
        advanced = LANCE_TASKS_PROGRESS_ADVANCED,
        finished = LANCE_TASKS_PROGRESS_FINISHED,
        failed = LANCE_TASKS_PROGRESS_FAILED,
        stage = LANCE_TASKS_PROGRESS_STAGE,
    };
    Kind kind;
    std::string_view task_id;
    /// Done so far by this task.
    std::uint64_t rows, bytes;
    /// The stage or the error, empty else.
    std::string_view message;
};

/// What holds for one call. May be used for any number of calls.
class CallOptions {
public:
    using ProgressFn = std::function<void(const Progress&)>;

    /// Lance's storage options (credentials, endpoint, region); kept for the call only. Those of one
    /// base of the dataset are named `base:<path>:<option>`.
    CallOptions& storage_options(const std::map<std::string, std::string>& options) {
        storage_options_ = options.empty() ? std::string() : detail::json_object(options);
        return *this;
    }
    /// Fail with `Code::deadline_exceeded` after this; 0 = no limit.
    CallOptions& timeout(std::chrono::milliseconds timeout) {
        timeout_ms_ = timeout.count() > 0 ? static_cast<std::uint64_t>(timeout.count()) : 0;
        return *this;
    }
    CallOptions& cancel(CancelToken token) {
        cancel_ = std::move(token);
        return *this;
    }
    /// Called on any thread, several at once; must not block or call the library. What it throws is
    /// ignored.
    CallOptions& progress(ProgressFn callback) {
        progress_ = std::move(callback);
        return *this;
    }
    /// `commit` may commit a part of the job's tasks, where the operation allows it.
    CallOptions& partial(bool partial = true) {
        partial_ = partial;
        return *this;
    }
    /// The same storage, but without timeout, cancel token, progress and partial commit.
    [[nodiscard]] CallOptions storage_only() const {
        CallOptions options;
        options.storage_options_ = storage_options_;
        return options;
    }

    /// For a call of the C interface, which must follow: it ends the progress context by the
    /// finalizer. Points into this object.
    [[nodiscard]] LanceTasksCallOptions c_options() const {
        LanceTasksCallOptions options{};
        options.struct_size = sizeof options;
        options.flags = partial_ ? LANCE_TASKS_FLAG_PARTIAL : 0;
        options.storage_options = detail::u8(storage_options_);
        options.storage_options_len = storage_options_.size();
        options.timeout_ms = timeout_ms_;
        options.cancel = cancel_ ? cancel_->get() : nullptr;
        if (progress_) {
            options.progress = &CallOptions::report;
            options.progress_context = new ProgressFn(progress_);
            options.progress_finalizer = &CallOptions::finalize;
        }
        return options;
    }

private:
    static void report(void* context, const LanceTasksProgress* event) noexcept {
        try {
            (*static_cast<ProgressFn*>(context))(Progress{static_cast<Progress::Kind>(event->kind),
                                                          event->task_id, event->rows, event->bytes,
                                                          event->message});
        } catch (...) {
            // Unwinding may not cross the C interface, and a broken report is no broken task.
        }
    }
    static void finalize(void* context) noexcept { delete static_cast<ProgressFn*>(context); }

    std::string storage_options_;
    std::uint64_t timeout_ms_ = 0;
    std::optional<CancelToken> cancel_;
    ProgressFn progress_;
    bool partial_ = false;
};

/// What a commit did.
struct Outcome {
    explicit Outcome(std::string text) : json(std::move(text)) {
        const detail::Json outcome(json);
        job_id = outcome.at("job_id").string();
        operation = outcome.at("operation").string();
        uri = outcome.at("uri").string();
        version = outcome.at("version").uint();
        rows = outcome.at("rows").uint();
        already_committed = outcome.at("already_committed").boolean();
        complete = outcome.at("complete").boolean();
        outcome.at("metrics").each_member(
            [this](const std::string& name, const detail::Json& value) {
                metrics[name] = value.uint();
            });
    }
    /// All of it, as the library gave it.
    std::string json;
    std::string job_id, operation, uri;
    /// The version that the commit made, now or earlier.
    std::uint64_t version;
    /// Rows of the dataset at `version`.
    std::uint64_t rows;
    /// Whether the job had been committed before this call.
    bool already_committed;
    /// False after a commit of a part of the tasks.
    bool complete;
    /// Counts of the operation; may be empty where the commit was made earlier.
    std::map<std::string, std::uint64_t> metrics;
};

/// What an abort did.
struct AbortReport {
    explicit AbortReport(const std::string& json)
        : files_removed(detail::Json(json).at("files_removed").uint()),
          bytes_removed(detail::Json(json).at("bytes_removed").uint()),
          kept(detail::Json(json).at("kept").uint()) {}
    std::uint64_t files_removed, bytes_removed;
    /// Files that a version of the dataset refers to, or other jobs may (managed blobs).
    std::uint64_t kept;
};

/// How an executor is made; zero means default.
struct ExecutorOptions {
    /// Threads that run tasks; default: the CPUs this process may use.
    std::uint32_t num_threads = 0;
    /// Bytes that the tasks running at one time may hold; default: half of the machine's memory.
    std::uint64_t memory_budget = 0;
};

/// Runs the verbs; one per process is enough. Every member function is thread-safe, and throws Error.
class Executor {
public:
    explicit Executor(const ExecutorOptions& options = {})
        : executor_(make(options), lance_tasks_executor_free) {}

    [[nodiscard]] const LanceTasksExecutor* get() const noexcept { return executor_.get(); }

    /// Validate a spec (JSON or binary), pin the dataset's version and resolve every default. `schema`
    /// is the input's for a `write` fed by streams; taken over, also on failure.
    [[nodiscard]] Job prepare(std::string_view spec, ArrowSchema* schema = nullptr,
                              const CallOptions& options = {}) const {
        Bytes job;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_prepare(get(), detail::u8(spec), spec.size(), schema, &call,
                                          job.out(), &error),
                      error);
        return Job(job.view());
    }
    [[nodiscard]] Job prepare(std::string_view spec, const CallOptions& options) const {
        return prepare(spec, nullptr, options);
    }

    /// What is still to do, given the results so far. Empty: ready to commit.
    [[nodiscard]] std::vector<Task> plan(const Job& job, const std::vector<Result>& results = {},
                                         const CallOptions& options = {}) const {
        return plan_table(job, detail::to_table<ResultTable>(results), options).tasks();
    }
    /// As `plan`, with tables in and out.
    [[nodiscard]] TaskTable plan_table(const Job& job, Stream results = {},
                                       const CallOptions& options = {}) const {
        TaskTable tasks;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_plan(get(), detail::u8(job.bytes()), job.bytes().size(),
                                       results ? results.get() : nullptr, &call, tasks.out(),
                                       &error),
                      error);
        return tasks;
    }

    /// Execute one task. `input` is the partition's data for the task of an open job; taken over, also
    /// on failure.
    [[nodiscard]] Result execute(const Task& task, ArrowArrayStream* input = nullptr,
                                 const CallOptions& options = {}) const {
        ResultTable result;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_execute(get(), detail::u8(task.bytes()), task.bytes().size(),
                                          input, &call, result.out(), &error),
                      error);
        return std::move(*result.next());
    }
    [[nodiscard]] Result execute(const Task& task, const CallOptions& options) const {
        return execute(task, nullptr, options);
    }

    /// The result of a task that another Lance client executed, from that client's own description
    /// (JSON) of what it made. Writes nothing.
    [[nodiscard]] Result adopt(const Job& job, const Task& task, std::string_view made,
                               const CallOptions& options = {}) const {
        ResultTable result;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_adopt(get(), detail::u8(job.bytes()), job.bytes().size(),
                                        detail::u8(task.bytes()), task.bytes().size(),
                                        detail::u8(made), made.size(), &call, result.out(), &error),
                      error);
        return std::move(*result.next());
    }

    /// Execute tasks on the executor's threads. Returns at once; a failed task is a `Result` that is
    /// not `ok()`.
    [[nodiscard]] ResultTable execute_all(const std::vector<Task>& tasks,
                                          const CallOptions& options = {}) const {
        return execute_all(detail::to_table<TaskTable>(tasks), options);
    }
    [[nodiscard]] ResultTable execute_all(TaskTable tasks, const CallOptions& options = {}) const {
        ResultTable results;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_execute_all(get(), tasks.get(), &call, results.out(), &error),
                      error);
        return results;
    }

    /// Read one task of an operation that reads (`take_blobs`): its data as an Arrow stream, made as it
    /// is pulled. Releasing it early cancels what is not done, and waits for it.
    [[nodiscard]] Stream read(const Task& task, const CallOptions& options = {}) const {
        Stream data;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_read(get(), detail::u8(task.bytes()), task.bytes().size(), &call,
                                       data.out(), &error),
                      error);
        return data;
    }
    /// Read tasks, at least one: the data of one after the other in their order, some read ahead.
    [[nodiscard]] Stream read_all(TaskTable tasks, const CallOptions& options = {}) const {
        Stream data;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(lance_tasks_read_all(get(), tasks.get(), &call, data.out(), &error), error);
        return data;
    }
    [[nodiscard]] Stream read_all(const std::vector<Task>& tasks,
                                  const CallOptions& options = {}) const {
        return read_all(detail::to_table<TaskTable>(tasks), options);
    }
    /// `prepare`, `plan` and `read_all` of a spec that reads.
    [[nodiscard]] Stream read(std::string_view spec, const CallOptions& options = {}) const {
        return read_all(plan_table(prepare(spec, options), {}, options), options);
    }

    /// Commit the job: verified, exactly once, safe to repeat.
    Outcome commit(const Job& job, const std::vector<Result>& results,
                   const CallOptions& options = {}) const {
        return commit(job, detail::to_table<ResultTable>(results), options);
    }
    Outcome commit(const Job& job, Stream results, const CallOptions& options = {}) const {
        return Outcome(ending(lance_tasks_commit, job, std::move(results), options));
    }

    /// Delete what attempts that were not committed have written.
    AbortReport abort(const Job& job, const std::vector<Result>& results,
                      const CallOptions& options = {}) const {
        return abort(job, detail::to_table<ResultTable>(results), options);
    }
    AbortReport abort(const Job& job, Stream results, const CallOptions& options = {}) const {
        return AbortReport(ending(lance_tasks_abort, job, std::move(results), options));
    }

    /// The whole loop for a job whose tasks are planned: plan, execute, commit. A task whose error is of
    /// the class `retry_task` is attempted up to `max_attempts` times. Where the job fails, it is
    /// aborted, and the first error is thrown.
    Outcome run_all(const Job& job, const CallOptions& options = {},
                    unsigned max_attempts = 3) const {
        std::vector<Result> results;
        try {
            std::map<std::string, unsigned> attempts;
            for (auto tasks = plan(job, results, options); !tasks.empty();
                 tasks = plan(job, results, options)) {
                std::optional<Error> first;
                for (Result& result : execute_all(tasks, options)) {
                    const auto& error = result.error();
                    const bool again = error && error->retry_class() == RetryClass::retry_task &&
                                       ++attempts[result.task_id()] < max_attempts;
                    if (error && !again && !first) first = error;
                    results.push_back(std::move(result));
                }
                if (first) throw Error(*first);
            }
            for (unsigned attempt = 1;; ++attempt) {
                try {
                    return commit(job, results, options);
                } catch (const Error& error) {
                    if (error.retry_class() != RetryClass::retry_task || attempt >= max_attempts)
                        throw;
                }
            }
        } catch (const Error&) {
            try {
                abort(job, results, options.storage_only());
            } catch (const Error&) {
                // The first error says more.
            }
            throw;
        }
    }
    /// `prepare` and `run_all`.
    Outcome run(std::string_view spec, const CallOptions& options = {},
                unsigned max_attempts = 3) const {
        return run_all(prepare(spec, options), options, max_attempts);
    }

private:
    static LanceTasksExecutor* make(const ExecutorOptions& options) {
        if (lance_tasks_abi_version() != LANCE_TASKS_ABI_VERSION)
            throw Error("INVALID_STATE", "invalid",
                        "the library's ABI version is " +
                            std::to_string(lance_tasks_abi_version()) + ", the header's " +
                            std::to_string(LANCE_TASKS_ABI_VERSION));
        LanceTasksExecutorOptions c_options{};
        c_options.struct_size = sizeof c_options;
        c_options.num_threads = options.num_threads;
        c_options.memory_budget = options.memory_budget;
        LanceTasksExecutor* executor = nullptr;
        LanceTasksError* error = nullptr;
        detail::check(lance_tasks_executor_new(&c_options, &executor, &error), error);
        return executor;
    }

    template <typename F>
    std::string ending(F function, const Job& job, Stream results,
                       const CallOptions& options) const {
        Bytes out;
        LanceTasksError* error = nullptr;
        const auto call = options.c_options();
        detail::check(function(get(), detail::u8(job.bytes()), job.bytes().size(),
                               results ? results.get() : nullptr, &call, out.out(), &error),
                      error);
        return out.str();
    }

    std::unique_ptr<LanceTasksExecutor, void (*)(LanceTasksExecutor*)> executor_;
};

} // namespace lance_tasks

#endif // LANCE_TASKS_EXECUTOR_HPP
