// Write a CSV file into a new Lance dataset, compact it, and index its first column.
//
//   maintain FILE.csv DATASET
#include <atomic>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include <lance_tasks/lance_tasks.hpp>

namespace lt = lance_tasks;

namespace {

/// `text` as a JSON string.
std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + '"';
}

std::string first_column(const std::string& csv) {
    std::ifstream file(csv);
    std::string line;
    std::getline(file, line);
    return line.substr(0, line.find_first_of(",\r"));
}

/// The loop by hand; `executor.run(spec)` does as much, with retries. Each task, and each result, could
/// have been made elsewhere: both are values around bytes.
lt::Outcome write(const lt::Executor& executor, const std::string& spec) {
    std::atomic<std::uint64_t> finished{0};
    const auto options = lt::CallOptions().progress([&finished](const lt::Progress& event) {
        if (event.kind == lt::Progress::Kind::finished) ++finished;
    });
    const lt::Job job = executor.prepare(spec);
    std::vector<lt::Result> results;
    for (auto tasks = executor.plan(job); !tasks.empty(); tasks = executor.plan(job, results)) {
        for (lt::Result& result : executor.execute_all(tasks, options)) {
            if (result.error()) {
                results.push_back(result);
                executor.abort(job, results);
                throw lt::Error(*result.error());
            }
            results.push_back(std::move(result));
        }
    }
    std::cout << finished << " tasks finished\n";
    return executor.commit(job, results);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " FILE.csv DATASET\n";
        return 2;
    }
    const std::string source = quoted(argv[1]), uri = quoted(argv[2]);
    try {
        const lt::Executor executor;
        const auto written = write(executor, "{\"operation\": \"write\", \"uri\": " + uri +
                                                 ", \"sources\": [" + source + "]}");
        std::cout << written.rows << " rows in version " << written.version << '\n';
        const auto compacted = executor.run("{\"operation\": \"compact\", \"uri\": " + uri + "}");
        std::cout << "compacted in version " << compacted.version << '\n';
        const auto indexed = executor.run("{\"operation\": \"create_index\", \"uri\": " + uri +
                                          ", \"column\": " + quoted(first_column(argv[1])) +
                                          ", \"index_type\": \"BTREE\"}");
        std::cout << "indexed in version " << indexed.version << '\n';
    } catch (const lt::Error& error) {
        std::cerr << error.name() << ": " << error.what() << '\n';
        return 1;
    }
    return 0;
}
