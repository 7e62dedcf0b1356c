// The C++ layer: values, owners, exceptions, options, and the loop.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "lance_tasks/lance_tasks.hpp"

namespace fs = std::filesystem;
namespace lt = lance_tasks;
using lt::detail::Json;

namespace {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            throw Failure(std::string(__FILE__ ":") + std::to_string(__LINE__) + ": " #condition); \
    } while (0)

/// The error that `f` throws.
template <typename F>
lt::Error thrown(F&& f) {
    try {
        f();
    } catch (const lt::Error& error) {
        return error;
    }
    throw Failure("no error was thrown");
}

int failures = 0;

void run(const char* name, const std::function<void()>& test) {
    const char* verdict = "ok";
    try {
        test();
    } catch (const std::exception& error) {
        verdict = "FAILED";
        ++failures;
        std::cerr << error.what() << '\n';
    }
    std::printf("%-6s raii: %s\n", verdict, name);
}

fs::path fresh_dir() {
    static int count = 0;
    const char* base = std::getenv("LANCE_TASKS_TEST_DIR");
    if (base == nullptr) throw Failure("LANCE_TASKS_TEST_DIR is not set");
    fs::path dir = fs::path(base) / ("cpp" + std::to_string(count++));
    fs::create_directories(dir);
    return dir;
}

std::string quoted(const fs::path& path) { return lt::detail::json_quote(path.string()); }

/// A CSV file of `rows` rows, and the spec that writes it to `name`.
std::string csv_spec(const fs::path& dir, int rows, const std::string& name = "data.lance") {
    std::ofstream file(dir / "in.csv");
    file << "id,name\n";
    for (int i = 0; i < rows; ++i) file << i << ",row " << i << '\n';
    return R"({"operation": "write", "uri": )" + quoted(dir / name) + R"(, "sources": [)" +
           quoted(dir / "in.csv") + "]}";
}

/// The spec of a write with a task for every `per_task` rows: its source is a dataset, whose row count
/// is known beforehand.
std::string rows_spec(const lt::Executor& executor, const fs::path& dir, int rows, int per_task) {
    executor.run(csv_spec(dir, rows, "seed.lance"));
    return R"({"operation": "write", "uri": )" + quoted(dir / "data.lance") + R"(, "sources": [)" +
           quoted(dir / "seed.lance") + R"(], "max_rows_per_file": )" + std::to_string(per_task) +
           "}";
}

// ---- an Arrow stream of one int64 column, made by hand ----

struct Source {
    std::int64_t batches, rows;
    std::atomic<int> released{0};
    std::int64_t at = 0;
};

void release_schema(ArrowSchema* schema) {
    if (schema->n_children > 0) {
        delete schema->children[0];
        delete[] schema->children;
    }
    schema->release = nullptr;
}

ArrowSchema id_schema() {
    auto* child = new ArrowSchema{};
    child->format = "l";
    child->name = "id";
    child->release = [](ArrowSchema* self) { self->release = nullptr; };
    ArrowSchema schema{};
    schema.format = "+s";
    schema.name = "";
    schema.n_children = 1;
    schema.children = new ArrowSchema*[1]{child};
    schema.release = release_schema;
    return schema;
}

void release_array(ArrowArray* array) {
    if (array->n_children > 0) {
        ArrowArray* child = array->children[0];
        if (child->release != nullptr) child->release(child);
        delete child;
        delete[] array->children;
    }
    delete[] array->buffers;
    array->release = nullptr;
}

ArrowArrayStream id_stream(Source& source) {
    ArrowArrayStream stream{};
    stream.private_data = &source;
    stream.get_schema = [](ArrowArrayStream*, ArrowSchema* out) {
        *out = id_schema();
        return 0;
    };
    stream.get_next = [](ArrowArrayStream* self, ArrowArray* out) {
        auto& from = *static_cast<Source*>(self->private_data);
        *out = ArrowArray{};
        if (from.at == from.batches) return 0;
        auto* values = new std::int64_t[static_cast<std::size_t>(from.rows)];
        for (std::int64_t i = 0; i < from.rows; ++i) values[i] = from.at * from.rows + i;
        ++from.at;
        auto* child = new ArrowArray{};
        child->length = from.rows;
        child->n_buffers = 2;
        child->buffers = new const void*[2]{nullptr, values};
        child->release = [](ArrowArray* array) {
            delete[] static_cast<const std::int64_t*>(array->buffers[1]);
            delete[] array->buffers;
            array->release = nullptr;
        };
        out->length = from.rows;
        out->n_buffers = 1;
        out->buffers = new const void*[1]{nullptr};
        out->n_children = 1;
        out->children = new ArrowArray*[1]{child};
        out->release = release_array;
        return 0;
    };
    stream.get_last_error = [](ArrowArrayStream*) -> const char* { return nullptr; };
    stream.release = [](ArrowArrayStream* self) {
        ++static_cast<Source*>(self->private_data)->released;
        self->release = nullptr;
    };
    return stream;
}

// ---- tests ----

void types() {
    static_assert(!std::is_copy_constructible_v<lt::Bytes>);
    static_assert(!std::is_copy_constructible_v<lt::Stream>);
    static_assert(!std::is_copy_constructible_v<lt::ResultTable>);
    static_assert(!std::is_copy_constructible_v<lt::Executor>);
    static_assert(std::is_nothrow_move_constructible_v<lt::Bytes>);
    static_assert(std::is_nothrow_move_constructible_v<lt::TaskTable>);
    static_assert(std::is_nothrow_move_assignable_v<lt::ResultTable>);
    static_assert(std::is_nothrow_move_constructible_v<lt::Executor>);
    static_assert(std::is_copy_constructible_v<lt::Job> && std::is_copy_assignable_v<lt::Task>);
    static_assert(std::is_nothrow_copy_constructible_v<lt::Error>);
    static_assert(std::is_base_of_v<std::exception, lt::Error>);
}

void json() {
    const std::map<std::string, std::string> nasty = {
        {"quote\"", "back\\slash"}, {"line\n", "tab\t\x01\x1f"}, {"ünï", "😀"}, {"", ""}};
    const std::string text = lt::detail::json_object(nasty);
    std::map<std::string, std::string> read;
    Json(text).each_member([&](const std::string& k, const Json& v) { read[k] = v.string(); });
    CHECK(read == nasty);
    const std::string nested = R"( {"a": {"b": [1, "}", {"c": 2}], "x": null}, "d" : 17 , "e":true,
        "f": "A\u00e9\ud83d\ude00\/"} )";
    CHECK(Json(nested).at("d").uint() == 17);
    CHECK(Json(nested).at("e").boolean());
    CHECK(Json(nested).at("f").string() == "Aé😀/");
    CHECK(Json(nested).at("a").at("x").is_null());
    CHECK(!Json(nested).find("b"));
    CHECK(Json("{}").raw() == "{}" && !Json("{}").find("a"));
    for (const char* bad : {"", "{", "{\"a\"", "{\"a\":", "{\"a\":\"", "[1]", "7"})
        CHECK(thrown([&] { (void)Json(bad).at("a"); }).code() == lt::Code::decode);
}

void errors() {
    const lt::Executor executor({1, 0});
    const auto error = thrown([&] { (void)executor.prepare(R"({"operation": "levitate"})"); });
    CHECK(error.code() == lt::Code::invalid_argument);
    CHECK(error.retry_class() == lt::RetryClass::invalid);
    CHECK(error.name() == "INVALID_ARGUMENT");
    CHECK(std::string(error.what()).find("levitate") != std::string::npos);
    CHECK(!error.task_id());
    const lt::Error copy = error;
    CHECK(std::string(copy.what()) == error.what());
    CHECK(thrown([] { lt::Job("nonsense"); }).code() == lt::Code::decode);
    CHECK(thrown([] { lt::Task(""); }).code() == lt::Code::decode);
    CHECK(thrown([] { lt::Result("nonsense"); }).code() == lt::Code::decode);
    CHECK(thrown([] { lt::Job(R"({"kind": "job", "format": 99, "job": {}})"); }).code() ==
          lt::Code::version_mismatch);
    // Every code of the C header is known by its name.
    CHECK(lt::Error("NO_SUCH_CODE", "no_such_class", "").code() == lt::Code::internal);
    CHECK(lt::Error("NO_SUCH_CODE", "no_such_class", "").retry_class() == lt::RetryClass::fatal);
    CHECK(lt::Error("COMMIT_UNKNOWN", "retry_task", "").code() == lt::Code::commit_unknown);
    CHECK(lt::Error("IO", "credentials", "").retry_class() == lt::RetryClass::credentials);
}

void values() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({2, 0});
    const lt::Job job = executor.prepare(rows_spec(executor, dir, 40, 10));
    CHECK(job.operation() == "write" && job.read_version() == 0 && job.id().size() == 36);
    CHECK(job.uri().find("data.lance") != std::string::npos);
    CHECK(lt::Job(job.bytes()) == job && lt::Job(job.to_json()) == job);
    const auto tasks = executor.plan(job);
    CHECK(tasks.size() == 4);
    std::set<std::string> ids;
    for (const lt::Task& task : tasks) {
        ids.insert(task.id());
        CHECK(task.job_id() == job.id() && task.operation() == "write" && task.stage() == 0);
        CHECK(lt::Task(task.to_json()) == task);
        CHECK(task != tasks[task.index() == 0 ? 1 : 0]);
    }
    CHECK(ids.size() == 4);
    CHECK(executor.plan(job) == tasks);
    CHECK(thrown([&] { (void)job.task("a"); }).code() == lt::Code::invalid_argument);
    CHECK(thrown([&] { lt::Task(job.bytes()); }).code() == lt::Code::invalid_argument);
    CHECK(thrown([&] { lt::Job(tasks[0].bytes()); }).code() == lt::Code::invalid_argument);

    const lt::Result result = executor.execute(tasks[0]);
    CHECK(result.ok() && !result.error() && result.task_id() == tasks[0].id());
    CHECK(result.job_id() == job.id() && result.rows_out() == 10 && result.bytes_written() > 0);
    const lt::Result again(result.bytes());
    CHECK(again.attempt_id() == result.attempt_id());

    // What another Lance client made stands in for an attempt.
    const std::string& json = result.to_json();
    const size_t from = json.find('[', json.find("\"fragments\"")), to = json.find("\"index_segments\"");
    const std::string made = json.substr(from, json.rfind(']', to) + 1 - from);
    const lt::Result adopted = executor.adopt(job, tasks[0], made);
    CHECK(adopted.ok() && adopted.rows_out() == 10 && adopted.task_id() == tasks[0].id());
    CHECK(thrown([&] { (void)executor.adopt(job, tasks[0], "{"); }).code() ==
          lt::Code::invalid_argument);
}

void moves() {
    const fs::path dir = fresh_dir();
    lt::Executor first({1, 0});
    lt::Executor executor = std::move(first);
    const lt::Job job = executor.prepare(rows_spec(executor, dir, 20, 10));
    lt::TaskTable table = executor.plan_table(job);
    lt::TaskTable other = std::move(table);
    CHECK(!table && other); // NOLINT(bugprone-use-after-move)
    lt::ResultTable results = executor.execute_all(std::move(other));
    CHECK(!other && results); // NOLINT(bugprone-use-after-move)
    lt::ResultTable taken;
    taken = std::move(results);
    results = lt::ResultTable();
    CHECK(!results && taken.next() && taken.next() && !taken.next() && !taken.next());
    CHECK(thrown([&] { (void)results.next(); }).code() == lt::Code::invalid_argument);

    // A raw stream is taken over, and released at the end.
    Source source{1, 1};
    ArrowArrayStream raw = id_stream(source);
    {
        lt::Stream owner(raw);
        CHECK(raw.release == nullptr && owner);
        lt::Stream second = std::move(owner);
        CHECK(source.released == 0);
    }
    CHECK(source.released == 1);
    lt::Bytes bytes, more;
    bytes = std::move(more);
    CHECK(bytes.empty() && bytes.str().empty());
}

void loop() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor;
    const lt::Job job = executor.prepare(rows_spec(executor, dir, 100, 10));
    std::vector<lt::Result> results;
    CHECK(executor.plan(job).size() == 10);
    for (auto tasks = executor.plan(job); !tasks.empty(); tasks = executor.plan(job, results)) {
        // One task fewer: the commit says so, and the plan asks for it.
        if (results.empty()) tasks.pop_back();
        for (lt::Result& result : executor.execute_all(tasks)) results.push_back(std::move(result));
        if (results.size() == 9) {
            const auto error = thrown([&] { executor.commit(job, results); });
            CHECK(error.code() == lt::Code::incomplete);
            CHECK(error.retry_class() == lt::RetryClass::replan);
        }
    }
    CHECK(results.size() == 10);
    const lt::Outcome outcome = executor.commit(job, results);
    CHECK(outcome.version == 1 && outcome.rows == 100 && !outcome.already_committed);
    CHECK(outcome.complete && outcome.job_id == job.id() && outcome.operation == "write");
    CHECK(!outcome.metrics.empty());
    const lt::Outcome again = executor.commit(job, results);
    CHECK(again.already_committed && again.version == outcome.version);
    const lt::AbortReport report = executor.abort(job, results);
    CHECK(report.files_removed == 0 && report.kept >= 1);
}

void run_all() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({2, 0});
    const std::string uri = (dir / "data.lance").string();
    const std::string spec = rows_spec(executor, dir, 100, 10);
    CHECK(executor.run(spec).rows == 100);
    const auto compacted = executor.run(R"({"operation": "compact", "uri": ")" + uri + "\"}");
    CHECK(compacted.rows == 100 && compacted.operation == "compact");
    const auto indexed = executor.run(R"({"operation": "create_index", "column": "id", "uri": ")" +
                                      uri + R"(", "index_type": "BTREE"})");
    CHECK(indexed.version > compacted.version);
    const auto error = thrown([&] { executor.run(spec); });
    CHECK(error.code() == lt::Code::already_exists);
}

void run_all_aborts() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({2, 0});
    const lt::Job job = executor.prepare(rows_spec(executor, dir, 100, 10));
    lt::CancelToken token;
    token.cancel();
    const auto error =
        thrown([&] { executor.run_all(job, lt::CallOptions().cancel(token)); });
    CHECK(error.code() == lt::Code::cancelled);
    std::size_t files = 0;
    if (fs::exists(dir / "data.lance"))
        for (const auto& entry : fs::recursive_directory_iterator(dir / "data.lance"))
            files += entry.is_regular_file() ? 1 : 0;
    CHECK(files == 0);
}

void open_write() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({2, 0});
    const std::string spec = R"({"operation": "write", "partitions": ["a", "b"], "uri": ")" +
                             (dir / "data.lance").string() + "\"}";
    ArrowSchema schema = id_schema();
    const lt::Job job = executor.prepare(spec, &schema);
    CHECK(schema.release == nullptr);
    std::vector<lt::Result> results;
    for (const char* partition : {"a", "b"}) {
        Source source{3, 50};
        ArrowArrayStream input = id_stream(source);
        results.push_back(executor.execute(job.task(partition), &input));
        CHECK(input.release == nullptr && source.released == 1);
        CHECK(results.back().rows_out() == 150);
    }
    CHECK(executor.commit(job, results).rows == 300);

    Source source{3, 50};
    ArrowArrayStream input = id_stream(source);
    lt::CancelToken token;
    token.cancel();
    CHECK(thrown([&] {
              (void)executor.execute(job.task("a"), &input, lt::CallOptions().cancel(token));
          }).code() == lt::Code::cancelled);
    CHECK(source.released == 1);
    schema = id_schema();
    CHECK(thrown([&] { (void)executor.prepare("{", &schema); }).code() == lt::Code::decode);
    CHECK(schema.release == nullptr);
}

void progress() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({2, 0});
    const lt::Job job = executor.prepare(rows_spec(executor, dir, 100, 10));
    struct Counts {
        std::atomic<int> started{0}, finished{0}, other{0};
    };
    auto counts = std::make_shared<Counts>();
    {
        const auto options = lt::CallOptions().progress([counts](const lt::Progress& event) {
            if (event.kind == lt::Progress::Kind::started) ++counts->started;
            else if (event.kind == lt::Progress::Kind::finished) ++counts->finished;
            else ++counts->other;
            if (event.task_id.size() != 36) std::abort();
            throw std::runtime_error("ignored");
        });
        for (const auto& result : executor.execute_all(executor.plan(job), options))
            CHECK(result.ok());
        CHECK(counts->started == 10 && counts->finished == 10);
        // Each call has a context of its own.
        (void)executor.execute(executor.plan(job).front(), options);
        CHECK(counts->started == 11);
        (void)thrown([&] { (void)executor.prepare("?", options); });
        { auto left = executor.execute_all(executor.plan(job), options); }
    }
    // The finalizers have let everything go.
    CHECK(counts.use_count() == 1);
}

void options() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({1, 0});
    const std::string spec = csv_spec(dir, 10);
    lt::CallOptions options;
    options.storage_options({{"a\"b", "c\\d\n"}, {"ü", "\x01"}}).timeout(std::chrono::seconds(60));
    CHECK(executor.prepare(spec, options).operation() == "write");
    CHECK(executor.run(spec, options).rows == 10);
    const lt::ExecutorOptions many{1u << 30, 0};
    CHECK(thrown([&] { lt::Executor refused(many); }).code() == lt::Code::invalid_argument);
}

void cancel_from_another_thread() {
    const fs::path dir = fresh_dir();
    const lt::Executor executor({2, 0});
    ArrowSchema schema = id_schema();
    const lt::Job job = executor.prepare(R"({"operation": "write", "uri": ")" +
                                             (dir / "data.lance").string() + "\"}",
                                         &schema);
    Source source{-1, 100};
    ArrowArrayStream input = id_stream(source);
    lt::CancelToken token;
    std::thread canceller([token] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        token.cancel();
    });
    const auto error = thrown([&] {
        (void)executor.execute(job.task("a"), &input, lt::CallOptions().cancel(token));
    });
    canceller.join();
    CHECK(error.code() == lt::Code::cancelled && error.task_id());
    CHECK(source.released == 1);
}

} // namespace

int main() {
    run("types", types);
    run("JSON", json);
    run("errors", errors);
    run("values", values);
    run("moves", moves);
    run("the loop", loop);
    run("run_all", run_all);
    run("run_all aborts what fails", run_all_aborts);
    run("an open write", open_write);
    run("progress", progress);
    run("options", options);
    run("cancelled from another thread", cancel_from_another_thread);
    return failures == 0 ? 0 : 1;
}
