// The C++ layer: tasks that yield data.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "lance_tasks/lance_tasks.hpp"

namespace lt = lance_tasks;

namespace {

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition))                                                                    \
            throw std::runtime_error(std::string(__FILE__ ":") + std::to_string(__LINE__) + \
                                     ": " #condition);                                       \
    } while (0)

const char* const blobs[] = {"zero", "one", "two"};

/// A column of blobs, of the kind that storage 2.1 has. Static: there is nothing to free.
ArrowSchema blob_schema() {
    static std::string metadata = [] {
        std::string text;
        const auto number = [&](std::int32_t n) {
            text.append(reinterpret_cast<const char*>(&n), sizeof n);
        };
        number(1);
        for (const std::string word : {"lance-encoding:blob", "true"}) {
            number(static_cast<std::int32_t>(word.size()));
            text += word;
        }
        return text;
    }();
    static ArrowSchema child, *children[] = {&child};
    const auto release = [](ArrowSchema* self) { self->release = nullptr; };
    child = ArrowSchema{};
    child.format = "Z";
    child.name = "film";
    child.metadata = metadata.c_str();
    child.flags = ARROW_FLAG_NULLABLE;
    child.release = release;
    ArrowSchema schema{};
    schema.format = "+s";
    schema.name = "";
    schema.n_children = 1;
    schema.children = children;
    schema.release = release;
    return schema;
}

ArrowArrayStream blob_stream() {
    static bool done;
    done = false;
    ArrowArrayStream stream{};
    stream.get_schema = [](ArrowArrayStream*, ArrowSchema* out) {
        *out = blob_schema();
        return 0;
    };
    stream.get_next = [](ArrowArrayStream*, ArrowArray* out) {
        static std::int64_t offsets[4];
        static std::string data;
        static const void *buffers[3], *none[] = {nullptr};
        static ArrowArray child, *children[] = {&child};
        *out = ArrowArray{};
        if (done) return 0;
        done = true;
        data.clear();
        for (int i = 0; i < 3; ++i) {
            data += blobs[i];
            offsets[i + 1] = static_cast<std::int64_t>(data.size());
        }
        buffers[1] = offsets;
        buffers[2] = data.data();
        const auto release = [](ArrowArray* self) { self->release = nullptr; };
        child = ArrowArray{};
        child.length = 3;
        child.n_buffers = 3;
        child.buffers = buffers;
        child.release = release;
        out->length = 3;
        out->n_buffers = 1;
        out->buffers = none;
        out->n_children = 1;
        out->children = children;
        out->release = release;
        return 0;
    };
    stream.get_last_error = [](ArrowArrayStream*) -> const char* { return nullptr; };
    stream.release = [](ArrowArrayStream* self) { self->release = nullptr; };
    return stream;
}

/// All blobs of a stream.
std::vector<std::string> films(lt::Stream data) {
    std::vector<std::string> films;
    CHECK(data);
    for (;;) {
        ArrowArray batch{};
        CHECK(data.get()->get_next(data.get(), &batch) == 0);
        if (batch.release == nullptr) return films;
        const ArrowArray& film = *batch.children[1];
        const auto* offsets = static_cast<const std::int64_t*>(film.buffers[1]) + film.offset;
        const auto* bytes = static_cast<const char*>(film.buffers[2]);
        for (std::int64_t i = 0; i < film.length; ++i)
            films.emplace_back(bytes + offsets[i], bytes + offsets[i + 1]);
        batch.release(&batch);
    }
}

void reading() {
    const char* base = std::getenv("LANCE_TASKS_TEST_DIR");
    CHECK(base != nullptr);
    const std::string uri = "\"" + std::string(base) + "/films.lance\"";
    const lt::Executor executor({2, 0});
    ArrowSchema schema = blob_schema();
    const lt::Job write = executor.prepare(
        R"({"operation": "write", "data_storage_version": "2.1", "uri": )" + uri + "}", &schema);
    ArrowArrayStream input = blob_stream();
    const std::vector<lt::Result> written{executor.execute(write.task("p"), &input)};
    CHECK(executor.commit(write, written).rows == 3);

    const std::string spec = R"({"operation": "take_blobs", "column": "film", "uri": )" + uri +
                             R"(, "indices": [2, 0, 2, 1], "max_rows_per_task": 3})";
    const std::vector<std::string> expected{"two", "zero", "two", "one"};
    CHECK(films(executor.read(spec)) == expected);
    const lt::Job job = executor.prepare(spec);
    const std::vector<lt::Task> tasks = executor.plan(job);
    CHECK(tasks.size() == 2);
    CHECK(films(executor.read_all(tasks)) == expected);
    CHECK(films(executor.read(tasks[1])) == std::vector<std::string>{"one"});
    // Let go unread, and in its midst.
    { const lt::Stream unread = executor.read(tasks[0]); }
    {
        lt::Stream data = executor.read_all(tasks);
        ArrowArray batch{};
        CHECK(data.get()->get_next(data.get(), &batch) == 0 && batch.release != nullptr);
        batch.release(&batch);
    }
    const auto code = [](auto&& f) {
        try {
            f();
        } catch (const lt::Error& error) {
            return error.code();
        }
        throw std::runtime_error("no error was thrown");
    };
    CHECK(code([&] { (void)executor.execute(tasks[0]); }) == lt::Code::invalid_argument);
    CHECK(code([&] { (void)executor.commit(job, std::vector<lt::Result>{}); }) ==
          lt::Code::invalid_argument);
    CHECK(code([&] { (void)executor.read(write.task("p")); }) == lt::Code::invalid_argument);
    lt::CancelToken token;
    token.cancel();
    CHECK(code([&] { (void)executor.read(tasks[0], lt::CallOptions().cancel(token)); }) ==
          lt::Code::cancelled);
}

} // namespace

int main() {
    try {
        reading();
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        std::printf("FAILED read: reading\n");
        return 1;
    }
    std::printf("ok     read: reading\n");
    return 0;
}
