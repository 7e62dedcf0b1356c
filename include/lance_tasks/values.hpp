// SPDX-License-Identifier: Apache-2.0
//
// Part of lance_tasks.hpp: bytes, and the values Task, Job and Result.
#ifndef LANCE_TASKS_VALUES_HPP
#define LANCE_TASKS_VALUES_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lance_tasks.h"

#include "detail/json.hpp"
#include "error.hpp"

namespace lance_tasks {

/// Bytes that the library handed out. Move-only.
class Bytes {
public:
    Bytes() noexcept = default;
    Bytes(Bytes&& other) noexcept : bytes_(std::exchange(other.bytes_, LanceTasksBytes{})) {}
    Bytes& operator=(Bytes&& other) noexcept {
        if (this != &other) {
            lance_tasks_bytes_free(&bytes_);
            bytes_ = std::exchange(other.bytes_, LanceTasksBytes{});
        }
        return *this;
    }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { lance_tasks_bytes_free(&bytes_); }

    [[nodiscard]] const std::uint8_t* data() const noexcept { return bytes_.data; }
    [[nodiscard]] std::size_t size() const noexcept { return bytes_.len; }
    [[nodiscard]] bool empty() const noexcept { return bytes_.len == 0; }
    [[nodiscard]] std::string_view view() const noexcept {
        return {reinterpret_cast<const char*>(bytes_.data), bytes_.len};
    }
    [[nodiscard]] std::string str() const { return std::string(empty() ? "" : view()); }

    /// A place for a function of the C interface to write to; frees what is there.
    [[nodiscard]] LanceTasksBytes* out() noexcept {
        lance_tasks_bytes_free(&bytes_);
        return &bytes_;
    }

private:
    LanceTasksBytes bytes_{};
};

namespace detail {

inline const std::uint8_t* u8(std::string_view bytes) noexcept {
    return reinterpret_cast<const std::uint8_t*>(bytes.data());
}

inline std::string convert(std::string_view bytes, std::int32_t encoding) {
    Bytes out;
    LanceTasksError* error = nullptr;
    check(lance_tasks_convert(u8(bytes), bytes.size(), encoding, out.out(), &error), error);
    return out.str();
}

/// What the JSON envelope of a descriptor holds.
inline Json body(const std::string& json, std::string_view kind) {
    if (auto found = Json(json).find(kind)) return *found;
    throw Error("INVALID_ARGUMENT", "invalid",
                "expected a " + std::string(kind) + ", this is another kind of descriptor");
}

/// The name of a one-member object: how an operation tags its part.
inline std::string tag(const Json& object) {
    std::string name;
    object.each_member([&](std::string key, const Json&) { name = std::move(key); });
    return name;
}

} // namespace detail

/// One piece of a job: a value, to be sent anywhere as bytes.
class Task {
public:
    /// Takes either encoding.
    /// @throws Error with `Code::decode` or `Code::version_mismatch`
    explicit Task(std::string_view bytes)
        : bytes_(detail::convert(bytes, LANCE_TASKS_ENCODING_BINARY)) {
        const std::string json = to_json();
        const detail::Json body = detail::body(json, "task");
        id_ = body.at("id").string();
        job_id_ = body.at("job_id").string();
        operation_ = detail::tag(body.at("work"));
        stage_ = static_cast<std::uint32_t>(body.at("stage").uint());
        index_ = static_cast<std::uint32_t>(body.at("index").uint());
        estimated_rows_ = body.at("estimated_rows").uint();
        estimated_bytes_ = body.at("estimated_bytes").uint();
    }

    /// The binary descriptor.
    [[nodiscard]] const std::string& bytes() const noexcept { return bytes_; }
    [[nodiscard]] std::string to_json() const {
        return detail::convert(bytes_, LANCE_TASKS_ENCODING_JSON);
    }
    [[nodiscard]] const std::string& id() const noexcept { return id_; }
    [[nodiscard]] const std::string& job_id() const noexcept { return job_id_; }
    [[nodiscard]] const std::string& operation() const noexcept { return operation_; }
    [[nodiscard]] std::uint32_t stage() const noexcept { return stage_; }
    [[nodiscard]] std::uint32_t index() const noexcept { return index_; }
    /// Rows that the task reads, 0 where unknown beforehand.
    [[nodiscard]] std::uint64_t estimated_rows() const noexcept { return estimated_rows_; }
    /// Bytes that the task reads, 0 where unknown beforehand.
    [[nodiscard]] std::uint64_t estimated_bytes() const noexcept { return estimated_bytes_; }

    friend bool operator==(const Task& a, const Task& b) { return a.bytes_ == b.bytes_; }
    friend bool operator!=(const Task& a, const Task& b) { return !(a == b); }

private:
    std::string bytes_, id_, job_id_, operation_;
    std::uint32_t stage_ = 0, index_ = 0;
    std::uint64_t estimated_rows_ = 0, estimated_bytes_ = 0;
};

/// A prepared spec: a value, to be kept and sent anywhere as bytes.
class Job {
public:
    /// Takes either encoding.
    /// @throws Error with `Code::decode` or `Code::version_mismatch`
    explicit Job(std::string_view bytes)
        : bytes_(detail::convert(bytes, LANCE_TASKS_ENCODING_BINARY)) {
        const std::string json = to_json();
        const detail::Json body = detail::body(json, "job");
        id_ = body.at("id").string();
        uri_ = body.at("uri").string();
        operation_ = detail::tag(body.at("state"));
        read_version_ = body.at("read_version").uint();
    }

    /// The binary descriptor.
    [[nodiscard]] const std::string& bytes() const noexcept { return bytes_; }
    [[nodiscard]] std::string to_json() const {
        return detail::convert(bytes_, LANCE_TASKS_ENCODING_JSON);
    }
    [[nodiscard]] const std::string& id() const noexcept { return id_; }
    [[nodiscard]] const std::string& uri() const noexcept { return uri_; }
    [[nodiscard]] const std::string& operation() const noexcept { return operation_; }
    /// The pinned version; 0 where the job creates the dataset.
    [[nodiscard]] std::uint64_t read_version() const noexcept { return read_version_; }

    /// The task of one partition of an open job (a `write` fed by streams).
    /// @throws Error where the job is not open or the partition is none of its own
    [[nodiscard]] Task task(std::string_view partition) const {
        Bytes out;
        LanceTasksError* error = nullptr;
        detail::check(lance_tasks_job_task(detail::u8(bytes_), bytes_.size(),
                                           detail::u8(partition), partition.size(), out.out(),
                                           &error),
                      error);
        return Task(out.view());
    }

    friend bool operator==(const Job& a, const Job& b) { return a.bytes_ == b.bytes_; }
    friend bool operator!=(const Job& a, const Job& b) { return !(a == b); }

private:
    std::string bytes_, id_, uri_, operation_;
    std::uint64_t read_version_ = 0;
};

/// What one attempt at a task made, or why it failed: a value, to be sent anywhere as bytes.
class Result {
public:
    /// Takes an Arrow IPC stream of one row, as `bytes()` gives it.
    /// @throws Error with `Code::decode`
    explicit Result(std::string bytes) : bytes_(std::move(bytes)) {
        const std::string json = to_json();
        const detail::Json row(json);
        task_id_ = row.at("task_id").string();
        job_id_ = row.at("job_id").string();
        attempt_id_ = row.at("attempt_id").string();
        operation_ = row.at("operation").string();
        rows_in_ = row.at("rows_in").uint();
        rows_out_ = row.at("rows_out").uint();
        bytes_read_ = row.at("bytes_read").uint();
        bytes_written_ = row.at("bytes_written").uint();
        if (row.at("status").string() == "ok") return;
        const detail::Json error = row.at("error");
        error_.emplace(error.at("code").string(), error.at("class").string(),
                       error.at("message").string(), task_id_);
    }

    /// The row as an Arrow IPC stream.
    [[nodiscard]] const std::string& bytes() const noexcept { return bytes_; }
    /// Every column of the row, for people.
    [[nodiscard]] std::string to_json() const {
        return detail::convert(bytes_, LANCE_TASKS_ENCODING_JSON);
    }
    [[nodiscard]] bool ok() const noexcept { return !error_.has_value(); }
    /// Why the attempt failed; nothing where it succeeded.
    [[nodiscard]] const std::optional<Error>& error() const noexcept { return error_; }
    [[nodiscard]] const std::string& task_id() const noexcept { return task_id_; }
    [[nodiscard]] const std::string& job_id() const noexcept { return job_id_; }
    [[nodiscard]] const std::string& attempt_id() const noexcept { return attempt_id_; }
    [[nodiscard]] const std::string& operation() const noexcept { return operation_; }
    [[nodiscard]] std::uint64_t rows_in() const noexcept { return rows_in_; }
    [[nodiscard]] std::uint64_t rows_out() const noexcept { return rows_out_; }
    [[nodiscard]] std::uint64_t bytes_read() const noexcept { return bytes_read_; }
    [[nodiscard]] std::uint64_t bytes_written() const noexcept { return bytes_written_; }

private:
    std::string bytes_, task_id_, job_id_, attempt_id_, operation_;
    std::uint64_t rows_in_ = 0, rows_out_ = 0, bytes_read_ = 0, bytes_written_ = 0;
    std::optional<Error> error_;
};

} // namespace lance_tasks

#endif // LANCE_TASKS_VALUES_HPP
