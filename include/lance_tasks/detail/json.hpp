// SPDX-License-Identifier: Apache-2.0
//
// As much JSON as lance_tasks.hpp needs: writing an object of strings, and looking up members of what
// the library has written. Not part of the public interface.
#ifndef LANCE_TASKS_DETAIL_JSON_HPP
#define LANCE_TASKS_DETAIL_JSON_HPP

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "../error.hpp"

namespace lance_tasks::detail {

/// A string with its quotes. Bytes beyond ASCII stay as they are: UTF-8 in, UTF-8 out.
inline std::string json_quote(std::string_view text) {
    static constexpr char kHex[] = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        switch (c) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        default:
            if (byte < 0x20) {
                out += "\\u00";
                out += kHex[byte >> 4];
                out += kHex[byte & 15];
            } else {
                out += c;
            }
        }
    }
    return out += '"';
}

inline std::string json_object(const std::map<std::string, std::string>& members) {
    std::string out = "{";
    for (const auto& [key, value] : members) {
        if (out.size() > 1) out += ',';
        out += json_quote(key) + ':' + json_quote(value);
    }
    return out += '}';
}

/// A view of one JSON value; the text must outlive it.
class Json {
public:
    explicit Json(std::string_view text) : text_(text) { trim(); }

    /// The value as it is written.
    [[nodiscard]] std::string_view raw() const noexcept { return text_; }

    [[nodiscard]] bool is_null() const noexcept { return text_ == "null"; }

    /// A member of an object, if it is there.
    [[nodiscard]] std::optional<Json> find(std::string_view key) const {
        std::optional<Json> found;
        each_member([&](const std::string& name, Json value) {
            if (!found && name == key) found = value;
        });
        return found;
    }

    /// A member that must be there.
    [[nodiscard]] Json at(std::string_view key) const {
        if (auto found = find(key)) return *found;
        throw Error("DECODE", "invalid", "JSON without \"" + std::string(key) + "\"");
    }

    /// Call `f(std::string name, Json value)` for each member of an object, in order.
    template <typename F>
    void each_member(F&& f) const {
        std::size_t at = 0;
        expect(at, '{');
        skip_space(at);
        while (peek(at) != '}') {
            const std::size_t key = at;
            skip_value(at);
            std::string name = Json(text_.substr(key, at - key)).string();
            skip_space(at);
            expect(at, ':');
            skip_space(at);
            const std::size_t value = at;
            skip_value(at);
            f(std::move(name), Json(text_.substr(value, at - value)));
            skip_space(at);
            if (peek(at) == ',') {
                ++at;
                skip_space(at);
            }
        }
    }

    [[nodiscard]] std::string string() const {
        std::size_t at = 0;
        expect(at, '"');
        std::string out;
        while (peek(at) != '"') {
            char c = text_[at++];
            if (c != '\\') {
                out += c;
                continue;
            }
            c = peek(at++);
            switch (c) {
            case 'b': out += '\b'; break;
            case 'f': out += '\f'; break;
            case 'n': out += '\n'; break;
            case 'r': out += '\r'; break;
            case 't': out += '\t'; break;
            case 'u': append_utf8(out, code_point(at)); break;
            default: out += c;
            }
        }
        return out;
    }

    [[nodiscard]] std::uint64_t uint() const {
        std::uint64_t value = 0;
        if (text_.empty()) bad();
        for (const char c : text_) {
            if (c < '0' || c > '9') bad();
            value = value * 10 + static_cast<std::uint64_t>(c - '0');
        }
        return value;
    }

    [[nodiscard]] bool boolean() const {
        if (text_ == "true") return true;
        if (text_ == "false") return false;
        bad();
    }

private:
    [[noreturn]] void bad() const {
        throw Error("DECODE", "invalid", "unexpected JSON: " + std::string(text_.substr(0, 80)));
    }

    [[nodiscard]] char peek(std::size_t at) const {
        if (at >= text_.size()) bad();
        return text_[at];
    }

    void expect(std::size_t& at, char c) const {
        if (peek(at) != c) bad();
        ++at;
    }

    static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

    void skip_space(std::size_t& at) const {
        while (at < text_.size() && is_space(text_[at])) ++at;
    }

    void trim() {
        while (!text_.empty() && is_space(text_.front())) text_.remove_prefix(1);
        while (!text_.empty() && is_space(text_.back())) text_.remove_suffix(1);
    }

    void skip_string(std::size_t& at) const {
        expect(at, '"');
        while (peek(at) != '"') at += peek(at) == '\\' ? 2 : 1;
        ++at;
    }

    void skip_value(std::size_t& at) const {
        std::size_t depth = 0;
        do {
            const char c = peek(at);
            if (c == '"') {
                skip_string(at);
            } else if (c == '{' || c == '[') {
                ++depth;
                ++at;
            } else if (c == '}' || c == ']') {
                --depth;
                ++at;
            } else if (depth > 0) {
                ++at;
            } else {
                while (at < text_.size() && !is_space(text_[at]) && text_[at] != ',' &&
                       text_[at] != '}' && text_[at] != ']')
                    ++at;
            }
        } while (depth > 0);
    }

    [[nodiscard]] unsigned hex4(std::size_t& at) const {
        unsigned value = 0;
        for (int i = 0; i < 4; ++i) {
            const char c = peek(at++);
            value <<= 4;
            if (c >= '0' && c <= '9') value += static_cast<unsigned>(c - '0');
            else if (c >= 'a' && c <= 'f') value += static_cast<unsigned>(c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') value += static_cast<unsigned>(c - 'A' + 10);
            else bad();
        }
        return value;
    }

    /// What follows `\u`, with the second half of a surrogate pair.
    [[nodiscard]] unsigned code_point(std::size_t& at) const {
        const unsigned high = hex4(at);
        if (high < 0xd800 || high > 0xdbff) return high;
        if (text_.substr(at, 2) != "\\u") return 0xfffd;
        at += 2;
        const unsigned low = hex4(at);
        if (low < 0xdc00 || low > 0xdfff) return 0xfffd;
        return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    }

    static void append_utf8(std::string& out, unsigned point) {
        const auto byte = [&out](unsigned value) { out += static_cast<char>(value); };
        if (point < 0x80) {
            byte(point);
        } else if (point < 0x800) {
            byte(0xc0 | point >> 6);
            byte(0x80 | (point & 0x3f));
        } else if (point < 0x10000) {
            byte(0xe0 | point >> 12);
            byte(0x80 | (point >> 6 & 0x3f));
            byte(0x80 | (point & 0x3f));
        } else {
            byte(0xf0 | point >> 18);
            byte(0x80 | (point >> 12 & 0x3f));
            byte(0x80 | (point >> 6 & 0x3f));
            byte(0x80 | (point & 0x3f));
        }
    }

    std::string_view text_;
};

} // namespace lance_tasks::detail

#endif // LANCE_TASKS_DETAIL_JSON_HPP
