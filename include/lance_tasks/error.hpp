// SPDX-License-Identifier: Apache-2.0
//
// Part of lance_tasks.hpp: the exception.
#ifndef LANCE_TASKS_ERROR_HPP
#define LANCE_TASKS_ERROR_HPP

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lance_tasks.h"

namespace lance_tasks {

/// What went wrong; the numbers of lance_tasks.h.
enum class Code : std::int32_t {
    invalid_argument = LANCE_TASKS_INVALID_ARGUMENT,
    not_found = LANCE_TASKS_NOT_FOUND,
    already_exists = LANCE_TASKS_ALREADY_EXISTS,
    schema_mismatch = LANCE_TASKS_SCHEMA_MISMATCH,
    source = LANCE_TASKS_SOURCE,
    decode = LANCE_TASKS_DECODE,
    version_mismatch = LANCE_TASKS_VERSION_MISMATCH,
    incomplete = LANCE_TASKS_INCOMPLETE,
    verification = LANCE_TASKS_VERIFICATION,
    conflict = LANCE_TASKS_CONFLICT,
    retryable_conflict = LANCE_TASKS_RETRYABLE_CONFLICT,
    version_gone = LANCE_TASKS_VERSION_GONE,
    history_gone = LANCE_TASKS_HISTORY_GONE,
    io = LANCE_TASKS_IO,
    credentials = LANCE_TASKS_CREDENTIALS,
    cancelled = LANCE_TASKS_CANCELLED,
    deadline_exceeded = LANCE_TASKS_DEADLINE_EXCEEDED,
    budget_exceeded = LANCE_TASKS_BUDGET_EXCEEDED,
    invalid_state = LANCE_TASKS_INVALID_STATE,
    not_supported = LANCE_TASKS_NOT_SUPPORTED,
    commit_unknown = LANCE_TASKS_COMMIT_UNKNOWN,
    panic = LANCE_TASKS_PANIC,
    internal = LANCE_TASKS_INTERNAL,
};

/// What to do about an error.
enum class RetryClass {
    /// Try the same task, or commit, again as it is.
    retry_task,
    /// The dataset moved on: plan again, or prepare the job again.
    replan,
    /// Another writer made this job's change impossible.
    conflict,
    /// The input is wrong; trying again changes nothing.
    invalid,
    /// Credentials are missing, wrong or expired.
    credentials,
    /// Stop.
    fatal,
};

/// Every failure of the library. `what()` names the file, fragment, column or option.
class Error : public std::exception {
public:
    /// Of a name and class as the library gives them; unknown ones read as `internal` and `fatal`.
    Error(std::string name, std::string_view retry_class, std::string message,
          std::optional<std::string> task_id = std::nullopt)
        : detail_(std::make_shared<const Detail>(
              Detail{code_of(name), class_of(retry_class), std::move(name), std::move(message),
                     std::move(task_id)})) {}

    [[nodiscard]] const char* what() const noexcept override { return detail_->message.c_str(); }
    [[nodiscard]] Code code() const noexcept { return detail_->code; }
    /// The code's name, for example `SCHEMA_MISMATCH`.
    [[nodiscard]] const std::string& name() const noexcept { return detail_->name; }
    [[nodiscard]] RetryClass retry_class() const noexcept { return detail_->retry_class; }
    /// The task concerned, if one is.
    [[nodiscard]] const std::optional<std::string>& task_id() const noexcept {
        return detail_->task_id;
    }

private:
    struct Detail {
        Code code;
        RetryClass retry_class;
        std::string name;
        std::string message;
        std::optional<std::string> task_id;
    };

    static Code code_of(std::string_view name) noexcept {
        static constexpr std::pair<const char*, Code> kCodes[] = {
            {"INVALID_ARGUMENT", Code::invalid_argument},
            {"NOT_FOUND", Code::not_found},
            {"ALREADY_EXISTS", Code::already_exists},
            {"SCHEMA_MISMATCH", Code::schema_mismatch},
            {"SOURCE", Code::source},
            {"DECODE", Code::decode},
            {"VERSION_MISMATCH", Code::version_mismatch},
            {"INCOMPLETE", Code::incomplete},
            {"VERIFICATION", Code::verification},
            {"CONFLICT", Code::conflict},
            {"RETRYABLE_CONFLICT", Code::retryable_conflict},
            {"VERSION_GONE", Code::version_gone},
            {"HISTORY_GONE", Code::history_gone},
            {"IO", Code::io},
            {"CREDENTIALS", Code::credentials},
            {"CANCELLED", Code::cancelled},
            {"DEADLINE_EXCEEDED", Code::deadline_exceeded},
            {"BUDGET_EXCEEDED", Code::budget_exceeded},
            {"INVALID_STATE", Code::invalid_state},
            {"NOT_SUPPORTED", Code::not_supported},
            {"COMMIT_UNKNOWN", Code::commit_unknown},
            {"PANIC", Code::panic},
        };
        for (const auto& [known, code] : kCodes)
            if (name == known) return code;
        return Code::internal;
    }

    static RetryClass class_of(std::string_view name) noexcept {
        if (name == "retry_task") return RetryClass::retry_task;
        if (name == "replan") return RetryClass::replan;
        if (name == "conflict") return RetryClass::conflict;
        if (name == "invalid") return RetryClass::invalid;
        if (name == "credentials") return RetryClass::credentials;
        return RetryClass::fatal;
    }

    // Shared, so that copying an exception never throws.
    std::shared_ptr<const Detail> detail_;
};

namespace detail {

/// Throw what a failed call left in `error`, and free it. A reference: as an argument beside the call it
/// would be read before the call is made.
inline void check(LanceTasksStatus status, LanceTasksError*& error) {
    if (status == LANCE_TASKS_OK) return;
    const std::unique_ptr<LanceTasksError, void (*)(LanceTasksError*)> owner(
        error, lance_tasks_error_free);
    const auto text = [](const char* value) { return std::string(value ? value : ""); };
    const char* task_id = lance_tasks_error_task_id(error);
    throw Error(text(lance_tasks_error_name(error)), text(lance_tasks_error_class(error)),
                text(lance_tasks_error_message(error)),
                task_id ? std::optional<std::string>(task_id) : std::nullopt);
}

} // namespace detail
} // namespace lance_tasks

#endif // LANCE_TASKS_ERROR_HPP
